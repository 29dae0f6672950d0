// NCCL for ranks that are threads of one process, each with an emulated device of its own.
// Invariant: a call is done when it is the turn of every rank's stream to do it, and no host waits
// for that; a rank whose peers do not come waits on its device until it is aborted. A call that is
// captured on one rank alone does not meet the others', where the real one promises nothing.
#include "tests/cuda/emulator/fake_nccl.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/cuda/emulator/nccl_calls.h"
#include "tests/cuda/emulator/queue.h"

namespace cairn::emulator {
namespace {

struct Rank;

// What the ranks of a communicator share.
struct Meeting {
  std::vector<Rank*> ranks;  // null: not here yet, or gone
  size_t joined = 0;
};

using Calls = std::vector<NcclCall>;  // one, or those of a group

struct Rank {
  std::shared_ptr<Meeting> meeting;
  int rank = 0, device = 0;
  bool aborted = false, finalizing = false;
  cudaStream_t stream = nullptr;  // of the last call outside of a capture
  // Held by calls in streams and in graphs.
  std::shared_ptr<int> queued = std::make_shared<int>(0), captured = std::make_shared<int>(0);
  const Calls* turn = nullptr;           // what it is this rank's turn to do
  std::vector<const NcclCall*> waiting;  // of those the ones that are not done
};

}  // namespace
}  // namespace cairn::emulator

struct ncclComm {
  std::shared_ptr<cairn::emulator::Rank> rank;
};

