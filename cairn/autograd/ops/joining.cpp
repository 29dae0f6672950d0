// cat and stack.
// Invariant: each input is copied once into its part of the result; its gradient is a view of that
// part.
#include "cairn/autograd/ops/elementwise_detail.h"
#include "cairn/autograd/ops/indexing.h"

namespace cairn {
namespace {

// The common dtype: dimensioned tensors beat 0-d ones within a kind, as everywhere.
DType joined_dtype(std::span<const Tensor> tensors) {
  DType dtype = tensors[0].dtype();
  for (const Tensor& t : tensors) dtype = promote_types(dtype, t.dtype());
  return dtype;
}

Shape joined_shape(std::span<const Tensor> tensors, size_t dim) {
  Shape shape = tensors[0].shape();
  shape[dim] = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    Shape others = tensors[i].shape();
    const bool same_rank = others.size() == shape.size();
    if (same_rank) {
      const int64_t size = others[dim];
      others[dim] = shape[dim];
      if (others == shape) {
        shape[dim] = checked_add(shape[dim], size, "cat");
        continue;
      }
    }
    fail("cat: tensors must agree in all dimensions but ", dim, ", got ", tensors[0].shape(),
         " and ", tensors[i].shape(), " at position ", i);
  }
  return shape;
}

}  // namespace

Tensor cat(std::span<const Tensor> tensors, int64_t dim) {
  check(!tensors.empty(), "cat: tensors must not be an empty list");
  for (const Tensor& t : tensors) {
    detail::check_defined("cat", t);
    detail::check_same_device("cat", tensors[0], t);
  }
  check(tensors[0].dim() > 0, "cat: tensors must have a dimension, got a 0-d tensor");
  dim = wrap_dim(dim, tensors[0].dim(), "cat");
  const Shape shape = joined_shape(tensors, static_cast<size_t>(dim));
  const TensorOptions options{joined_dtype(tensors), tensors[0].device()};
  // Images in channels-last order stay so.
  bool channels_last = shape.size() == 4;
  for (const Tensor& t : tensors)
    channels_last = channels_last && t.is_channels_last() && !t.is_contiguous();
  const Tensor y = channels_last ? empty_channels_last(shape, options) : empty(shape, options);
  int64_t start = 0;
  for (const Tensor& t : tensors) {
    const int64_t end = start + t.size(dim);
    raw::copy_(raw::slice(y, dim, start, end), t);
    start = end;
  }
  if (!will_record(tensors)) return y;
  std::vector<int64_t> sizes;
  for (const Tensor& t : tensors) sizes.push_back(t.size(dim));
  return record("cat", y, tensors, [sizes = std::move(sizes), dim](Grads& g) {
    int64_t from = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (g.needs(i)) g.give(i, raw::slice(g.out(), dim, from, from + sizes[i]));
      from += sizes[i];
    }
  });
}

Tensor cat(std::initializer_list<Tensor> tensors, int64_t dim) {
  return cat(std::span<const Tensor>(tensors.begin(), tensors.size()), dim);
}

Tensor stack(std::span<const Tensor> tensors, int64_t dim) {
  check(!tensors.empty(), "stack: tensors must not be an empty list");
  detail::check_defined("stack", tensors[0]);
  dim = wrap_dim(dim, tensors[0].dim() + 1, "stack");
  std::vector<Tensor> raised;
  raised.reserve(tensors.size());
  for (const Tensor& t : tensors) {
    detail::check_defined("stack", t);
    check(t.shape() == tensors[0].shape(), "stack: tensors must have one shape, got ",
          tensors[0].shape(), " and ", t.shape());
    raised.push_back(unsqueeze(t, dim));
  }
  return cat(std::span<const Tensor>(raised), dim);
}

Tensor stack(std::initializer_list<Tensor> tensors, int64_t dim) {
  return stack(std::span<const Tensor>(tensors.begin(), tensors.size()), dim);
}

}  // namespace cairn
