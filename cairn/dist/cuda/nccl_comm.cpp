// NcclComm: calls of the group in NCCL's terms.
#include "cairn/dist/cuda/nccl_comm.h"

#include <thread>

#include "cairn/dist/process_group.h"

namespace cairn::dist::cuda {
namespace {

ncclDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ncclFloat64;
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f16:
      return ncclFloat16;
    case DType::i64:
      return ncclInt64;
    case DType::i32:
      return ncclInt32;
    case DType::u8:
      return ncclUint8;
    case DType::boolean:
      break;
  }
  fail("nccl: dtype must be a number's, got ", dtype);
}

ncclRedOp_t reduction(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return ncclSum;
    case ReduceOp::avg:
      return ncclAvg;
    case ReduceOp::min:
      return ncclMin;
    case ReduceOp::max:
      return ncclMax;
    case ReduceOp::prod:
      return ncclProd;
  }
  fail("nccl: reduction must be known, got number ", static_cast<int>(op));
}

void* data_of(const Tensor& t) { return t.defined() ? t.raw_data() : nullptr; }

}  // namespace

std::string nccl_failure(const NcclApi& api, const char* call, ncclResult_t result,
                         ncclComm_t comm) {
  const char* const more = api.last_error(comm);
  std::string out = cat(call, ": NCCL call must succeed, got ", api.error_string(result));
  if (more != nullptr && *more != '\0') out += cat(": ", more);
  return out;
}

NcclComm::NcclComm(const NcclApi& api, const ncclUniqueId& id, int rank, int size,
                   const Deadline& deadline)
    : api_(api), rank_(rank), size_(size) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;  // else a missing peer would hold the host for ever
  try {
    check("ncclCommInitRankConfig", api_.init(&comm_, size, id, rank, &config));
    settle("ncclCommInitRankConfig", deadline);
  } catch (...) {
    end();
    throw;
  }
}

void NcclComm::check(const char* call, ncclResult_t result) const {
  if (result != ncclSuccess && result != ncclInProgress)
    throw CommError(nccl_failure(api_, call, result, comm_));
}

void NcclComm::settle(const char* call, const Deadline& deadline) const {
  for (;;) {
    ncclResult_t state = ncclSuccess;
    check("ncclCommGetAsyncError", api_.async_error(comm_, &state));
    if (state != ncclInProgress) return check(call, state);
    if (deadline.expired())
      throw TimeoutError(
          cat(call, ": rank ", rank_, " of ", size_, " waited for the others until the deadline"));
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

void NcclComm::issue(const Call& call, void* scratch, cudaStream_t stream) {
  if (comm_ == nullptr) throw CommError(cat(describe(call), ": the communicator was aborted"));
  enqueue(call, scratch, stream);
  settle(std::string(name_of(call.is.kind)).c_str(), call.deadline);
}

void NcclComm::enqueue(const Call& call, void* scratch, cudaStream_t stream) {
  const void* const in = data_of(call.input);
  void* const out = data_of(call.output);
  const auto n = static_cast<size_t>(call.is.numel);
  const ncclDataType_t type = data_type(call.is.dtype);
  const ncclRedOp_t op = reduction(call.is.op);
  switch (call.is.kind) {
    case CallKind::all_reduce:
      return check("ncclAllReduce", api_.all_reduce(in, out, n, type, op, comm_, stream));
    case CallKind::reduce:
      return check("ncclReduce", api_.reduce(in, out, n, type, op, call.is.root, comm_, stream));
    case CallKind::reduce_scatter:
      return check("ncclReduceScatter", api_.reduce_scatter(in, out, n, type, op, comm_, stream));
    case CallKind::all_gather:
      return check("ncclAllGather", api_.all_gather(in, out, n, type, comm_, stream));
    case CallKind::broadcast:
      return check("ncclBroadcast", api_.broadcast(in, out, n, type, call.is.root, comm_, stream));
    case CallKind::send:
      return check("ncclSend", api_.send(in, n, type, call.peer, comm_, stream));
    case CallKind::recv:
      return check("ncclRecv", api_.recv(out, n, type, call.peer, comm_, stream));
    case CallKind::barrier:
      return check("ncclAllReduce",
                   api_.all_reduce(scratch, scratch, 1, ncclInt32, ncclMax, comm_, stream));
    case CallKind::scatter:
    case CallKind::gather:
    case CallKind::all_to_all:
      return exchange(call, stream);
  }
}

// What NCCL has no call for: a group of sends and receives.
void NcclComm::exchange(const Call& call, cudaStream_t stream) {
  const bool all = call.is.kind == CallKind::all_to_all;
  const bool root = rank_ == call.is.root;
  const bool sends = all || call.is.kind == CallKind::gather || root;
  const bool receives = all || call.is.kind == CallKind::scatter || root;
  // Of all_to_all, numel counts all parts together.
  const int64_t n = all ? call.is.numel / size_ : call.is.numel;
  const ncclDataType_t type = data_type(call.is.dtype);
  const int64_t bytes = n * item_size(call.is.dtype);
  const bool parts_in = all || call.is.kind == CallKind::scatter;
  const bool parts_out = all || call.is.kind == CallKind::gather;
  auto* const in = static_cast<std::byte*>(data_of(call.input));
  auto* const out = static_cast<std::byte*>(data_of(call.output));
  check("ncclGroupStart", api_.group_start());
  ncclResult_t result = ncclSuccess;
  const auto keep = [&](ncclResult_t next) {
    if (result == ncclSuccess || result == ncclInProgress) result = next;
  };
  for (int peer = 0; peer < size_; ++peer) {
    const bool to = sends && (parts_in || peer == call.is.root);
    const bool from = receives && (parts_out || peer == call.is.root);
    if (to)
      keep(api_.send(in + (parts_in ? peer * bytes : 0), static_cast<size_t>(n), type, peer, comm_,
                     stream));
    if (from)
      keep(api_.recv(out + (parts_out ? peer * bytes : 0), static_cast<size_t>(n), type, peer,
                     comm_, stream));
  }
  const ncclResult_t ended = api_.group_end();  // also after a failure
  check("ncclSend", result);
  check("ncclGroupEnd", ended);
}

std::string NcclComm::failure() const {
  if (comm_ == nullptr) return "";
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = api_.async_error(comm_, &state);
  if (asked != ncclSuccess) return nccl_failure(api_, "ncclCommGetAsyncError", asked, comm_);
  if (state == ncclSuccess || state == ncclInProgress) return "";
  return nccl_failure(api_, "communicator", state, comm_);
}

void NcclComm::close(const Deadline& deadline) noexcept {
  if (comm_ == nullptr) return;
  try {
    check("ncclCommFinalize", api_.finalize(comm_));
    settle("ncclCommFinalize", deadline);
    check("ncclCommDestroy", api_.destroy(comm_));
    comm_ = nullptr;
  } catch (const std::exception&) {  // all calls of this rank are done, so nothing is lost
    end();
  }
}

void NcclComm::end() noexcept {
  if (comm_ == nullptr) return;
  static_cast<void>(api_.comm_abort(comm_));  // a failure here has nobody left to hear of it
  comm_ = nullptr;
}

}  // namespace cairn::dist::cuda
