// DistributedDataParallel: making it, and what it is asked.
#include "cairn/dist/ddp.h"

#include <cmath>

#include "cairn/autograd/engine.h"
#include "cairn/dist/ddp_reducer.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"

namespace cairn::dist {
namespace {

void append_lines(std::vector<std::string>& lines, const char* kind, const NamedTensors& tensors) {
  for (const auto& [name, tensor] : tensors) {
    check(tensor.defined(), "ddp: ", kind, " ", name, " must be defined, got an undefined tensor");
    lines.push_back(cat(kind, " ", name, " ", tensor.dtype(), " ", tensor.shape(),
                        kind[0] == 'p' && !requires_grad(tensor) ? " frozen" : ""));
  }
}

std::vector<std::string> option_lines(const DdpOptions& o) {
  return {cat("bucket_cap_mb ", o.bucket_cap_mb), cat("first_bucket_mb ", o.first_bucket_mb),
          cat("broadcast_buffers ", o.broadcast_buffers),
          cat("find_unused_parameters ", o.find_unused_parameters),
          cat("gradient_compression ",
              o.gradient_compression == GradientCompression::bf16 ? "bf16" : "none")};
}

void check_options(const DdpOptions& o) {
  const auto check_size = [](const char* name, double mb) {
    check(mb > 0 && std::isfinite(mb), "ddp: ", name, " must be above 0, got ", mb);
  };
  check_size("bucket_cap_mb", o.bucket_cap_mb);
  check_size("first_bucket_mb", o.first_bucket_mb);
}

}  // namespace

DistributedDataParallel::Reducer::Reducer(const NamedTensors& parameters,
                                          const NamedTensors& buffers,
                                          std::shared_ptr<ProcessGroup> process_group,
                                          const DdpOptions& ddp_options)
    : options(ddp_options), group(std::move(process_group)), buffers_(buffers) {
  check(group != nullptr, "ddp: group must be given, got null");
  check_options(options);
  std::vector<std::string> lines = option_lines(options);
  check_equal_lines("ddp: options", lines, *group);
  lines.clear();
  append_lines(lines, "parameter", parameters);
  append_lines(lines, "buffer", buffers);
  check_equal_lines("ddp: parameters and buffers", lines, *group);

  std::vector<Tensor> trainable;
  for (const auto& [name, p] : parameters) {
    if (requires_grad(p))
      trainable.push_back(p);
    else
      frozen_.emplace_back(name, p);
  }
  check(!trainable.empty(), "ddp: at least one parameter must require a gradient, got none of ",
        parameters.size());
  arenas_ = pack_parameters(trainable);
  plan = plan_buckets(arenas_, parameters, options.first_bucket_mb, options.bucket_cap_mb);
  const Overlap overlap = options.overlap;
  const std::string_view backend = group->backend();
  // Where ranks share a host's memory, a thread beside the backward's has no core to itself.
  const bool shares = backend == "shm" || backend == "local";
  at_end_ = overlap == Overlap::at_end;
  concurrent_ = overlap == Overlap::concurrent || (overlap == Overlap::automatic && !shares);
  const auto leaves = static_cast<int64_t>(plan.leaves.size());
  control_ = zeros({2 + (options.find_unused_parameters ? leaves : 0)}, {DType::i64});
  move_memory();
  broadcast_parameters(0);
  broadcast_buffers(0);
}

// Gradients and buffers to memory that the backend may share.
void DistributedDataParallel::Reducer::move_memory() {
  for (ParameterArena& arena : arenas_)
    if (arena.is_whole())
      arena.set_grads_memory(group->shared_tensor(arena.data().numel(), arena.data().dtype()));
  for (const Bucket& b : plan.buckets) {
    Running running;
    running.memory = own_view(arenas_[b.arena].grads(), b.begin, b.end);
    if (options.gradient_compression == GradientCompression::bf16 &&
        running.memory.dtype() == DType::f32)
      running.compressed = group->shared_tensor(b.end - b.begin, DType::bf16);
    buckets_.push_back(std::move(running));
  }
  for (Leaf& leaf : plan.leaves) leaf.gradient_view = autograd_meta(leaf.parameter)->grad.alias();
  buffer_block_ = flatten_buffers(buffers_, *group);
}

void DistributedDataParallel::Reducer::broadcast_parameters(int root) {
  for (const ParameterArena& arena : arenas_)
    for (const ParameterArena::Run& run : arena.runs())
      group->broadcast(raw::slice(arena.data(), 0, run.offset, run.offset + run.numel), root);
  for (const auto& [name, p] : frozen_) group->broadcast(p, root);
}

void DistributedDataParallel::Reducer::broadcast_buffers(int root) {
  if (!buffer_block_.defined()) return;
  timed([&] { group->broadcast(buffer_block_, root); });
  for (const auto& [name, buffer] : buffers_) buffer.bump_version("broadcast_buffers");
}

DistributedDataParallel::DistributedDataParallel(const NamedTensors& parameters,
                                                 const NamedTensors& buffers,
                                                 std::shared_ptr<ProcessGroup> group,
                                                 const DdpOptions& options)
    : reducer_(std::make_shared<Reducer>(parameters, buffers, std::move(group), options)) {
  reducer_->hook_leaves();
}

DistributedDataParallel::~DistributedDataParallel() = default;

const DdpOptions& DistributedDataParallel::options() const { return reducer_->options; }
ProcessGroup& DistributedDataParallel::group() const { return *reducer_->group; }
void DistributedDataParallel::set_sync(bool sync) { reducer_->sync = sync; }

void DistributedDataParallel::join(const std::function<void()>& body, const JoinOptions& options) {
  reducer_->join(body, options);
}

void DistributedDataParallel::broadcast_buffers() { reducer_->broadcast_buffers(0); }
int64_t DistributedDataParallel::steps() const { return reducer_->steps; }
double DistributedDataParallel::seconds_waited() const { return reducer_->seconds_waited; }

std::vector<int64_t> DistributedDataParallel::bucket_sizes() const {
  std::vector<int64_t> sizes;
  for (const Bucket& b : reducer_->plan.buckets) sizes.push_back(b.end - b.begin);
  return sizes;
}

}  // namespace cairn::dist
