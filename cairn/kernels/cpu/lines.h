// Visits every line of a tensor along one dimension.
// Invariant: each line is visited once, by one thread, so what a line writes needs no lock.
#pragma once

#include <algorithm>

#include "cairn/tensor/parallel.h"
#include "cairn/tensor/tensor.h"

namespace cairn::kernels::cpu {

// Up to three tensors that agree in all dimensions but `dim`; body(o0, o1, o2) gets the offsets of
// the line's first element in each. `shape` is that of the lines (its size in `dim` is not used).
// `cost` is the number of elements one line touches.
template <class Body>
void for_each_line(const Shape& shape, int64_t dim, const Tensor* const (&tensors)[3], int64_t cost,
                   Body&& body) {
  constexpr int64_t kGrain = 16384;
  int64_t lines = 1;
  for (size_t d = 0; d < shape.size(); ++d)
    if (static_cast<int64_t>(d) != dim) lines *= shape[d];
  parallel_for(0, lines, std::max<int64_t>(1, kGrain / std::max<int64_t>(cost, 1)),
               [&](int64_t lo, int64_t hi) {
                 for (int64_t line = lo; line < hi; ++line) {
                   int64_t at[3] = {};
                   int64_t rest = line;
                   for (size_t d = shape.size(); d-- > 0;) {
                     if (static_cast<int64_t>(d) == dim) continue;
                     const int64_t i = rest % shape[d];
                     rest /= shape[d];
                     for (int k = 0; k < 3; ++k)
                       if (tensors[k]) at[k] += i * tensors[k]->strides()[d];
                   }
                   body(at[0], at[1], at[2]);
                 }
               });
}

// Size and stride of dimension `dim`; a 0-d tensor counts as one element.
inline int64_t line_size(const Tensor& t, int64_t dim) {
  return t.dim() == 0 ? 1 : t.shape()[static_cast<size_t>(dim)];
}
inline int64_t line_step(const Tensor& t, int64_t dim) {
  return t.dim() == 0 ? 1 : t.strides()[static_cast<size_t>(dim)];
}

}  // namespace cairn::kernels::cpu
