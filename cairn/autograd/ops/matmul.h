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

struct FeedForwardOptions {
  Activation activation = Activation::relu;  // or gelu_tanh
};

// Two linear layers with an activation between them, a transformer's feed-forward block:
// linear(activation(linear(x, weight1, bias1)), weight2, bias2). x [..., in], weight1 [width, in],
// bias1 [width], weight2 [out, width], bias2 [out]; a bias may be undefined. On a GPU the backward
// through the activation, with the first bias's gradient, is part of a product.
Tensor feed_forward(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                    const Tensor& weight2, const Tensor& bias2,
                    const FeedForwardOptions& options = {});

}  // namespace cairn
