// raw:: views and moves: what can be done to a tensor without arithmetic.
// Invariant: nothing here is ever recorded for a gradient; views share the storage.
#pragma once

#include "cairn/tensor/factory.h"
#include "cairn/tensor/tensor.h"

namespace cairn::raw {

// --- views ---------------------------------------------------------------------------------------
// The strides a view of `t` with `shape` would have, or false when it needs a copy.
bool view_strides(const Tensor& t, const Shape& shape, Shape& strides);
// One entry of `shape` may be -1. Throws where the elements cannot be viewed without a copy.
Tensor view(const Tensor& t, const Shape& shape);
// A view where possible, else a contiguous copy.
Tensor reshape(const Tensor& t, const Shape& shape);
// Replaces a -1 in `shape` and checks the number of elements.
Shape infer_shape(const Shape& shape, int64_t numel, const char* op);
Tensor permute(const Tensor& t, const Shape& dims);
Tensor transpose(const Tensor& t, int64_t dim0, int64_t dim1);
// Elements start, start + step, … below end of dimension dim; bounds are clamped as Python does.
Tensor slice(const Tensor& t, int64_t dim, int64_t start, int64_t end, int64_t step = 1);
// Index `index` of dimension `dim`, which disappears.
Tensor select(const Tensor& t, int64_t dim, int64_t index);
// Stretches dimensions of size 1; -1 keeps a size.
Tensor expand(const Tensor& t, const Shape& shape);
Tensor squeeze(const Tensor& t, int64_t dim);
Tensor squeeze(const Tensor& t);
Tensor unsqueeze(const Tensor& t, int64_t dim);
Tensor flatten(const Tensor& t, int64_t start_dim = 0, int64_t end_dim = -1);
// offset counts from the tensor's own first element.
Tensor as_strided(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset);

// --- moves ---------------------------------------------------------------------------------------
// dst = src, converted and broadcast; shapes must broadcast to dst's.
void copy_(const Tensor& dst, const Tensor& src);
void fill_(const Tensor& dst, double value);
// The tensor itself where it already is so, else a copy.
Tensor contiguous(const Tensor& t);
Tensor channels_last(const Tensor& t);  // 4-d only
Tensor to(const Tensor& t, DType dtype);
Tensor to(const Tensor& t, DType dtype, Device device);
// A copy with its own memory; dense strides are kept.
Tensor clone(const Tensor& t);

}  // namespace cairn::raw
