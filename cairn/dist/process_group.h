// ProcessGroup: the collectives of a set of processes (or of threads that play them).
// Invariant: every rank asks for the same calls in the same order; the results depend on the
// tensors, the group's size and its backend alone, not on timing, and all ranks hold the same bits.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cairn/dist/call.h"
#include "cairn/dist/flight_recorder.h"
#include "cairn/dist/owner.h"
#include "cairn/dist/store.h"
#include "cairn/dist/work.h"

namespace cairn::dist {

// A wait that lasted too long. what() is one sentence, then the flight recorder's table.
class TimeoutError : public CommError {
 public:
  using CommError::CommError;
};

// How a group is made. The same on all ranks but for `rank`.
struct GroupOptions {
  int rank = 0;
  int size = 1;
  // Where the ranks meet; may be null for a group of one. Keys of the group begin with its name.
  std::shared_ptr<Store> store = nullptr;
  std::string name = "world";
  // Of making the group and of each of its calls.
  Milliseconds timeout = kDefaultTimeout;
  // This process's address as others of the run reach it. Numeric.
  std::string address = "127.0.0.1";
  // Every connection of the run proves that it knows this.
  std::string secret = {};
  // What errors call the ranks, where that is not their numbers here: of a group that is only a
  // part of what its user sees.
  std::vector<int> rank_names = {};

  int name_of(int r) const {
    return rank_names.empty() ? r : rank_names.at(static_cast<size_t>(r));
  }
  // Its root and peer by their names.
  std::string describe(const Call& call) const;
};

struct CallOptions {
  // Returns at once; the tensors must not be touched before Work::wait(). Else the call is done (on
  // a GPU: issued to the stream) when it returns.
  bool async_op = false;
  // From when it is asked for, its turn behind other calls included. Absent: the group's.
  std::optional<Milliseconds> timeout = {};
};

struct ReduceOptions : CallOptions {
  // Of all_reduce with sum or avg, floating dtypes: stretches of the tensor, which must be
  // contiguous, that hold zeros on this rank. See Call::zeros.
  const kernels::ZeroRanges* zeros = nullptr;
};

// Tensors: f32, f64, bf16, f16, i32, i64, u8 of any strides, on the backend's kind of device;
// others are an Error. All ranks give equal shapes and dtypes, and equal reductions and roots;
// where they do not, all of them get a CommError that lists what each one gave. avg is for floating
// dtypes. 16-bit floats are summed in f32 and rounded once; integers wrap around.
//
// After a failure (time-out, dead peer, mismatch) a group is broken, and every further call throws
// what broke it.
//
// A group belongs to the process that made it. In a child that this forks every call is an Error,
// and whoever lets go of the group there lets go of nothing.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int rank() const { return options_.rank; }
  int size() const { return options_.size; }
  const std::string& name() const { return options_.name; }
  Milliseconds timeout() const { return options_.timeout; }
  const GroupOptions& options() const { return options_; }
  // "local", "ring", "shm", "auto", "nccl".
  virtual std::string_view backend() const = 0;
  // Where its tensors lie.
  virtual Device device() const { return kCPU; }
  // Whether its calls can be captured (see capture.h).
  virtual bool captures() const { return false; }

  // t = the reduction over all ranks.
  Work all_reduce(const Tensor& t, ReduceOp op = ReduceOp::sum, const ReduceOptions& options = {});
  // As all_reduce, but only root's tensor is changed.
  Work reduce(const Tensor& t, int root, ReduceOp op = ReduceOp::sum,
              const CallOptions& options = {});
  // input [size, ...output's shape] (or with the first two joined); output = the reduction of all
  // ranks' part number rank().
  Work reduce_scatter(const Tensor& output, const Tensor& input, ReduceOp op = ReduceOp::sum,
                      const CallOptions& options = {});
  // output [size, ...input's shape] (or with the first two joined) = the inputs in order of rank.
  Work all_gather(const Tensor& output, const Tensor& input, const CallOptions& options = {});
  Work broadcast(const Tensor& t, int root, const CallOptions& options = {});
  // output = part number rank() of root's input [size, ...output's shape]; input is undefined on
  // other ranks.
  Work scatter(const Tensor& output, const Tensor& input, int root,
               const CallOptions& options = {});
  // The reverse: output is undefined on other ranks than root.
  Work gather(const Tensor& output, const Tensor& input, int root, const CallOptions& options = {});
  // [size, ...]: part j of rank i's input becomes part i of rank j's output.
  Work all_to_all(const Tensor& output, const Tensor& input, const CallOptions& options = {});
  // One rank sends what another receives. Their numbers count apart from the others', by pair and
  // direction. A group does one call at a time, and a send may last until its receiver is there: of
  // two ranks that exchange, one must receive first, asynchronous or not.
  Work send(const Tensor& t, int to, const CallOptions& options = {});
  Work recv(const Tensor& t, int from, const CallOptions& options = {});
  Work barrier(const CallOptions& options = {});

  // Runs `launch`, which queues a captured graph with calls of this group on the current stream, so
  // that a peer which never comes breaks the group here too, `timeout` after the graph began.
  // `what` names it in the error.
  virtual void watch(const std::string& what, Milliseconds timeout,
                     const std::function<void()>& launch);
  // For a rank that failed and waits for nobody any more: what waits on the device ends, and
  // further calls throw CommError with `why`, here and soon on the others, of which those that wait
  // hear it at once. Does not wait for calls that run; on the CPU they still come to their ends.
  // A group of one on the CPU has nobody to tell, and stays whole.
  virtual void abort(const std::string& why) noexcept = 0;

  // A tensor [numel] of zeros in memory that the other ranks of this host can reach, so that an
  // all_reduce of it, or of a part, copies nothing; plain memory where the backend has no such. All
  // ranks call it in the same order with the same arguments.
  virtual Tensor shared_tensor(int64_t numel, DType dtype);

  // A group of some of these ranks, in this order, with a backend of the same kind. All ranks of
  // this group call it, with the same list; those that are not in the list get null. `name` must be
  // new within this group.
  virtual std::shared_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks,
                                                 const std::string& name) = 0;

  // The last collectives.
  std::string flight_record() const { return recorder_.table(); }
  // Collectives asked for so far (send and recv not counted).
  uint64_t sequence() const { return next_.load(); }

 protected:
  explicit ProcessGroup(GroupOptions options);

  // Of the subgroup of these ranks: its own rank, size and name below this group's; nothing where
  // this rank is not among them. Error for ranks that are none or doubled.
  std::optional<GroupOptions> sub_options(const std::vector<int>& ranks,
                                          const std::string& name) const;

  // Gives the call its place in the order and returns at once; where it is not asynchronous, wait()
  // is called next, on the same thread. Its tensors are ready, see Call; the deadline is set.
  virtual Work submit(Call call, bool async_op) = 0;

  // Error `process group 'world': it belongs to process 7, got a call in its child 8; …` there.
  void check_process() const { owner_.check_here("a group", "process group '", name(), "'"); }

  bool in_its_process() const { return owner_.here(); }
  // To be called when the group breaks.
  void note_failure() noexcept {
    if (options_.store != nullptr) options_.store->note_failure();
  }

  FlightRecorder recorder_;

 private:
  Call make(CallKind kind, const Tensor& like, const CallOptions& options) const;
  Work number_and_submit(Call call, const CallOptions& options);

  const Owner owner_;
  GroupOptions options_;
  std::mutex order_;  // numbers and queues as one
  std::atomic<uint64_t> next_ = 0;
  std::vector<uint64_t> sent_, received_;  // by peer
};

}  // namespace cairn::dist
