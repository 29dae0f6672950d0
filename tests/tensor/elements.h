// Element access by plain stride arithmetic, independent of the library's own loops.
#pragma once

#include <vector>

#include "cairn/tensor/tensor.h"

namespace cairn::test {

// Calls fn(index, offset) for every element in row-major order; offset in elements from the first.
template <class Fn>
void for_each(const Tensor& t, Fn&& fn) {
  if (t.numel() == 0) return;
  std::vector<int64_t> index(t.shape().size(), 0);
  for (;;) {
    int64_t offset = 0;
    for (size_t d = 0; d < index.size(); ++d) offset += index[d] * t.strides()[d];
    fn(index, offset);
    size_t d = index.size();
    while (d > 0 && ++index[d - 1] == t.shape()[d - 1]) index[--d] = 0;
    if (d == 0) return;
  }
}

// The values in row-major order, as doubles.
inline std::vector<double> elements(const Tensor& t) {
  std::vector<double> out;
  dispatch(t.dtype(), [&]<class T>() {
    const T* data = static_cast<const T*>(t.raw_data());
    for_each(
        t, [&](const auto&, int64_t offset) { out.push_back(static_cast<double>(data[offset])); });
  });
  return out;
}

}  // namespace cairn::test
