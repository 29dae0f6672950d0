// Linear: y = x W^T + b, with an activation if wanted.
#pragma once

#include <functional>

#include "cairn/autograd/ops/matmul.h"
#include "cairn/nn/container.h"

namespace cairn::nn {

struct LinearOptions {
  bool bias = true;
  DType dtype = DType::f32;
  // Fills the weight; absent: PyTorch's kaiming_uniform_(a = sqrt(5)), that is +-1 / sqrt(in).
  std::function<void(const Tensor&)> weight_init = {};
  // Applied to the result, in the same kernel where the device can.
  Activation activation = Activation::none;
};

// x [..., in_features] -> [..., out_features].
class Linear final : public Layer {
 public:
  Linear(int64_t in_features, int64_t out_features, const LinearOptions& options = {})
      : Linear(Child{}, in_features, out_features, options) {}
  Linear(const Child& place, int64_t in_features, int64_t out_features,
         const LinearOptions& options = {});
  Tensor forward(const Tensor& x) override;

  const Tensor weight;  // [out_features, in_features]
  const Tensor bias;    // [out_features] or undefined

 private:
  Activation activation_;
};

}  // namespace cairn::nn
