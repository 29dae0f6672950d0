// Linear: y = x W^T + b.
#include "cairn/nn/linear.h"

#include <cmath>

#include "cairn/nn/init.h"

namespace cairn::nn {
namespace {

Tensor make_weight(int64_t in, int64_t out, const LinearOptions& options) {
  check(in >= 0 && out >= 0, "linear: in_features and out_features must not be negative, got ", in,
        " and ", out);
  const Tensor weight = empty({out, in}, {options.dtype});
  if (options.weight_init)
    options.weight_init(weight);
  else
    init::kaiming_uniform_(weight, {.a = std::sqrt(5.0)});
  return weight;
}

Tensor make_bias(int64_t in, int64_t out, const LinearOptions& options) {
  if (!options.bias) return {};
  const Tensor bias = empty({out}, {options.dtype});
  const double bound = in > 0 ? 1 / std::sqrt(static_cast<double>(in)) : 0;
  init::uniform_(bias, -bound, bound);
  return bias;
}

}  // namespace

Linear::Linear(const Child& place, int64_t in_features, int64_t out_features,
               const LinearOptions& options)
    : Layer(place),
      weight(parameter("weight", make_weight(in_features, out_features, options))),
      bias(parameter("bias", make_bias(in_features, out_features, options))),
      activation_(options.activation) {}

Tensor Linear::forward(const Tensor& x) {
  return linear(x, weight, bias, {.activation = activation_});
}

}  // namespace cairn::nn
