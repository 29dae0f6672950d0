// Matrix products.
#pragma once

#include <cstdint>

#include "cairn/tensor/tensor.h"

namespace cairn {

// As torch.matmul: 1-d operands are vectors, leading dimensions broadcast. Both of one floating
// dtype.
Tensor matmul(const Tensor& a, const Tensor& b);

// What a linear op may end in. gelu_tanh is gelu(x, GeluApproximate::tanh).
enum class Activation : uint8_t { none, relu, gelu_tanh };

struct LinearOptions {
  Activation activation = Activation::none;
};

// y = activation(x w^T + b). x [..., in], weight [out, in], bias [out] or undefined. With an
// activation it gives what the two ops one after the other give, and reads and writes the result
// once where the device can.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {},
              const LinearOptions& options = {});

}  // namespace cairn
