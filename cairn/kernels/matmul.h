// Kernels of matrix products.
#pragma once

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// The dtype in which a device's products and convolutions take tensors of this dtype: themselves,
// but 16-bit ones as f32 on a CPU, whose vectors add in f32 alone.
DType product_dtype(Device device, DType dtype);

// c (+)= a b. a [..., M, K], b [..., K, N], c [..., M, N] with the same leading sizes; a and b any
// strides; c's last or second to last stride is 1. Leading dimensions of c with stride 0 are summed
// over, in order. All of one product_dtype().
extern Slot<void(const Dst& c, In a, In b)> matmul;
// What may follow a linear layer inside its kernel. gelu is the tanh form (functors::GeluTanh;
// PyTorch's approximate = "tanh"), which is what cuBLASLt's epilogue computes.
enum class Activation : uint8_t { none, relu, gelu };

// y [R, N] contiguous = activation(x w^T + bias). x [R, K] and w [N, K] of any strides; bias [N]
// contiguous or undefined. pre, like y: x w^T + bias for the backward of gelu; undefined when
// nobody needs it, and always for none.
extern Slot<void(Out y, Out pre, In x, In w, In bias, Activation activation)> linear_fwd;
// From dy [R, N] contiguous, the gradient before the activation (relu or gelu) into dpre, like dy,
// overwritten, and its column sums into db [N] contiguous, (+)=, which may be empty. saved, like
// dy: the forward's y for relu, its pre for gelu.
extern Slot<void(const Dst& dpre, const Dst& db, In dy, In saved, Activation activation)>
    linear_bwd_activation;
// db [N] contiguous (+)= column sums of dy [R, N] contiguous.
extern Slot<void(const Dst& db, In dy)> sum_rows;

}  // namespace cairn::kernels
