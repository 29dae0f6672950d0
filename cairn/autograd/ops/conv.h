// 2-d convolution.
#pragma once

#include "cairn/tensor/tensor.h"

namespace cairn {

// A size for both spatial dimensions, or one each: {3} or {3, 5}.
struct Pair {
  int64_t h = 0;
  int64_t w = 0;
  Pair() = default;
  Pair(int64_t both) : h(both), w(both) {}
  Pair(int64_t height, int64_t width) : h(height), w(width) {}
  bool operator==(const Pair&) const = default;
};

struct Conv2dOptions {
  Pair stride = 1;
  Pair padding = 0;
  Pair dilation = 1;
  int64_t groups = 1;
};

// Cross-correlation, zero padding. x [N, C, H, W], weight [O, C / groups, KH, KW], bias [O] or
// undefined -> [N, O, OH, OW] with OH = (H + 2 pad - dilation (KH - 1) - 1) / stride + 1.
// f64, f32, bf16, f16 (sums of halves in f32). The result lies channels-last in memory.
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias = {},
              const Conv2dOptions& options = {});

// The strides at which a device's kernels read a weight [O, C / groups, KH, KW]. Any other strides
// are right too, but such a weight is copied in every call.
Shape conv2d_weight_strides(Device device, const Shape& weight);
// Whether a tensor is 4-d and lies so on its device.
bool is_conv2d_weight(const Tensor& weight);

}  // namespace cairn