namespace cairn::emulator {
namespace {

NcclLog log;
std::atomic<ncclResult_t> state{ncclSuccess};
std::map<std::string, std::weak_ptr<Meeting>> meetings;
std::atomic<int> ids{0};

// Calls between this thread's ncclGroupStart and ncclGroupEnd, all of one communicator and stream.
struct Group {
  int depth = 0;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  Calls calls;
};
thread_local Group group;

// --- what is done when all are there -------------------------------------------------------------
const NcclCall* first_waiting(const Rank* rank, NcclKind kind, int peer) {
  for (const NcclCall* call : rank->waiting)
    if (call->kind == kind && call->peer == peer) return call;
  return nullptr;
}
const NcclCall* first_collective(const Rank* rank) {
  for (const NcclCall* call : rank->waiting)
    if (is_collective(*call)) return call;
  return nullptr;
}
void finish(Rank* rank, const NcclCall* call) {
  rank->waiting.erase(std::find(rank->waiting.begin(), rank->waiting.end(), call));
  ++log.ran;
}

bool match_collective(const Meeting& m) {
  std::vector<const NcclCall*> calls;
  for (const Rank* rank : m.ranks) {
    const NcclCall* const call = rank == nullptr ? nullptr : first_collective(rank);
    // Different calls hang (or worse) with the real one too.
    if (call == nullptr || (!calls.empty() && !same_call(*calls[0], *call))) return false;
    calls.push_back(call);
  }
  run_collective(calls);
  for (size_t r = 0; r < calls.size(); ++r) finish(m.ranks[r], calls[r]);
  return true;
}

bool match_pair(Rank* from, Rank* to) {
  if (from == nullptr || to == nullptr) return false;
  const NcclCall* const send = first_waiting(from, NcclKind::send, to->rank);
  const NcclCall* const recv = first_waiting(to, NcclKind::recv, from->rank);
  if (send == nullptr || recv == nullptr || bytes_of(*send) != bytes_of(*recv) ||
      send->captured != recv->captured)
    return false;
  if (bytes_of(*send) > 0) std::memcpy(recv->to, send->from, bytes_of(*send));
  finish(from, send);
  finish(to, recv);
  return true;
}

void match(const Meeting& m) {
  for (bool any = true; any;) {
    any = match_collective(m);
    for (Rank* from : m.ranks)
      for (Rank* to : m.ranks) any |= match_pair(from, to);
  }
}

// The stream has come to these calls; whether they are done.
bool take_turn(Rank& me, const Calls& calls) {
  if (me.aborted) return true;
  if (me.turn == nullptr) {
    me.turn = &calls;
    for (const NcclCall& call : calls) me.waiting.push_back(&call);
    match(*me.meeting);
  }
  if (me.turn != &calls) return false;  // another stream's calls are not done yet
  const auto done = [&] { return me.waiting.empty(); };
  for (const Rank* peer : me.meeting->ranks)
    if (peer != nullptr && peer != &me && !done()) go_on(peer->device, peer->stream, done);
  if (!done()) return false;
  me.turn = nullptr;
  return true;
}

// --- issuing -------------------------------------------------------------------------------------
ncclResult_t submit(ncclComm_t comm, cudaStream_t stream, Calls calls) {
  const auto lock = lock_devices();
  Rank& rank = *comm->rank;
  if (rank.aborted || rank.finalizing || rank.meeting->joined < rank.meeting->ranks.size())
    return ncclInvalidUsage;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  static_cast<void>(cudaStreamIsCapturing(stream, &capture));
  const bool captured = capture == cudaStreamCaptureStatusActive;
  if (!captured) rank.stream = stream;
  for (NcclCall& call : calls) call.captured = captured;
  log.calls += static_cast<int64_t>(calls.size());
  const cudaError_t error = enqueue_waiting(
      stream,
      [me = comm->rank, held = captured ? rank.captured : rank.queued,
       calls = std::make_shared<const Calls>(std::move(calls))] { return take_turn(*me, *calls); });
  return error == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

bool lies_on(const void* p, int device) {
  cudaPointerAttributes found{};
  static_cast<void>(cudaPointerGetAttributes(&found, p));
  return found.type == cudaMemoryTypeDevice && found.device == device;
}

ncclResult_t issue(ncclComm_t comm, cudaStream_t stream, const NcclCall& call) {
  if (comm == nullptr || stream == nullptr) return ncclInvalidArgument;
  const Rank& rank = *comm->rank;
  const int size = static_cast<int>(rank.meeting->ranks.size());
  const bool reads = call.kind != NcclKind::recv, writes = call.kind != NcclKind::send;
  if (call.peer < 0 || call.peer >= size || device_of(stream) != rank.device)
    return ncclInvalidArgument;
  if (call.count > 0 &&
      ((reads && !lies_on(call.from, rank.device)) || (writes && !lies_on(call.to, rank.device))))
    return ncclInvalidArgument;
  // Both ends of a message to oneself must be asked for together.
  if (!is_collective(call) && call.peer == rank.rank && group.depth == 0) return ncclInvalidUsage;
  if (group.depth == 0) return submit(comm, stream, {call});
  if (group.comm != nullptr && (group.comm != comm || group.stream != stream))
    return ncclInvalidUsage;
  group.comm = comm;
  group.stream = stream;
  group.calls.push_back(call);
  return ncclSuccess;
}

ncclResult_t group_start() {
  ++group.depth;
  return ncclSuccess;
}
ncclResult_t group_end() {
  if (group.depth == 0) return ncclInvalidUsage;
  if (--group.depth > 0) return ncclSuccess;
  const Group whole = std::exchange(group, Group{});
  return whole.calls.empty() ? ncclSuccess : submit(whole.comm, whole.stream, whole.calls);
}

// --- communicators -------------------------------------------------------------------------------
ncclResult_t unique_id(ncclUniqueId* id) {
  std::memset(id->internal, 7, sizeof id->internal);
  const int number = ++ids;
  std::memcpy(id->internal, &number, sizeof number);
  return ncclSuccess;
}

ncclResult_t init(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (size < 1 || rank < 0 || rank >= size || config->blocking != 0) return ncclInvalidArgument;
  const auto lock = lock_devices();
  std::weak_ptr<Meeting>& known = meetings[std::string(id.internal, sizeof id.internal)];
  std::shared_ptr<Meeting> meeting = known.lock();
  if (meeting == nullptr) {
    meeting = std::make_shared<Meeting>();
    meeting->ranks.resize(static_cast<size_t>(size));
    known = meeting;
  }
  int device = 0;
  static_cast<void>(cudaGetDevice(&device));
  Rank*& place = meeting->ranks.at(static_cast<size_t>(rank));
  for (const Rank* other : meeting->ranks)
    if (place != nullptr || (other != nullptr && other->device == device)) return ncclInvalidUsage;
  *comm = new ncclComm{std::make_shared<Rank>()};
  place = (*comm)->rank.get();
  place->meeting = meeting;
  place->rank = rank;
  place->device = device;
  ++meeting->joined;
  ++log.live;
  return ncclInProgress;
}

ncclResult_t async_error(ncclComm_t comm, ncclResult_t* now) {
  const auto lock = lock_devices();
  Rank& rank = *comm->rank;
  *now = state;
  if (rank.meeting->joined < rank.meeting->ranks.size()) *now = ncclInProgress;
  if (!rank.finalizing) return ncclSuccess;
  // It ends when what was queued is done and the graphs with its calls are gone.
  const auto done = [&] { return rank.queued.use_count() == 1; };
  go_on(rank.device, rank.stream, done);
  if (!done() || rank.captured.use_count() > 1) *now = ncclInProgress;
  return ncclSuccess;
}
ncclResult_t finalize(ncclComm_t comm) {
  const auto lock = lock_devices();
  comm->rank->finalizing = true;
  return ncclInProgress;
}

void leave(ncclComm_t comm) {
  Rank& rank = *comm->rank;
  rank.meeting->ranks[static_cast<size_t>(rank.rank)] = nullptr;
  delete comm;
  --log.live;
}
ncclResult_t destroy(ncclComm_t comm) {
  const auto lock = lock_devices();
  if (comm->rank->waiting.empty() && comm->rank->captured.use_count() == 1) {
    leave(comm);
    return ncclSuccess;
  }
  return ncclInvalidUsage;
}
// Ends what waits on the device, and returns when the graphs with its calls are gone.
ncclResult_t comm_abort(ncclComm_t comm) {
  auto lock = lock_devices();
  Rank& rank = *comm->rank;
  rank.aborted = true;
  rank.turn = nullptr;
  rank.waiting.clear();
  ++log.aborted;
  devices_changed();
  while (rank.captured.use_count() > 1) {
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    lock.lock();
  }
  leave(comm);
  return ncclSuccess;
}

constexpr int kNobody = 0;

}  // namespace

NcclLog& nccl_log() { return log; }
void set_nccl_state(ncclResult_t now) { state = now; }
void reset_nccl() {
  state = ncclSuccess;
  log.calls = log.ran = log.live = log.aborted = 0;
}

const dist::cuda::NcclApi& fake_nccl() {
  using Kind = NcclKind;
  static const dist::cuda::NcclApi api = {
      .error_string = [](ncclResult_t r) { return r == ncclSuccess ? "no error" : "an error"; },
      .last_error = [](ncclComm_t) { return "as the test wanted"; },
      .unique_id = unique_id,
      .init = init,
      .async_error = async_error,
      .finalize = finalize,
      .destroy = destroy,
      .comm_abort = comm_abort,
      .all_reduce =
          [](const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t op,
             ncclComm_t comm, cudaStream_t s) {
            return issue(comm, s, {Kind::all_reduce, from, to, n, type, op, kNobody});
          },
      .reduce =
          [](const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t op, int root,
             ncclComm_t comm, cudaStream_t s) {
            return issue(comm, s, {Kind::reduce, from, to, n, type, op, root});
          },
      .reduce_scatter =
          [](const void* from, void* to, size_t n, ncclDataType_t type, ncclRedOp_t op,
             ncclComm_t comm, cudaStream_t s) {
            return issue(comm, s, {Kind::reduce_scatter, from, to, n, type, op, kNobody});
          },
      .all_gather =
          [](const void* from, void* to, size_t n, ncclDataType_t type, ncclComm_t comm,
             cudaStream_t s) {
            return issue(comm, s, {Kind::all_gather, from, to, n, type, ncclSum, kNobody});
          },
      .broadcast =
          [](const void* from, void* to, size_t n, ncclDataType_t type, int root, ncclComm_t comm,
             cudaStream_t s) {
            return issue(comm, s, {Kind::broadcast, from, to, n, type, ncclSum, root});
          },
      .send =
          [](const void* from, size_t n, ncclDataType_t type, int peer, ncclComm_t comm,
             cudaStream_t s) {
            return issue(comm, s, {Kind::send, from, nullptr, n, type, ncclSum, peer});
          },
      .recv =
          [](void* to, size_t n, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t s) {
            return issue(comm, s, {Kind::recv, nullptr, to, n, type, ncclSum, peer});
          },
      .group_start = group_start,
      .group_end = group_end,
  };
  return api;
}

}  // namespace cairn::emulator
