// Index arithmetic of kernels over strided tensors, the same on host and device.
// Invariant: an index below 2^31 names one element of the walk, innermost dimension fastest;
// dimensions of size 1 are gone and those that lie together in every operand are one.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <initializer_list>

#include "cairn/tensor/tensor.h"

namespace cairn::cuda {

// Division of an index below 2^31 by a fixed divisor in [1, 2^31), as a product and a shift
// (Granlund and Montgomery 1994, "Division by invariant integers using multiplication").
struct Divisor {
  uint32_t value = 1;
  uint32_t factor = 1;
  uint32_t shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t divisor) : value(static_cast<uint32_t>(divisor)) {
    shift = value == 1 ? 0 : 32 - static_cast<uint32_t>(std::countl_zero(value - 1));
    const uint64_t one = 1;
    factor = static_cast<uint32_t>((one << 32) * ((one << shift) - value) / value + 1);
  }
  constexpr uint32_t quotient(uint32_t n) const {
    const auto high = static_cast<uint32_t>((uint64_t{n} * factor) >> 32);
    return (high + n) >> shift;
  }
};

// kOperands tensors over one index space. Strides in elements; 0 where an operand is broadcast.
template <int kOperands>
struct Walk {
  struct Offsets {
    int64_t at[kOperands];
  };

  int rank = 0;
  int64_t numel = 1;
  Divisor size[kMaxRank];                    // innermost dimension first
  int64_t stride[kMaxRank][kOperands] = {};  // same order
  int64_t base[kOperands] = {};              // of a part of a larger walk

  constexpr Offsets offsets(uint32_t index) const {
    Offsets out;
    for (int k = 0; k < kOperands; ++k) out.at[k] = base[k];
    // What is left for the outermost dimension needs no division, so a flat walk has none.
    for (int d = 0; d < rank; ++d) {
      const uint32_t rest = d + 1 < rank ? size[d].quotient(index) : 0;
      const auto i = static_cast<int64_t>(index - rest * size[d].value);
      for (int k = 0; k < kOperands; ++k) out.at[k] += i * stride[d][k];
      index = rest;
    }
    return out;
  }
  // Whether element i of every operand is its i-th in memory (or one and the same, stride 0).
  bool flat() const {
    if (rank > 1) return false;
    for (int k = 0; k < kOperands; ++k)
      if (rank == 1 && stride[0][k] != 1 && stride[0][k] != 0) return false;
    return true;
  }
};

// Plans the walk over `shape` and calls body(walk) for parts of fewer than 2^31 elements each
// (nearly always one). `strides` are the operands', the first (the output's) deciding the order.
template <int kOperands, class Body>
void for_each_walk(const Shape& shape, const Shape* const (&strides)[kOperands], Body&& body) {
  size_t order[kMaxRank];
  size_t count = 0;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 0) return;
    if (shape[d] != 1) order[count++] = d;
  }
  std::stable_sort(order, order + count,
                   [&](size_t a, size_t b) { return (*strides[0])[a] < (*strides[0])[b]; });
  Walk<kOperands> walk;
  int64_t sizes[kMaxRank];
  for (size_t i = 0; i < count; ++i) {
    const size_t d = order[i];
    const int last = walk.rank - 1;
    bool joined = last >= 0;
    for (int k = 0; joined && k < kOperands; ++k)
      joined = (*strides[k])[d] == walk.stride[last][k] * sizes[last];
    if (joined) {
      sizes[last] *= shape[d];
    } else {
      sizes[walk.rank] = shape[d];
      for (int k = 0; k < kOperands; ++k) walk.stride[walk.rank][k] = (*strides[k])[d];
      ++walk.rank;
    }
  }
  // The outermost dimension is cut where the whole is too large for 32-bit indices.
  constexpr int64_t kMost = int64_t{1} << 31;
  int64_t inner = 1;
  for (int d = 0; d + 1 < walk.rank; ++d) inner *= sizes[d];
  const int outer = walk.rank - 1;
  const int64_t outer_size = walk.rank == 0 ? 1 : sizes[outer];
  check(inner < kMost,
        "walk: elements within the outermost dimension must be fewer than 2^31, got ", inner);
  // Parts begin at multiples of 16 elements where they can, so that 16-byte accesses stay aligned.
  const int64_t most = (kMost - 1) / inner;
  const int64_t step = std::min(outer_size, most < 16 ? most : most / 16 * 16);
  for (int d = 0; d < outer; ++d) walk.size[d] = Divisor(sizes[d]);
  for (int64_t at = 0; at < outer_size; at += step) {
    const int64_t part = std::min(step, outer_size - at);
    if (outer >= 0) walk.size[outer] = Divisor(part);
    for (int k = 0; k < kOperands; ++k) walk.base[k] = outer >= 0 ? at * walk.stride[outer][k] : 0;
    walk.numel = inner * part;
    body(walk);
  }
}

}  // namespace cairn::cuda
