// Uneven inputs: ranks that are done take part in the steps of the others.
#include <algorithm>

#include "cairn/dist/ddp_reducer.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"

namespace cairn::dist {

// The ranks that make this step, known to all.
std::vector<int> DistributedDataParallel::Reducer::announce(bool at_work) {
  const int size = group->size();
  Tensor told = zeros({2, size}, {DType::i64});  // whether at work, steps made
  auto* numbers = told.data<int64_t>();
  numbers[group->rank()] = at_work ? 1 : 0;
  numbers[size + group->rank()] = joining_->steps;
  const Tensor there = raw::to(told, DType::i64, group->device());
  timed([&] { group->all_reduce(there, ReduceOp::max); });
  told = raw::to(there, DType::i64, kCPU);
  numbers = told.data<int64_t>();
  std::vector<int> ranks;
  for (int r = 0; r < size; ++r)
    if (numbers[r] != 0) ranks.push_back(r);
  if (joining_->options.throw_on_early_termination) check_early_end(ranks, numbers + size);
  if (!ranks.empty()) joining_->at_work = ranks;
  return ranks;
}

void DistributedDataParallel::Reducer::check_early_end(const std::vector<int>& at_work,
                                                       const int64_t* done) const {
  if (at_work.empty() || static_cast<int>(at_work.size()) == group->size()) return;
  for (int r = 0; r < group->size(); ++r)
    check(std::find(at_work.begin(), at_work.end(), r) != at_work.end(),
          "join: all ranks must make the same number of steps, but rank ", r, " finished after ",
          done[r], " steps and rank ", at_work[0], " makes one more");
}

// The calls of finish(), with gradients of 0.
void DistributedDataParallel::Reducer::shadow_step() {
  for (size_t b = 0; b < buckets_.size(); ++b) {
    Running& bucket = buckets_[b];
    const Tensor& travels = bucket.compressed.defined() ? bucket.compressed : bucket.memory;
    raw::fill_(travels, 0);
    bucket.zeros = {{0, travels.numel()}};
    ReduceOptions how;
    how.zeros = &bucket.zeros;
    how.async_op = concurrent_;
    bucket.work = group->all_reduce(travels, ReduceOp::avg, how);
  }
  if (needs_control()) exchange_control(false);
  for (Running& bucket : buckets_) {
    bucket.work.wait();
    bucket.work = {};
  }
  for (const ParameterArena& arena : arenas_) arena.grads().bump_version("ddp");
  if (options.broadcast_buffers && buffer_block_.defined()) broadcast_buffers(joining_->at_work[0]);
}

void DistributedDataParallel::Reducer::join(const std::function<void()>& body,
                                            const JoinOptions& join_options) {
  check(joining_ == nullptr, "join: must not be called inside a join");
  joining_ = std::make_unique<Joining>();
  joining_->options = join_options;
  struct Reset {
    std::unique_ptr<Joining>& joining;
    ~Reset() { joining.reset(); }
  } reset{joining_};
  body();
  while (!announce(false).empty()) shadow_step();
  // Ranks that were done early have not made the last steps.
  const std::vector<int>& last = joining_->at_work;
  if (last.empty() || static_cast<int>(last.size()) == group->size()) return;
  broadcast_parameters(last[0]);
  broadcast_buffers(last[0]);
}

}  // namespace cairn::dist
