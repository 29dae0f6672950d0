// 2-D convolution on raw pointers, activations channels-last, weights HWIO.
// Invariant: only (output pixel, tap) pairs whose input pixel exists are computed, and every sum is
// taken in an order that the geometry alone decides: same bits for any number of threads.
#pragma once

#include <cstdint>

#include "cairn/kernels/zero_ranges.h"

namespace cairn::kernels::cpu {

// x[n][h][w][ci], y[n][oh][ow][co], weights[kh][kw][ci/groups][co]; output channel o belongs to
// group o / (co/groups). Output pixel (oy, ox) reads input pixel
//   (oy*stride_h - pad_h + ty*dil_h, ox*stride_w - pad_w + tx*dil_w) for each tap (ty, tx).
// The caller guarantees that ci and co divide by groups and that strides and dilations are >= 1;
// oh and ow may be anything (output pixels that no tap reaches get the bias alone).
struct ConvGeometry {
  int64_t n, h, w, ci, oh, ow, co, kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups;
};

// y = conv(x, weights) + bias; bias is [co] or null.
template <class T>
void conv2d_fwd(const ConvGeometry& geometry, T* y, const T* x, const T* weights, const T* bias);

// dx (+)= gradient with respect to x of <dy, y>; adds to dx when `add`, else overwrites all of it.
template <class T>
void conv2d_bwd_data(const ConvGeometry& geometry, T* dx, bool add, const T* dy, const T* weights);

// dw (+)= gradient with respect to the weights. Taps that only ever meet padding get exact zeros;
// with `zeros` they are written only where they are not zeros yet, and listed there afterwards.
template <class T>
void conv2d_bwd_weight(const ConvGeometry& geometry, T* dw, bool add, const T* x, const T* dy,
                       ZeroPattern* zeros = nullptr);

// db[co] (+)= sum of dy over images and pixels.
template <class T>
void conv2d_bwd_bias(const ConvGeometry& geometry, T* db, bool add, const T* dy);

}  // namespace cairn::kernels::cpu
