// Kernels of matrix products.
#pragma once

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// c (+)= a b. a [..., M, K], b [..., K, N], c [..., M, N] with the same leading sizes; a and b any
// strides; c's last or second to last stride is 1. Leading dimensions of c with stride 0 are summed
// over, in order. All f64 or all f32.
extern Slot<void(const Dst& c, In a, In b)> matmul;
// y [R, N] contiguous = x w^T + bias. x [R, K] and w [N, K] of any strides; bias [N] contiguous or
// undefined.
extern Slot<void(Out y, In x, In w, In bias)> linear_fwd;
// db [N] contiguous (+)= column sums of dy [R, N] contiguous.
extern Slot<void(const Dst& db, In dy)> sum_rows;

}  // namespace cairn::kernels
