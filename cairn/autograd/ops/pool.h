// Pooling over [N, C, H, W]; results lie channels-last in memory.
#pragma once

#include "cairn/autograd/ops/conv.h"

namespace cairn {

struct MaxPool2dOptions {
  Pair kernel_size;
  Pair stride = 0;   // 0: kernel_size
  Pair padding = 0;  // at most half the kernel; padded places never win
  Pair dilation = 1;
};
// The gradient goes to the first of ties in row-major order; NaN wins.
Tensor max_pool2d(const Tensor& x, const MaxPool2dOptions& options);

struct AvgPool2dOptions {
  Pair kernel_size;
  Pair stride = 0;  // 0: kernel_size
  Pair padding = 0;
  bool count_include_pad = true;
};
Tensor avg_pool2d(const Tensor& x, const AvgPool2dOptions& options);

// Output o averages inputs floor(o H / OH) … ceil((o + 1) H / OH) - 1.
Tensor adaptive_avg_pool2d(const Tensor& x, Pair output_size);

}  // namespace cairn
