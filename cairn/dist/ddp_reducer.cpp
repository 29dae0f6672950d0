// A backward that synchronises: buckets are launched in fixed order as they become whole.
#include "cairn/dist/ddp_reducer.h"

#include <algorithm>
#include <limits>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/tensor/raw.h"

namespace cairn::dist {

void DistributedDataParallel::Reducer::hook_leaves() {
  for (size_t i = 0; i < plan.leaves.size(); ++i)
    on_leaf_ready(plan.leaves[i].parameter, [weak = weak_from_this(), i] {
      if (const auto self = weak.lock()) self->leaf_ready(i);
    });
}

void DistributedDataParallel::Reducer::leaf_ready(size_t leaf) {
  if (!sync) return;
  if (!running_) begin();
  ready_[leaf] = 1;
  if (--buckets_[plan.leaves[leaf].bucket].missing == 0 && !at_end_) launch_whole();
}

void DistributedDataParallel::Reducer::begin() {
  after_backward([self = shared_from_this()](bool finished) {
    if (!finished) return self->end(false);
    try {
      self->finish();
    } catch (...) {
      self->end(false);
      throw;
    }
    self->end(true);
  });
  running_ = true;
  next_ = 0;
  ready_.assign(plan.leaves.size(), 0);
  zeros_known_.assign(plan.leaves.size(), 0);
  unused_.clear();
  for (size_t b = 0; b < buckets_.size(); ++b) buckets_[b].missing = plan.buckets[b].leaves.size();
  if (joining_) announce(true);
}

void DistributedDataParallel::Reducer::launch_whole() {
  for (; next_ < buckets_.size() && buckets_[next_].missing == 0; ++next_) launch(next_);
}

// What is known of the zeros of a bucket's gradients, and that these lie where they lay.
void DistributedDataParallel::Reducer::collect_zeros(size_t bucket) {
  Running& b = buckets_[bucket];
  b.zeros.clear();
  // Leaves are listed from the last in memory to the first.
  const std::vector<size_t>& leaves = plan.buckets[bucket].leaves;
  for (auto at = leaves.rbegin(); at != leaves.rend(); ++at) {
    const Leaf& leaf = plan.leaves[*at];
    const Tensor& memory = autograd_meta(leaf.parameter)->grad;
    check(memory.defined() && memory.raw_data() == leaf.gradient_view.raw_data(),
          "ddp: gradients must stay where they were when ddp was made, got those of ", leaf.name,
          " elsewhere; make ddp after moving the module and making the optimizer");
    // Those of a GPU repeat for every filter; its groups reduce all that there is.
    const kernels::ZeroPattern& zeros = grad_zeros(leaf.parameter);
    const bool known = !zeros.empty() && zeros.period == 0;
    zeros_known_[*at] = known ? 1 : 0;
    if (!known) continue;
    for (const kernels::ZeroRange& range : zeros.ranges)
      kernels::append_range(b.zeros, {leaf.offset + range.begin, leaf.offset + range.end});
  }
}

void DistributedDataParallel::Reducer::launch(size_t bucket) {
  Running& b = buckets_[bucket];
  collect_zeros(bucket);
  ReduceOptions how;
  how.zeros = &b.zeros;
  how.async_op = concurrent_;
  if (b.compressed.defined()) raw::copy_(b.compressed, b.memory);
  const Tensor& travels = b.compressed.defined() ? b.compressed : b.memory;
  timed([&] { b.work = group->all_reduce(travels, ReduceOp::avg, how); });
}

void DistributedDataParallel::Reducer::finish() {
  find_unused();
  for (; next_ < buckets_.size(); ++next_) launch(next_);
  if (needs_control()) exchange_control(true);
  for (size_t b = 0; b < buckets_.size(); ++b) settle(b);
  for (const ParameterArena& arena : arenas_) arena.grads().bump_version("ddp");

  // Trusted from now on: zeros that all ranks have. The others may hold other ranks' gradients.
  const int64_t* control = control_.data<int64_t>();
  const bool agreed = needs_control() && control[0] == -control[1];
  for (size_t i = 0; i < plan.leaves.size(); ++i)
    if (agreed && zeros_known_[i] != 0) keep_grad_zeros(plan.leaves[i].parameter);
  for (const size_t i : unused_)
    if (control[2 + i] != 0) declare_grad(plan.leaves[i].parameter);
  ++steps;
  if (joining_) ++joining_->steps;
  if (options.broadcast_buffers && buffer_block_.defined())
    broadcast_buffers(joining_ ? joining_->at_work[0] : 0);
}

// Leaves that no backward since zero_grad reached.
void DistributedDataParallel::Reducer::find_unused() {
  for (size_t i = 0; i < plan.leaves.size(); ++i)
    if (ready_[i] == 0 && !has_grad(plan.leaves[i].parameter)) unused_.push_back(i);
  if (unused_.empty()) return;
  std::string names;
  for (auto at = unused_.rbegin(); at != unused_.rend(); ++at)
    names += cat(names.empty() ? "" : ", ", plan.leaves[*at].name);
  check(options.find_unused_parameters,
        "ddp: all parameters must take part in a backward that synchronises, got no gradient for ",
        names, "; find_unused_parameters allows it");
  for (const size_t i : unused_) raw::fill_(plan.leaves[i].gradient_view, 0);
}

bool DistributedDataParallel::Reducer::needs_control() const {
  // Only kernels of the CPU leave zeros out; on a GPU, reading numbers means to wait.
  return options.find_unused_parameters || group->device().type == DeviceType::cpu;
}

// Largest over all ranks of: the hash of the zeros and its negative, so that both tell whether all
// ranks have the same; and which leaves have a gradient.
void DistributedDataParallel::Reducer::exchange_control(bool at_work) {
  int64_t* control = control_.data<int64_t>();
  std::fill(control, control + control_.numel(), std::numeric_limits<int64_t>::min());
  if (at_work) {
    uint64_t hash = 0;
    for (const Running& b : buckets_)
      hash = (hash + 1) * 0x9e3779b97f4a7c15u ^ kernels::hash_of(b.zeros);
    control[0] = static_cast<int64_t>(hash >> 1);  // so that it can be negated
    control[1] = -control[0];
    for (int64_t i = 2; i < control_.numel(); ++i) control[i] = 1;
    for (const size_t i : unused_) control[2 + i] = 0;
  }
  timed([&] {
    if (group->device().type == DeviceType::cpu) {
      group->all_reduce(control_, ReduceOp::max);
    } else {
      const Tensor there = raw::to(control_, DType::i64, group->device());
      group->all_reduce(there, ReduceOp::max);
      raw::copy_(control_, there);
    }
  });
}

// The bucket's gradients are the means, as soon as its work is done.
void DistributedDataParallel::Reducer::settle(size_t bucket) {
  Running& b = buckets_[bucket];
  timed([&] { b.work.wait(); });
  b.work = {};
  if (b.compressed.defined()) raw::copy_(b.memory, b.compressed);
  if (!joining_ || joining_->options.divide_by_initial_world_size) return;
  const auto at_work = static_cast<int>(joining_->at_work.size());
  if (at_work == group->size()) return;
  const double factor = static_cast<double>(group->size()) / at_work;
  mul_(b.memory, factor);
}

void DistributedDataParallel::Reducer::end(bool finished) noexcept {
  running_ = false;
  if (finished) return;
  for (Running& b : buckets_) b.work = {};  // what is under way goes on
}

}  // namespace cairn::dist
