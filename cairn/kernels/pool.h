// Kernels of pooling over images.
#pragma once

#include <algorithm>

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// All images here are [N, C, H, W], channels-last in memory.

struct MaxPoolParams {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
};

// index (like y, or undefined when nobody needs it): the tap kx + ky * kernel_w of each maximum, u8
// for up to 256 taps, else i32. The first of equal taps wins; NaN wins over all.
extern Slot<void(Out y, Out index, In x, const MaxPoolParams& params)> max_pool2d_fwd;
extern Slot<void(const Dst& dx, In dy, In index, const MaxPoolParams& params)> max_pool2d_bwd;

// Which inputs each output of one axis averages: a run, monotone in the output's number.
struct AverageAxis {
  int64_t in = 0, out = 0;
  int64_t kernel = 0, stride = 0, pad = 0;  // kernel 0: adaptive

  constexpr int64_t begin(int64_t o) const {
    return kernel == 0 ? o * in / out : std::max<int64_t>(0, o * stride - pad);
  }
  constexpr int64_t end(int64_t o) const {
    return kernel == 0 ? ((o + 1) * in + out - 1) / out
                       : std::min<int64_t>(in, o * stride - pad + kernel);
  }
  // Outputs that read input i: [first, last).
  constexpr int64_t first(int64_t i) const {
    if (kernel == 0) return i * out / in;
    return i + pad < kernel ? 0 : (i + pad - kernel) / stride + 1;
  }
  constexpr int64_t last(int64_t i) const {
    return kernel == 0 ? ((i + 1) * out + in - 1) / in
                       : std::min<int64_t>(out, (i + pad) / stride + 1);
  }
};

struct AveragePoolParams {
  AverageAxis h, w;
  // Elements each sum is divided by; 0: those inside the image.
  int64_t divisor = 0;
};

extern Slot<void(Out y, In x, const AveragePoolParams& params)> avg_pool2d_fwd;
extern Slot<void(const Dst& dx, In dy, const AveragePoolParams& params)> avg_pool2d_bwd;

}  // namespace cairn::kernels
