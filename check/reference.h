// Plain loops for references: f64, row-major, one element at a time.
#pragma once

#include <functional>

#include "cairn/tensor/factory.h"
#include "check/op_table.h"

namespace cairn::check_table {

// Calls fn(index) for every index of `shape`, row-major.
template <class Fn>
void for_each_index(const Shape& shape, Fn&& fn) {
  Shape index(shape.size(), 0);
  const int64_t count = numel_of(shape);
  for (int64_t flat = 0; flat < count; ++flat) {
    int64_t rest = flat;
    for (size_t d = shape.size(); d-- > 0;) {
      index[d] = rest % shape[d];
      rest /= shape[d];
    }
    fn(index);
  }
}

// Offset of `index` (of a shape that t broadcasts to) in t's memory.
inline int64_t offset_at(const Tensor& t, const Shape& index) {
  const size_t missing = index.size() - t.shape().size();
  int64_t at = 0;
  for (size_t d = 0; d < t.shape().size(); ++d)
    if (t.shape()[d] != 1) at += index[d + missing] * t.strides()[d];
  return at;
}

template <class T = double>
T& at(const Tensor& t, const Shape& index) {
  return t.data<T>()[offset_at(t, index)];
}

// f over every element.
template <class F>
Tensor mapped(const Tensor& x, F&& f) {
  Tensor y = empty(x.shape(), {DType::f64});
  for_each_index(x.shape(), [&](const Shape& i) { at(y, i) = f(at(x, i)); });
  return y;
}

// f over two broadcast tensors.
template <class F>
Tensor mapped(const Tensor& a, const Tensor& b, F&& f) {
  Tensor y = empty(broadcast_shapes(a.shape(), b.shape(), "reference"), {DType::f64});
  for_each_index(y.shape(), [&](const Shape& i) { at(y, i) = f(at(a, i), at(b, i)); });
  return y;
}

// values() moved to [low, high).
inline Tensor values_in(const Shape& shape, uint64_t seed, double low, double high) {
  return mapped(values(shape, seed), [=](double v) { return low + (v + 1) / 2 * (high - low); });
}

}  // namespace cairn::check_table
