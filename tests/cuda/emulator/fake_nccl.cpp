// NCCL for one rank: each collective is a copy in its stream's turn.
#include "tests/cuda/emulator/fake_nccl.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "tests/cuda/emulator/queue.h"

struct ncclComm {
  const void* sent = nullptr;  // inside a group of calls: what waits for its receiver
  size_t sent_bytes = 0;
};

namespace cairn::emulator {
namespace {

NcclLog log;
std::atomic<ncclResult_t> state{ncclSuccess};
int open_groups = 0;

size_t bytes_of(size_t count, ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return count;
    case ncclFloat16:
    case ncclBfloat16:
      return 2 * count;
    case ncclInt32:
    case ncclFloat32:
      return 4 * count;
    default:
      return 8 * count;
  }
}

ncclResult_t copy(void* to, const void* from, size_t bytes, ncclComm_t comm, cudaStream_t stream) {
  if (comm == nullptr || stream == nullptr) return ncclInvalidArgument;
  ++log.calls;
  const cudaError_t error = enqueue(stream, [=] {
    ++log.ran;
    if (to != from && bytes > 0) std::memcpy(to, from, bytes);
  });
  return error == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t init(ncclComm_t* comm, int size, ncclUniqueId, int rank, ncclConfig_t* config) {
  if (size != 1 || rank != 0 || config->blocking != 0) return ncclInvalidArgument;
  *comm = new ncclComm;
  ++log.live;
  return ncclInProgress;
}
ncclResult_t end(ncclComm_t comm) {
  delete comm;
  --log.live;
  return ncclSuccess;
}

ncclResult_t send(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                  cudaStream_t) {
  // Alone, a rank can only send to itself, and only together with the receiving.
  if (peer != 0 || open_groups == 0) return ncclInvalidUsage;
  comm->sent = from;
  comm->sent_bytes = bytes_of(count, type);
  return ncclSuccess;
}
ncclResult_t recv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                  cudaStream_t stream) {
  if (peer != 0 || open_groups == 0 || comm->sent_bytes != bytes_of(count, type))
    return ncclInvalidUsage;
  return copy(to, comm->sent, comm->sent_bytes, comm, stream);
}

}  // namespace

NcclLog& nccl_log() { return log; }
void set_nccl_state(ncclResult_t now) { state = now; }

const dist::cuda::NcclApi& fake_nccl() {
  static const dist::cuda::NcclApi api = {
      .error_string = [](ncclResult_t r) { return r == ncclSuccess ? "no error" : "an error"; },
      .last_error = [](ncclComm_t) { return "as the test wanted"; },
      .unique_id =
          [](ncclUniqueId* id) {
            std::memset(id->internal, 7, sizeof id->internal);
            return ncclSuccess;
          },
      .init = init,
      .async_error =
          [](ncclComm_t, ncclResult_t* now) {
            *now = state;
            return ncclSuccess;
          },
      .finalize = [](ncclComm_t) { return ncclSuccess; },
      .destroy = end,
      .comm_abort =
          [](ncclComm_t comm) {
            ++log.aborted;
            return end(comm);
          },
      .all_reduce = [](const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t,
                       ncclComm_t comm,
                       cudaStream_t s) { return copy(to, from, bytes_of(n, type), comm, s); },
      .reduce = [](const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t, int,
                   ncclComm_t comm,
                   cudaStream_t s) { return copy(to, from, bytes_of(n, type), comm, s); },
      .reduce_scatter = [](const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t,
                           ncclComm_t comm,
                           cudaStream_t s) { return copy(to, from, bytes_of(n, type), comm, s); },
      .all_gather = [](const void* from, void* to, size_t n, ncclDataType_t type, ncclComm_t comm,
                       cudaStream_t s) { return copy(to, from, bytes_of(n, type), comm, s); },
      .broadcast = [](const void* from, void* to, size_t n, ncclDataType_t type, int,
                      ncclComm_t comm,
                      cudaStream_t s) { return copy(to, from, bytes_of(n, type), comm, s); },
      .send = send,
      .recv = recv,
      .group_start =
          [] {
            ++open_groups;
            return ncclSuccess;
          },
      .group_end =
          [] {
            --open_groups;
            return ncclSuccess;
          },
  };
  return api;
}

}  // namespace cairn::emulator
