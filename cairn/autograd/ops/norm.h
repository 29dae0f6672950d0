// Batch and layer normalisation.
#pragma once

#include <memory>

#include "cairn/tensor/tensor.h"

namespace cairn {

// Those that compute the same op at the same time, each on a batch of its own.
class BatchReplicas {
 public:
  virtual ~BatchReplicas() = default;
  // The rows [n] of all, in one order, as [replicas, n]. Each of them calls it as often.
  virtual Tensor gather(const Tensor& row) const = 0;
};

struct BatchNormOptions {
  bool training = false;
  double momentum = 0.1;
  double eps = 1e-5;
  // In training, statistics are of all replicas' batches together (which may differ in size, down
  // to none), and so are the gradients of x; those of weight and bias are of one's own batch.
  std::shared_ptr<const BatchReplicas> replicas = {};
};

// y = (x - mean) / sqrt(var + eps) * weight + bias, per channel of x [N, C, ...] (2-d to 4-d).
// Training: mean and biased variance of the batch; running_mean and running_var (may be undefined)
// become (1 - momentum) old + momentum new, with the unbiased variance. Evaluation: the running
// statistics. weight and bias [C] may be undefined. Statistics of bf16 and f16 input are f32.
// Training with one value per channel is an error.
Tensor batch_norm(const Tensor& x, const Tensor& running_mean, const Tensor& running_var,
                  const Tensor& weight, const Tensor& bias, const BatchNormOptions& options);
// relu(batch_norm(x) + residual) in one op; residual (of x's shape) may be undefined.
Tensor batch_norm_relu(const Tensor& x, const Tensor& residual, const Tensor& running_mean,
                       const Tensor& running_var, const Tensor& weight, const Tensor& bias,
                       const BatchNormOptions& options);

// Over the last dimensions, whose sizes are normalized_shape; weight and bias of that shape or
// undefined.
Tensor layer_norm(const Tensor& x, const Shape& normalized_shape, const Tensor& weight = {},
                  const Tensor& bias = {}, double eps = 1e-5);

}  // namespace cairn
