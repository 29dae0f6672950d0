// Slots of reductions, scans and softmax.
// Invariant: every sum is made of blocks that depend on shapes alone, so any number of threads
// gives the same bits.
#pragma once

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// y = the sum over x's dimensions where y has size 1, divided by `divisor` where that is not 1. y
// is of x's dtype where floating, else i64.
extern Slot<void(Out y, In x, double divisor)> sum_fwd;
// y = the product, as sum_fwd; y is of x's dtype where floating, else i64.
extern Slot<void(Out y, In x)> prod_fwd;
// y = largest (or smallest) element; NaN wins. Of x's dtype, any; the reduced part is not empty.
extern Slot<void(Out y, In x, bool largest)> extreme_fwd;
// y = the sum of squares, kept in f64; y is f64.
extern Slot<void(Out y, In x)> sum_squares_fwd;

// Lines of x along `dim`; values and indices (i64) have size 1 there, values may be undefined.
// First of ties; NaN wins. The lines are not empty.
extern Slot<void(const Tensor& values, Out indices, In x, int64_t dim, bool largest)>
    arg_extreme_fwd;
// y = running sum along dim, from the end when `reverse`; y is of x's dtype where floating, else
// i64.
extern Slot<void(Out y, In x, int64_t dim, bool reverse)> cumsum_fwd;
// dx (+)= g * (product of the line's other elements); g has size 1 in `dim`.
extern Slot<void(const Dst& dx, In g, In x, int64_t dim)> prod_bwd;

// x and y contiguous, seen as [outer, n, inner]; over n. log: log_softmax.
extern Slot<void(Out y, In x, int64_t outer, int64_t n, int64_t inner, bool log)> softmax_fwd;
// dx contiguous. softmax: y (g - sum(g y)); log_softmax: g - exp(y) sum(g).
extern Slot<void(const Dst& dx, In g, In y, int64_t outer, int64_t n, int64_t inner, bool log)>
    softmax_bwd;
// y [outer, 1, inner] = log of the sum of exponentials over n; x contiguous.
extern Slot<void(Out y, In x, int64_t outer, int64_t n, int64_t inner)> logsumexp_fwd;

}  // namespace cairn::kernels
