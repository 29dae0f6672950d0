// How a reduction is cut into threads, the same on host and device.
// Invariant: the cut depends on shapes, strides and alignment alone, not on the device, so a result
// is the same bits on every card.
#pragma once

#include "cairn/kernels/cuda/axes.h"

namespace cairn::kernels::cuda {

constexpr int kReduceThreads = 256;

struct ReducePlan {
  Axes<3> kept;      // the input's and up to two outputs' offsets
  Axes<1> reduced;   // chunks of `each` elements that lie together
  int64_t tail = 0;  // elements behind the chunks, fewer than `each`; the line is contiguous then
  int each = 1;
  // Threads that share one result. Neighbouring threads are those of one result (lines that are
  // contiguous), or of neighbouring results (columns).
  int lanes = 1;
  bool columns = false;
  // Blocks that share one result, and chunks for each.
  int splits = 1;
  int64_t per_split = 0;

  int items() const { return kReduceThreads / lanes; }  // results of a block
};

// y0 (and y1, if defined) have the result's shape: 1 (or missing) where x is reduced. `vector` is
// how many elements fit 16 bytes.
ReducePlan plan_reduce(const Tensor& y0, const Tensor& y1, const Tensor& x, int vector);

}  // namespace cairn::kernels::cuda
