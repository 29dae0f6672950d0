// Conv2d: 2-d convolution with its weight.
#include "cairn/nn/conv.h"

#include <cmath>

#include "cairn/nn/init.h"

namespace cairn::nn {
namespace {

Tensor make_weight(int64_t in, int64_t out, Pair kernel, const Conv2dOptions& options) {
  check(in >= 0 && out >= 0, "conv2d: in_channels and out_channels must not be negative, got ", in,
        " and ", out);
  check(kernel.h > 0 && kernel.w > 0, "conv2d: kernel_size must be positive, got ", kernel.h, " x ",
        kernel.w);
  check(options.groups > 0, "conv2d: groups must be positive, got ", options.groups);
  check(in % options.groups == 0 && out % options.groups == 0,
        "conv2d: in_channels and out_channels must be multiples of groups ", options.groups,
        ", got ", in, " and ", out);
  const int64_t depth = in / options.groups;
  const Shape shape{out, depth, kernel.h, kernel.w};
  const Tensor weight = empty_strided(shape, conv2d_weight_strides(kCPU, shape), {options.dtype});
  if (options.weight_init)
    options.weight_init(weight);
  else
    init::kaiming_uniform_(weight, {.a = std::sqrt(5.0)});
  return weight;
}

Tensor make_bias(const Tensor& weight, const Conv2dOptions& options) {
  if (!options.bias) return {};
  const Tensor bias = empty({weight.size(0)}, {options.dtype});
  const int64_t fan_in = init::fans_of(weight.shape()).in;
  const double bound = fan_in > 0 ? 1 / std::sqrt(static_cast<double>(fan_in)) : 0;
  init::uniform_(bias, -bound, bound);
  return bias;
}

}  // namespace

Conv2d::Conv2d(const Child& place, int64_t in_channels, int64_t out_channels, Pair kernel_size,
               const Conv2dOptions& options)
    : Layer(place),
      weight(parameter("weight", make_weight(in_channels, out_channels, kernel_size, options))),
      bias(parameter("bias", make_bias(weight, options))),
      options_{options.stride, options.padding, options.dilation, options.groups} {}

Tensor Conv2d::forward(const Tensor& x) { return conv2d(x, weight, bias, options_); }

}  // namespace cairn::nn
