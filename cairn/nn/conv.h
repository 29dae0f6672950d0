// Conv2d: 2-d convolution with its weight.
#pragma once

#include <functional>

#include "cairn/autograd/ops/conv.h"
#include "cairn/nn/container.h"

namespace cairn::nn {

struct Conv2dOptions {
  Pair stride = 1;
  Pair padding = 0;
  Pair dilation = 1;
  int64_t groups = 1;
  bool bias = true;
  DType dtype = DType::f32;
  // Fills the weight; absent: PyTorch's kaiming_uniform_(a = sqrt(5)), that is +-1 / sqrt(fan_in).
  std::function<void(const Tensor&)> weight_init = {};
};

// x [N, in_channels, H, W] -> [N, out_channels, OH, OW], as the op conv2d.
class Conv2d final : public Layer {
 public:
  Conv2d(int64_t in_channels, int64_t out_channels, Pair kernel_size,
         const Conv2dOptions& options = {})
      : Conv2d(Child{}, in_channels, out_channels, kernel_size, options) {}
  Conv2d(const Child& place, int64_t in_channels, int64_t out_channels, Pair kernel_size,
         const Conv2dOptions& options = {});
  Tensor forward(const Tensor& x) override;

  // [O, I / groups, KH, KW]; in memory as conv2d_weight_strides() has it.
  const Tensor weight;
  const Tensor bias;  // [O] or undefined

 private:
  cairn::Conv2dOptions options_;
};

}  // namespace cairn::nn
