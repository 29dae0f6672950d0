// Views with a gradient.
// Invariant: a view's gradient is a view of the gradient where the view is a bijection; where it is
// not (slice, select, expand), it is written into or summed from the viewed part.
#include "cairn/autograd/ops/elementwise_detail.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/kernels/accumulate.h"

namespace cairn {
namespace {

using detail::recording;

// `out` as it is; where it shares x's memory, that is noted for the in-place ops.
Tensor noted(const Tensor& x, const Tensor& out) {
  if (out.storage() == x.storage()) out.storage()->mark_viewed();
  return out;
}

// Records a view that holds every element of x once: the gradient is the output's, reshaped.
Tensor reshaped(const char* op, const Tensor& x, const Tensor& out) {
  noted(x, out);
  if (!recording(x)) return out;
  return record(op, out, {x},
                [shape = x.shape()](Grads& g) { g.give(0, raw::reshape(g.out(), shape)); });
}

// Records a view of part of x; part(t) makes the same view of a tensor like x.
template <class Part>
Tensor partial(const char* op, const Tensor& x, const Tensor& out, Part part) {
  noted(x, out);
  if (!recording(x)) return out;
  return record(op, out, {x}, [part](Grads& g) {
    const Dst d = g.dst_cleared(0);
    const Tensor viewed = part(d.tensor);
    kernels::accumulate_to(viewed.device(), Dst{viewed, true}, g.out());
  });
}

}  // namespace

Tensor view(const Tensor& x, const Shape& shape) {
  detail::check_defined("view", x);
  return reshaped("view", x, raw::view(x, shape));
}

Tensor reshape(const Tensor& x, const Shape& shape) {
  detail::check_defined("reshape", x);
  return reshaped("reshape", x, raw::reshape(x, shape));
}

Tensor flatten(const Tensor& x, int64_t start_dim, int64_t end_dim) {
  detail::check_defined("flatten", x);
  return reshaped("flatten", x, raw::flatten(x, start_dim, end_dim));
}

Tensor squeeze(const Tensor& x, int64_t dim) {
  detail::check_defined("squeeze", x);
  return reshaped("squeeze", x, raw::squeeze(x, dim));
}

Tensor squeeze(const Tensor& x) {
  detail::check_defined("squeeze", x);
  return reshaped("squeeze", x, raw::squeeze(x));
}

Tensor unsqueeze(const Tensor& x, int64_t dim) {
  detail::check_defined("unsqueeze", x);
  return reshaped("unsqueeze", x, raw::unsqueeze(x, dim));
}

Tensor permute(const Tensor& x, const Shape& dims) {
  detail::check_defined("permute", x);
  const Tensor out = noted(x, raw::permute(x, dims));
  if (!recording(x)) return out;
  Shape inverse(dims.size(), 0);
  for (size_t i = 0; i < dims.size(); ++i)
    inverse[static_cast<size_t>(wrap_dim(dims[i], x.dim(), "permute"))] = static_cast<int64_t>(i);
  return record("permute", out, {x},
                [inverse](Grads& g) { g.give(0, raw::permute(g.out(), inverse)); });
}

Tensor transpose(const Tensor& x, int64_t dim0, int64_t dim1) {
  detail::check_defined("transpose", x);
  const Tensor out = noted(x, raw::transpose(x, dim0, dim1));
  if (!recording(x)) return out;
  return record("transpose", out, {x},
                [dim0, dim1](Grads& g) { g.give(0, raw::transpose(g.out(), dim0, dim1)); });
}

Tensor slice(const Tensor& x, int64_t dim, int64_t start, int64_t end, int64_t step) {
  detail::check_defined("slice", x);
  return partial("slice", x, raw::slice(x, dim, start, end, step),
                 [=](const Tensor& t) { return raw::slice(t, dim, start, end, step); });
}

Tensor narrow(const Tensor& x, int64_t dim, int64_t start, int64_t length) {
  detail::check_defined("narrow", x);
  check(x.dim() > 0, "narrow: input must have a dimension, got a 0-d tensor");
  dim = wrap_dim(dim, x.dim(), "narrow");
  const int64_t size = x.size(dim);
  const int64_t first = start < 0 ? start + size : start;
  check(length >= 0 && first >= 0 && first <= size && length <= size - first,
        "narrow: start and length must lie inside dimension ", dim, " of size ", size, ", got ",
        start, " and ", length);
  return partial("narrow", x, raw::slice(x, dim, first, first + length),
                 [=](const Tensor& t) { return raw::slice(t, dim, first, first + length); });
}

Tensor select(const Tensor& x, int64_t dim, int64_t index) {
  detail::check_defined("select", x);
  return partial("select", x, raw::select(x, dim, index),
                 [=](const Tensor& t) { return raw::select(t, dim, index); });
}

Tensor expand(const Tensor& x, const Shape& shape) {
  detail::check_defined("expand", x);
  const Tensor out = noted(x, raw::expand(x, shape));
  if (!recording(x)) return out;
  return record("expand", out, {x}, [](Grads& g) { g.give(0, g.out()); });
}

Tensor contiguous(const Tensor& x) {
  detail::check_defined("contiguous", x);
  if (x.is_contiguous()) return x;
  return record("contiguous", raw::contiguous(x), {x}, [](Grads& g) { g.give(0, g.out()); });
}

Tensor clone(const Tensor& x) {
  detail::check_defined("clone", x);
  return record("clone", raw::clone(x), {x}, [](Grads& g) { g.give(0, g.out()); });
}

std::vector<Tensor> split(const Tensor& x, int64_t size, int64_t dim) {
  detail::check_defined("split", x);
  check(size > 0, "split: size must be positive, got ", size);
  check(x.dim() > 0, "split: input must have a dimension, got a 0-d tensor");
  dim = wrap_dim(dim, x.dim(), "split");
  const int64_t total = x.size(dim);
  std::vector<Tensor> parts;
  for (int64_t start = 0; start < total || parts.empty(); start += size)
    parts.push_back(narrow(x, dim, start, std::min(size, total - start)));
  return parts;
}

std::vector<Tensor> chunk(const Tensor& x, int64_t chunks, int64_t dim) {
  detail::check_defined("chunk", x);
  check(chunks > 0, "chunk: chunks must be positive, got ", chunks);
  check(x.dim() > 0, "chunk: input must have a dimension, got a 0-d tensor");
  const int64_t total = x.size(wrap_dim(dim, x.dim(), "chunk"));
  return split(x, std::max<int64_t>(1, total / chunks + (total % chunks != 0)), dim);
}

}  // namespace cairn
