// Own kernels over a row-major matrix: what cuBLASLt and cuDNN leave to be done around a product.
// Invariant: sums over rows are formed in an order that depends on the shape alone.
#pragma once

#include "cairn/kernels/matmul.h"

namespace cairn::kernels::cuda {

// y [R, N] = activation(y + bias); bias [N] or undefined. pre, where defined, keeps y + bias.
void finish_rows(const Tensor& y, const Tensor& pre, const Tensor& bias, Activation activation);
// sums [N] (+)= column sums of rows [R, N].
void column_sums(const Dst& sums, const Tensor& rows);
// dpre [R, N] = dy times the activation's derivative, and its column sums into db, where wanted.
// dpre may be dy.
void undo_activation(const Tensor& dpre, const Dst& db, const Tensor& dy, const Tensor& saved,
                     Activation activation);

}  // namespace cairn::kernels::cuda
