// Reducer: what stands behind DistributedDataParallel's hooks.
// Invariant: every backward that synchronises asks the group for the same calls in the same order
// on all ranks: (joining: who is at work), the buckets, the control numbers, the buffers.
#pragma once

#include <chrono>

#include "cairn/dist/ddp_layout.h"

namespace cairn::dist {

class DistributedDataParallel::Reducer : public std::enable_shared_from_this<Reducer> {
 public:
  Reducer(const NamedTensors& parameters, const NamedTensors& buffers,
          std::shared_ptr<ProcessGroup> process_group, const DdpOptions& ddp_options);
  void hook_leaves();
  void join(const std::function<void()>& body, const JoinOptions& options);
  void broadcast_buffers(int root);

  const DdpOptions options;
  const std::shared_ptr<ProcessGroup> group;
  BucketPlan plan;
  bool sync = true;
  int64_t steps = 0;
  double seconds_waited = 0;

 private:
  // A bucket in the running backward.
  struct Running {
    Tensor memory;      // own_view of the gradients
    Tensor compressed;  // bf16; undefined without compression
    kernels::ZeroRanges zeros;
    size_t missing = 0;
    Work work;
  };
  struct Joining {
    JoinOptions options;
    std::vector<int> at_work;  // in the latest step, of all ranks
    int64_t steps = 0;         // of this rank
  };

  void move_memory();
  void broadcast_parameters(int root);

  // ddp_reducer.cpp: a backward
  void leaf_ready(size_t leaf);
  void begin();
  void launch_whole();
  void launch(size_t bucket);
  void collect_zeros(size_t bucket);
  void finish();
  void find_unused();
  void exchange_control(bool at_work);
  void settle(size_t bucket);
  void end(bool finished) noexcept;
  bool needs_control() const;

  // ddp_join.cpp
  std::vector<int> announce(bool at_work);
  void shadow_step();
  void check_early_end(const std::vector<int>& at_work, const int64_t* done) const;

  template <class Fn>
  void timed(Fn&& fn) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    seconds_waited +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  std::vector<ParameterArena> arenas_;
  NamedTensors frozen_;  // parameters outside of the arenas
  NamedTensors buffers_;
  Tensor buffer_block_;  // see flatten_buffers
  Tensor control_;  // i64: hash of zeros, the same negated, one for each leaf that has a gradient
  bool concurrent_ = false, at_end_ = false;

  // of the running backward
  bool running_ = false;
  size_t next_ = 0;  // bucket to be launched
  std::vector<Running> buckets_;
  std::vector<uint8_t> ready_;        // by leaf
  std::vector<uint8_t> zeros_known_;  // by leaf
  std::vector<size_t> unused_;        // leaves without a gradient on this rank

  std::unique_ptr<Joining> joining_;
};

}  // namespace cairn::dist
