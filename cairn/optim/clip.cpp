// Gradient clipping over stretches of the gradients' memory.
// Invariant: stretches follow the parameters' order and join where gradients are neighbours in an
// arena, so a given layout always sums in the same order.
#include "cairn/optim/clip.h"

#include <cmath>
#include <vector>

#include "cairn/autograd/arena.h"
#include "cairn/autograd/engine.h"
#include "cairn/kernels/optim.h"
#include "cairn/tensor/raw.h"

namespace cairn::optim {
namespace {

// All gradients as stretches of one dtype each.
struct Gradients {
  struct Part {
    DType dtype;
    std::vector<kernels::GradRun> runs;
    std::vector<kernels::GradRun> live;  // without the stretches known to be zeros
  };
  std::vector<Part> parts;
  // Gradients that are not dense, and the copies that the kernels work on.
  std::vector<std::pair<Tensor, Tensor>> copies;
  std::vector<Tensor> tensors;
  std::vector<Tensor> parameters;  // the tensors' owners
  Device device;
  bool has_zeros = false;

  Gradients(const char* op, std::span<const Tensor> all);
  void add(const Tensor& grad, const kernels::ZeroPattern& zeros);
  // After the kernels changed the gradients.
  void finish(const char* op, bool zeros_stay = true) const {
    for (const auto& [grad, copy] : copies) raw::copy_(grad, copy);
    std::vector<char> known;
    for (const Tensor& p : parameters) known.push_back(!grad_zeros(p).empty());
    for (const Tensor& grad : tensors) grad.bump_version(op);
    for (size_t i = 0; i < known.size(); ++i)
      if (known[i] && zeros_stay) keep_grad_zeros(parameters[i]);
  }
};

Gradients::Gradients(const char* op, std::span<const Tensor> all) {
  for (const Tensor& p : all) {
    const AutogradMeta* meta = autograd_meta(p);
    if (meta == nullptr || !meta->has_grad || meta->grad.numel() == 0) continue;
    const Tensor g = meta->grad;
    if (tensors.empty()) device = g.device();
    check(g.device() == device, op, ": gradients must lie on one device, got ", device, " and ",
          g.device());
    tensors.push_back(g);
    parameters.push_back(p);
    add(g, grad_zeros(p));
    has_zeros |= !grad_zeros(p).empty();
  }
}

void Gradients::add(const Tensor& grad, const kernels::ZeroPattern& zeros) {
  Tensor dense = grad;
  if (!grad.is_dense()) {
    dense = raw::clone(grad);
    copies.emplace_back(grad, dense);
  }
  const int64_t size = item_size(dense.dtype());
  if (parts.empty() || parts.back().dtype != dense.dtype())
    parts.push_back({dense.dtype(), {}, {}});
  kernels::for_each_rest(zeros, dense.numel(), [&](const kernels::Rest& rest) {
    kernels::GradRun run{static_cast<std::byte*>(dense.raw_data()) + rest.begin * size,
                         rest.length * rest.count};
    if (rest.count > 1) {
      run.piece = rest.length;
      run.step = rest.step;
    }
    parts.back().live.push_back(run);
  });
  std::vector<kernels::GradRun>& runs = parts.back().runs;
  // Neighbours in an arena: the same block, at most an alignment gap (of zeros) apart.
  if (!runs.empty() && tensors.size() > 1 &&
      tensors[tensors.size() - 2].storage() == dense.storage() &&
      dense.offset() * size % kArenaAlignment == 0) {
    const auto* end = static_cast<std::byte*>(runs.back().data) + runs.back().numel * size;
    const auto gap = static_cast<std::byte*>(dense.raw_data()) - end;
    if (gap >= 0 && gap < kArenaAlignment) {
      runs.back().numel += gap / size + dense.numel();
      return;
    }
  }
  runs.push_back({.data = dense.raw_data(), .numel = dense.numel()});
}

Tensor total_norm(const Gradients& gradients, double p) {
  int64_t blocks = 0;
  for (const auto& part : gradients.parts) blocks += kernels::norm_blocks(part.runs);
  const TensorOptions f64{DType::f64, gradients.device};
  const Tensor partial = empty({blocks}, f64);
  int64_t start = 0;
  for (const auto& part : gradients.parts) {
    const int64_t count = kernels::norm_blocks(part.runs);
    kernels::norm_partial(gradients.device, raw::slice(partial, 0, start, start + count),
                          part.dtype, part.runs, p);
    start += count;
  }
  const Tensor total = empty({}, f64);
  kernels::norm_total(gradients.device, total, partial, p);
  return total;
}

void check_norm_type(const char* op, double norm_type) {
  check(norm_type > 0, op, ": norm_type must be positive, got ", norm_type);
}

}  // namespace

Tensor clip_grad_norm_(std::span<const Tensor> parameters, double max_norm, double norm_type,
                       bool error_if_nonfinite) {
  const char* op = "clip_grad_norm_";
  check(max_norm >= 0, op, ": max_norm must not be negative, got ", max_norm);
  check_norm_type(op, norm_type);
  const Gradients gradients(op, parameters);
  const Tensor total = total_norm(gradients, norm_type);
  if (error_if_nonfinite) {
    const double value = total.item();
    check(std::isfinite(value), op, ": total norm must be finite, got ", value);
  }
  // A norm of NaN spreads to every gradient; otherwise zeros stay zeros. Asking another device
  // for the norm would wait for it: there, all of the memory is scaled.
  const bool asks = gradients.has_zeros && gradients.device == kCPU;
  const bool spreads = gradients.has_zeros && (!asks || std::isnan(total.item()));
  for (const auto& part : gradients.parts)
    kernels::clip_by_norm(gradients.device, part.dtype, spreads ? part.runs : part.live, total,
                          max_norm);
  gradients.finish(op, !spreads);
  return total;
}

Tensor grad_norm(std::span<const Tensor> parameters, double norm_type) {
  check_norm_type("grad_norm", norm_type);
  return total_norm(Gradients("grad_norm", parameters), norm_type);
}

void clip_grad_value_(std::span<const Tensor> parameters, double clip_value) {
  const char* op = "clip_grad_value_";
  check(clip_value >= 0, op, ": clip_value must not be negative, got ", clip_value);
  const Gradients gradients(op, parameters);
  for (const auto& part : gradients.parts)
    kernels::clip_by_value(gradients.device, part.dtype, part.live, clip_value);
  gradients.finish(op);
}

void unscale_grad_(std::span<const Tensor> parameters, const Tensor& scale,
                   const Tensor& found_inf) {
  const Gradients gradients("unscale_grad_", parameters);
  for (const auto& part : gradients.parts)
    kernels::unscale(gradients.device, part.dtype, part.live, scale, found_inf);
  gradients.finish("unscale_grad_");
}

}  // namespace cairn::optim
