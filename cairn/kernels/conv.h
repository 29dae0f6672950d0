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

// The strides that the device's kernels want of a weight [O, C / groups, KH, KW], dense on all:
// CPU:  bytes of [KH, KW, C / groups, O]: output channels side by side, as its vectors take them;
// CUDA: bytes of [O, KH, KW, C / groups]: channels-last, as cuDNN takes filters.
Shape conv_weight_strides(Device device, const Shape& weight);
// Whether a 4-d tensor lies in memory so. (Strides of dimensions of size 1 do not matter.)
bool is_conv_weight(const Tensor& weight, Device device);

// x [N, C, H, W] and y [N, O, OH, OW] channels-last; w [O, C / groups, KH, KW] as
// conv_weight_strides has it; bias [O] contiguous or undefined. All of one
// product_dtype().
extern Slot<void(Out y, In x, In w, In bias, const ConvParams& params)> conv2d_fwd;
// dx like x.
extern Slot<void(const Dst& dx, In dy, In w, const ConvParams& params)> conv2d_bwd_data;
// dw in w's layout, db [O] contiguous; each may be empty. Taps that only ever meet padding are left
// as dw.zeros, where that is given.
extern Slot<void(const Dst& dw, const Dst& db, In x, In dy, const ConvParams& params)>
    conv2d_bwd_weight;

}  // namespace cairn::kernels
