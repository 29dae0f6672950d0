// Matrix products.
#pragma once

#include "cairn/tensor/tensor.h"

namespace cairn {

// As torch.matmul: 1-d operands are vectors, leading dimensions broadcast. Both of one floating
// dtype.
Tensor matmul(const Tensor& a, const Tensor& b);
// y = x w^T + b. x [..., in], weight [out, in], bias [out] or undefined.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});

}  // namespace cairn
