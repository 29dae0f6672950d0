// The ways in which a convolution can be computed on a GPU.
// Invariant: x, dx, y and dy are channels-last and w and dw lie as [O, KH, KW, C / groups], without
// gaps, so that shapes alone tell every offset.
#pragma once

#include "cairn/kernels/conv.h"

namespace cairn::kernels::cuda {

// Sizes and parameters, as kernels take them.
struct ConvShape {
  int64_t n, h, w, ci;  // x
  int64_t oh, ow, co;   // y
  int64_t kh, kw;
  ConvParams p;

  int64_t depth() const { return ci / p.groups; }  // input channels that a filter sees
  int64_t filter() const { return kh * kw * depth(); }
};
ConvShape conv_shape(const Shape& x, const Shape& weight, const Shape& y, const ConvParams& p);
// The taps that only meet padding, the same of every filter.
void find_dead_taps(const ConvShape& s, ZeroPattern* dead);

// --- matrix products, conv_gemm.cpp --------------------------------------------------------------
// Where each image is one row of a matrix: outputs of one pixel, or filters of one pixel that meet
// every pixel as it is (then a pixel counts as an image). Only taps that meet data take part.
// Each returns false, having done nothing, for other shapes.
bool gemm_fwd(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& bias,
              const ConvShape& s);
bool gemm_bwd_data(const Dst& dx, const Tensor& dy, const Tensor& w, const ConvShape& s);
// Leaves taps that only meet padding, or zeroes them, and names them in dw.zeros.
bool gemm_bwd_weight(const Dst& dw, const Tensor& x, const Tensor& dy, const ConvShape& s);

// --- cuDNN, dnn_conv.cpp -------------------------------------------------------------------------
enum class ConvKind : uint8_t { fwd, bwd_data, bwd_weight };
// One of x, w, y is the result, by kind; `add` adds to it. False, having done nothing, where cuDNN
// is not there or has no engine for it.
using DnnConv = bool (*)(ConvKind kind, const ConvShape& s, const Tensor& x, const Tensor& w,
                         const Tensor& y, bool add);
// Null in a build without cuDNN's headers.
void set_dnn_conv(DnnConv function);

// --- own kernels, conv.cu ------------------------------------------------------------------------
// Any dtype, groups and sizes (also 0); plain loops with sums in f32 (f64 for f64), in a fixed
// order, over the taps that meet data: the gradient of the others is 0.
void direct_fwd(const Tensor& y, const Tensor& x, const Tensor& w, const ConvShape& s);
void direct_bwd_data(const Dst& dx, const Tensor& dy, const Tensor& w, const ConvShape& s);
void direct_bwd_weight(const Dst& dw, const Tensor& x, const Tensor& dy, const ConvShape& s);

}  // namespace cairn::kernels::cuda
