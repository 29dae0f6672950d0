// How a reduction walks: which dimensions are kept and which are summed, merged and in memory
// order, and how the work is cut. Invariant: the cut depends on shapes and strides alone, never on
// the number of threads, so a result is the same bits for any of them.
#pragma once

#include <cstdint>

#include "cairn/tensor/tensor.h"

namespace cairn::kernels::cpu {

// One kind of dimensions, outermost first; steps in elements.
struct Axes {
  int rank = 0;
  int64_t count = 1;  // product of the sizes
  int64_t size[kMaxRank];
  int64_t in[kMaxRank];
  int64_t out[kMaxRank];
};

// An index over Axes with the offsets that belong to it.
class Walker {
 public:
  Walker(const Axes& axes, int64_t flat) : axes_(axes) {
    for (int d = axes.rank - 1; d >= 0; --d) {
      index_[d] = flat % axes.size[d];
      flat /= axes.size[d];
      in_ += index_[d] * axes.in[d];
      out_ += index_[d] * axes.out[d];
    }
  }
  int64_t in() const { return in_; }
  int64_t out() const { return out_; }
  void next() {
    for (int d = axes_.rank - 1; d >= 0; --d) {
      in_ += axes_.in[d];
      out_ += axes_.out[d];
      if (++index_[d] < axes_.size[d]) return;
      in_ -= axes_.size[d] * axes_.in[d];
      out_ -= axes_.size[d] * axes_.out[d];
      index_[d] = 0;
    }
  }

 private:
  const Axes& axes_;
  int64_t index_[kMaxRank] = {};
  int64_t in_ = 0;
  int64_t out_ = 0;
};

struct ReducePlan {
  // Innermost dimension of the loop below: a run of reduced elements, or of columns.
  bool columns = false;
  Axes kept;        // without the columns
  Axes reduced;     // without the run
  int64_t run = 1;  // reduced elements in a row (columns: rows in a row), `run_step` apart
  int64_t run_step = 1;
  int64_t width = 1;  // columns side by side
  int64_t width_in = 1;
  int64_t width_out = 1;
};

// out's shape broadcasts to in's; dimensions where it is 1 (or missing) are reduced.
ReducePlan plan_reduction(const Tensor& out, const Tensor& in);

}  // namespace cairn::kernels::cpu
