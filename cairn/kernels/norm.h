// Kernels of batch and layer normalisation.
// Invariant: statistics are combined in f64 from row blocks of fixed size, so they do not depend on
// the thread count.
#pragma once

#include <algorithm>

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// Row blocks whose partial statistics are kept apart: at most 32, of at least 64 rows.
struct NormBlocks {
  explicit NormBlocks(int64_t row_count)
      : rows(row_count),
        block(64 * std::max<int64_t>(1, (row_count + 64 * 32 - 1) / (64 * 32))),
        count((row_count + block - 1) / block) {}
  int64_t rows, block, count;
};

// x, y, residual [N, C, ...] with C innermost in memory and no gaps, all of one dtype; the matrix
// has R = numel / C rows. w and b [C] contiguous, any floating dtype, or undefined (1 and 0).
// mean and rstd [C] f64. work: f64, at least batch_norm_work(R, C) elements; coef: at least 5 C
// elements of f64 for f64 input, else f32. Both are scratch.
inline int64_t batch_norm_work(int64_t rows, int64_t channels) {
  return 2 * channels * std::max<int64_t>(1, NormBlocks(rows).count);
}

// In training: statistics of the batch into mean and rstd = 1 / sqrt(biased variance + eps);
// running_mean and running_var [C] (contiguous, may be undefined) move towards mean and unbiased
// variance by momentum; y = (x - mean) rstd w + b (+ residual), then max(0, .) if relu. R >= 1.
extern Slot<void(Out y, Out mean, Out rstd, Out running_mean, Out running_var, Out work, Out coef,
                 In x, In residual, In w, In b, double momentum, double eps, bool relu)>
    batch_norm_fwd;
// In evaluation: mean and rstd from running statistics, and y as above.
extern Slot<void(Out y, Out mean, Out rstd, Out coef, In x, In residual, In w, In b,
                 In running_mean, In running_var, double eps, bool relu)>
    batch_norm_eval;
// dy like y. relu: the forward ended in it, and where its output is not above zero the gradient is
// dropped; the output is y, or, where y is undefined (there was no residual), computed again from
// x, w and b. dx and dresidual have x's layout; dw and db [C], any stride. In training the
// statistics depend on x, so dx = w rstd (dy - mean(dy) - xhat mean(dy xhat)); else dx = w rstd dy.
// dresidual is written before dx; they may be one memory (dx.add then).
extern Slot<void(const Dst& dx, const Dst& dresidual, const Dst& dw, const Dst& db, Out work,
                 Out coef, In dy, In x, In y, In w, In b, In mean, In rstd, bool relu,
                 bool training)>
    batch_norm_bwd;

// x, y [R, D] contiguous of one dtype; w and b [D] of x's dtype, contiguous or undefined.
// mean and rstd [R]: f64 for f64, else f32.
extern Slot<void(Out y, Out mean, Out rstd, In x, In w, In b, double eps)> layer_norm_fwd;
// dx contiguous; dw and db [D] contiguous. work: 2 D NormBlocks(R).count elements of mean's dtype,
// scratch.
extern Slot<void(const Dst& dx, const Dst& dw, const Dst& db, Out work, In dy, In x, In w, In mean,
                 In rstd)>
    layer_norm_bwd;

}  // namespace cairn::kernels
