// Batch and layer normalisation with their weights and running statistics.
#include "cairn/nn/norm.h"

#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/norm.h"
#include "cairn/autograd/record.h"
#include "cairn/tensor/factory.h"

namespace cairn::nn {
namespace {

Tensor when(bool wanted, const Shape& shape, double value, DType dtype) {
  return wanted ? full(shape, value, {dtype}) : Tensor{};
}

int64_t checked_features(const char* op, int64_t features) {
  check(features >= 0, op, ": num_features must not be negative, got ", features);
  return features;
}

}  // namespace

BatchNorm::BatchNorm(const Child& place, const char* op, int64_t features,
                     const BatchNormOptions& options)
    : Layer(place),
      weight(parameter("weight",
                       when(options.affine, {checked_features(op, features)}, 1, options.dtype))),
      bias(parameter("bias", when(options.affine, {features}, 0, options.dtype))),
      running_mean(statistics("running_mean", when(options.track_running_stats, {features}, 0,
                                                   compute_dtype(options.dtype)))),
      running_var(statistics("running_var", when(options.track_running_stats, {features}, 1,
                                                 compute_dtype(options.dtype)))),
      num_batches_tracked(
          buffer("num_batches_tracked", when(options.track_running_stats, {}, 0, DType::i64))),
      op_(op),
      options_(options) {}

double BatchNorm::begin(const Tensor& x) {
  check(accepts(x.dim()), op_, ": input must have ", accepts(4) ? "4" : "2 or 3",
        " dimensions, got shape ", x.shape());
  if (!training() || !num_batches_tracked.defined()) return options_.momentum.value_or(0);
  NoGrad no_grad;
  add_(num_batches_tracked, 1);
  return options_.momentum ? *options_.momentum : 1 / num_batches_tracked.item();
}

Tensor BatchNorm::forward(const Tensor& x) {
  const double momentum = begin(x);
  return batch_norm(x, running_mean, running_var, weight, bias,
                    {batch_statistics(), momentum, options_.eps, training() ? replicas_ : nullptr});
}

Tensor BatchNorm::forward_relu(const Tensor& x, const Tensor& residual) {
  const double momentum = begin(x);
  return batch_norm_relu(
      x, residual, running_mean, running_var, weight, bias,
      {batch_statistics(), momentum, options_.eps, training() ? replicas_ : nullptr});
}

LayerNorm::LayerNorm(const Child& place, const Shape& normalized_shape,
                     const LayerNormOptions& options)
    : Layer(place),
      weight(parameter("weight",
                       when(options.elementwise_affine, normalized_shape, 1, options.dtype))),
      bias(parameter("bias", when(options.elementwise_affine && options.bias, normalized_shape, 0,
                                  options.dtype))),
      normalized_shape_(normalized_shape),
      eps_(options.eps) {
  check(!normalized_shape.empty(), "layer_norm: normalized_shape must have a dimension, got []");
}

Tensor LayerNorm::forward(const Tensor& x) {
  return layer_norm(x, normalized_shape_, weight, bias, eps_);
}

}  // namespace cairn::nn
