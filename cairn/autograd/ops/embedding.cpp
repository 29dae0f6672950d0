// Embedding and dropout: argument checks and backward rules.
#include "cairn/autograd/ops/embedding.h"

#include "cairn/autograd/record.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/embedding.h"
#include "cairn/tensor/raw.h"

namespace cairn {

Tensor embedding(const Tensor& weight, const Tensor& indices, std::optional<int64_t> padding_idx) {
  const char* op = "embedding";
  check(weight.defined() && indices.defined(), op, ": weight and indices must be defined");
  check(weight.dim() == 2, op, ": weight must be 2-d [V, D], got ", weight.shape());
  check(is_floating(weight.dtype()), op, ": weight must be floating, got ", weight.dtype());
  check(indices.dtype() == DType::i64 || indices.dtype() == DType::i32, op,
        ": indices must be i64 or i32, got ", indices.dtype());
  check(indices.device() == weight.device(), op, ": indices must be on ", weight.device(), ", got ",
        indices.device());
  const int64_t rows = weight.size(0), width = weight.size(1);
  int64_t skip = -1;
  if (padding_idx) {
    skip = *padding_idx < 0 ? *padding_idx + rows : *padding_idx;
    check(skip >= 0 && skip < rows, op, ": padding_idx must be in [", -rows, ", ", rows, "), got ",
          *padding_idx);
  }
  const Tensor index = raw::contiguous(raw::to(indices, DType::i64));
  Shape shape = indices.shape();
  shape.push_back(width);
  const Tensor y = empty(shape, {weight.dtype(), weight.device()});
  kernels::embedding_fwd(weight.device(), raw::view(y, {index.numel(), width}), weight, index);
  return record(op, y, {weight}, [index = Saved(index), rows, width, skip](Grads& g) {
    const Tensor& at = index.get("embedding");
    const Tensor dy = raw::view(raw::contiguous(g.out()), {at.numel(), width});
    if (!is_half(dy.dtype())) {
      kernels::embedding_bwd(dy.device(), g.dst_cleared(0).tensor, dy, at, skip);
      return;
    }
    // Many halves added one by one would lose the small ones: sum in f32.
    const Tensor sum = zeros({rows, width}, {DType::f32, dy.device()});
    kernels::embedding_bwd(dy.device(), sum, raw::to(dy, DType::f32), at, skip);
    kernels::accumulate_to(dy.device(), g.dst(0), sum);
  });
}

Tensor dropout(const Tensor& x, double p, bool training, Generator& generator) {
  check(x.defined(), "dropout: input must be defined");
  check(is_floating(x.dtype()), "dropout: input must be floating, got ", x.dtype());
  check(p >= 0 && p <= 1, "dropout: p must be in [0, 1], got ", p);
  if (!training || p == 0) return x;
  const kernels::DropoutParams params{generator.seed(), generator.reserve(x.numel()), p,
                                      p == 1 ? 0.0 : 1 / (1 - p)};
  const Tensor y = empty(x.shape(), {x.dtype(), x.device()});
  kernels::dropout_apply(x.device(), Dst{y, false}, raw::contiguous(x), params);
  return record("dropout", y, {x}, [params](Grads& g) {
    const Tensor dy = raw::contiguous(g.out());
    const Dst dx = g.dst(0);
    if (dx.tensor.is_contiguous()) return kernels::dropout_apply(dy.device(), dx, dy, params);
    const Tensor temporary = empty(dy.shape(), {dy.dtype(), dy.device()});
    kernels::dropout_apply(dy.device(), Dst{temporary, false}, dy, params);
    kernels::accumulate_to(dy.device(), dx, temporary);
  });
}

}  // namespace cairn
