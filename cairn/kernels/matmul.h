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

// Bytes of a row of the bits that a device keeps of relu's results [rows, n] of this dtype, as its
// products want them: the mask is u8 [rows, bytes] and nobody else reads it. 0: it keeps none.
int64_t relu_mask_bytes(Device device, DType dtype, int64_t n);

// y [R, N] contiguous = activation(x w^T + bias). x [R, K] and w [N, K] of any strides; bias [N]
// contiguous or undefined. pre, like y: x w^T + bias for the backward of gelu; undefined when
// nobody needs it, and always for none. mask: null, or for relu where the device keeps bits a
// tensor for them, which a kernel that does not write them empties.
extern Slot<void(Out y, Out pre, Tensor* mask, In x, In w, In bias, Activation activation)>
    linear_fwd;
// dw [N, K], rows or columns of adjacent elements, (+)= dy^T x, and db [N] contiguous (+)= column
// sums of dy. dy [R, N] contiguous, x [R, K] of any strides. db may be empty.
extern Slot<void(const Dst& dw, const Dst& db, In dy, In x)> linear_bwd_weight;
// For a linear layer behind an activation (relu or gelu), from dy [R, N] contiguous to before the
// activation: dpre [R, K] contiguous, overwritten, = dy w times the activation's derivative, and
// its column sums into db [K] contiguous, (+)=, which may be empty. w [N, K] of any strides.
// saved, like dpre: the activation's result for relu, its input for gelu. mask: what linear_fwd
// left in its own, or undefined.
extern Slot<void(const Dst& dpre, const Dst& db, In dy, In w, In saved, In mask,
                 Activation activation)>
    linear_bwd_input;
// From dy [R, N] contiguous, the gradient before the activation (relu or gelu) into dpre, like dy,
// overwritten, and its column sums into db [N] contiguous, (+)=, which may be empty. saved, like
// dy: the forward's y for relu, its pre for gelu.
extern Slot<void(const Dst& dpre, const Dst& db, In dy, In saved, Activation activation)>
    linear_bwd_activation;
// db [N] contiguous (+)= column sums of dy [R, N] contiguous.
extern Slot<void(const Dst& db, In dy)> sum_rows;

}  // namespace cairn::kernels
