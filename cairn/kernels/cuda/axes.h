// Index arithmetic of kernels for which the order of an index counts, the same on host and device.
// Invariant: an index counts row-major over the dimensions as they were added, the first added
// being the fastest; any number of elements.
#pragma once

#include "cairn/tensor/cuda/walk.h"

namespace cairn::kernels::cuda {

using cairn::cuda::Divisor;

// Division by a fixed number, quick below 2^31.
struct Split {
  int64_t value = 1;
  Divisor divisor;

  Split() = default;
  explicit Split(int64_t size) : value(size) {
    if (size > 0 && size < kQuick) divisor = Divisor(size);
  }
  constexpr int64_t quotient(int64_t n) const {
    if (n < kQuick && value < kQuick)
      return static_cast<int64_t>(divisor.quotient(static_cast<uint32_t>(n)));
    return n / value;
  }

 private:
  static constexpr int64_t kQuick = int64_t{1} << 31;
};

// kOperands tensors over one index space; strides in elements.
template <int kOperands>
struct Axes {
  struct Offsets {
    int64_t at[kOperands];
  };

  int rank = 0;
  int64_t count = 1;
  Split size[kMaxRank];
  int64_t stride[kMaxRank][kOperands] = {};

  // Adds a slower dimension; joined to the last where that makes no difference.
  void add(int64_t n, const int64_t (&steps)[kOperands]) {
    count *= n;
    if (n == 1) return;
    bool joined = rank > 0;
    for (int k = 0; joined && k < kOperands; ++k)
      joined = steps[k] == stride[rank - 1][k] * size[rank - 1].value;
    if (joined) {
      size[rank - 1] = Split(size[rank - 1].value * n);
      return;
    }
    size[rank] = Split(n);
    for (int k = 0; k < kOperands; ++k) stride[rank][k] = steps[k];
    ++rank;
  }
  // Of an index in [0, count).
  constexpr Offsets offsets(int64_t index) const {
    Offsets out{};
    for (int d = 0; d < rank; ++d) {
      const bool last = d + 1 == rank;
      const int64_t rest = last ? 0 : size[d].quotient(index);
      const int64_t i = index - rest * size[d].value;
      for (int k = 0; k < kOperands; ++k) out.at[k] += i * stride[d][k];
      index = rest;
    }
    return out;
  }
  // Whether element i of operand k is its i-th in memory.
  bool flat(int k) const { return rank == 0 || (rank == 1 && stride[0][k] == 1); }
};

// Row-major over `shape` without dimension `skip` (-1: all); a stride list may be shorter than the
// shape only where both are empty.
template <int kOperands>
Axes<kOperands> row_major(const Shape& shape, const Shape* const (&strides)[kOperands],
                          int64_t skip = -1) {
  Axes<kOperands> axes;
  for (size_t d = shape.size(); d-- > 0;) {
    if (static_cast<int64_t>(d) == skip) continue;
    int64_t steps[kOperands];
    for (int k = 0; k < kOperands; ++k) steps[k] = (*strides[k])[d];
    axes.add(shape[d], steps);
  }
  return axes;
}

}  // namespace cairn::kernels::cuda
