// Kernels of 2-d convolution.
#pragma once

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

struct ConvParams {
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_h = 0, pad_w = 0;
  int64_t dil_h = 1, dil_w = 1;
  int64_t groups = 1;
};

// x [N, C, H, W] and y [N, O, OH, OW] channels-last; w [O, C / groups, KH, KW] with the bytes of
// [KH, KW, C / groups, O]; bias [O] contiguous or undefined. All f64 or all f32.
extern Slot<void(Out y, In x, In w, In bias, const ConvParams& params)> conv2d_fwd;
// dx like x.
extern Slot<void(const Dst& dx, In dy, In w, const ConvParams& params)> conv2d_bwd_data;
// dw in w's layout, db [O] contiguous; each may be empty. Taps that only ever meet padding are left
// as dw.zeros, where that is given.
extern Slot<void(const Dst& dw, const Dst& db, In x, In dy, const ConvParams& params)>
    conv2d_bwd_weight;

}  // namespace cairn::kernels
