// Convolution slots on a GPU: which way each takes.
// Order: matrix products where they fit, own kernels for depthwise and f64, cuDNN, own kernels.
#include "cairn/kernels/cuda/conv.h"

#include <utility>

#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/conv_taps.h"
#include "cairn/kernels/cuda/rows.h"
#include "cairn/tensor/raw.h"

namespace cairn::kernels::cuda {
namespace {

constinit DnnConv dnn_conv = nullptr;

bool empty_sizes(const ConvShape& s) {
  return s.n == 0 || s.h == 0 || s.w == 0 || s.ci == 0 || s.oh == 0 || s.ow == 0 || s.co == 0;
}

// A filter per channel has next to no arithmetic: own kernels read and write each value once, and
// cuDNN's for f64 do not use tensor cores.
bool is_direct(const ConvShape& s, DType dtype) {
  return empty_sizes(s) || dtype == DType::f64 || (s.p.groups == s.ci && s.p.groups > 1);
}

bool by_dnn(ConvKind kind, const ConvShape& s, const Tensor& x, const Tensor& w, const Tensor& y,
            bool add) {
  if (dnn_conv == nullptr || is_direct(s, x.dtype())) return false;
  return dnn_conv(kind, s, x, w, y, add);
}

// y [N, O, OH, OW] as its pixels' rows.
Tensor pixels(const Tensor& y) {
  const Shape shape{y.size(0) * y.size(2) * y.size(3), y.size(1)};
  return raw::as_strided(y, shape, {y.size(1), 1}, y.offset());
}

void cuda_conv2d_fwd(Out y, In x, In w, In bias, const ConvParams& params) {
  const ConvShape s = conv_shape(x.shape(), w.shape(), y.shape(), params);
  if (y.numel() == 0) return;
  if (!empty_sizes(s) && gemm_fwd(y, x, w, bias, s)) return;
  if (!by_dnn(ConvKind::fwd, s, x, w, y, false)) direct_fwd(y, x, w, s);
  if (bias.defined()) finish_rows(pixels(y), {}, bias, Activation::none);
}

void cuda_conv2d_bwd_data(const Dst& dx, In dy, In w, const ConvParams& params) {
  const ConvShape s = conv_shape(dx.tensor.shape(), w.shape(), dy.shape(), params);
  if (dx.tensor.numel() == 0) return;
  if (!empty_sizes(s) && gemm_bwd_data(dx, dy, w, s)) return;
  if (by_dnn(ConvKind::bwd_data, s, dx.tensor, w, dy, dx.add)) return;
  if (dx.add && dnn_conv != nullptr && !is_direct(s, dy.dtype())) {
    // No engine adds: by way of scratch of the caching allocator.
    const Tensor fresh = empty_channels_last(dx.tensor.shape(), {dy.dtype(), dy.device()});
    if (dnn_conv(ConvKind::bwd_data, s, fresh, w, dy, false))
      return accumulate_to(dy.device(), dx, fresh);
  }
  direct_bwd_data(dx, dy, w, s);
}

void weight_gradient(const Dst& dw, In x, In dy, const ConvShape& s) {
  if (dw.tensor.numel() == 0) return;
  if (!empty_sizes(s) && gemm_bwd_weight(dw, x, dy, s)) return;
  // cuDNN also multiplies padding, which gives NaN where dy is not finite: its zeros are not known.
  ZeroPattern* const zeros = dw.zeros;
  const ZeroPattern before = zeros != nullptr ? std::exchange(*zeros, {}) : ZeroPattern();
  if (by_dnn(ConvKind::bwd_weight, s, x, dw.tensor, dy, dw.add)) return;
  if (dw.add && dnn_conv != nullptr && !is_direct(s, dy.dtype())) {
    const Tensor fresh = empty_strided(dw.tensor.shape(), channels_last_strides(dw.tensor.shape()),
                                       {dy.dtype(), dy.device()});
    if (dnn_conv(ConvKind::bwd_weight, s, x, fresh, dy, false))
      return accumulate_to(dy.device(), Dst{dw.tensor, true}, fresh);
  }
  direct_bwd_weight(dw, x, dy, s);
  if (zeros == nullptr) return;
  find_dead_taps(s, zeros);
  if (dw.add) *zeros = intersection(*zeros, before, dw.tensor.numel());
}

void cuda_conv2d_bwd_weight(const Dst& dw, const Dst& db, In x, In dy, const ConvParams& params) {
  if (dw) weight_gradient(dw, x, dy, conv_shape(x.shape(), dw.tensor.shape(), dy.shape(), params));
  if (db) column_sums(db, pixels(dy));
}

}  // namespace

ConvShape conv_shape(const Shape& x, const Shape& weight, const Shape& y, const ConvParams& p) {
  return {x[0], x[2], x[3], x[1], y[2], y[3], y[1], weight[2], weight[3], p};
}

void find_dead_taps(const ConvShape& s, ZeroPattern* dead) {
  dead->clear();
  const AxisGeometry y{s.h, s.oh, s.kh, s.p.stride_h, s.p.pad_h, s.p.dil_h};
  const AxisGeometry x{s.w, s.ow, s.kw, s.p.stride_w, s.p.pad_w, s.p.dil_w};
  const int64_t depth = s.depth();
  for (int64_t tap = 0; tap < s.kh * s.kw; ++tap)
    if (!meets_data(y, tap / s.kw) || !meets_data(x, tap % s.kw))
      dead->append({tap * depth, (tap + 1) * depth});
  if (!dead->empty()) dead->period = s.filter();
}

void set_dnn_conv(DnnConv function) { dnn_conv = function; }

void fill_conv() {
  conv2d_fwd.fill(DeviceType::cuda, cuda_conv2d_fwd);
  conv2d_bwd_data.fill(DeviceType::cuda, cuda_conv2d_bwd_data);
  conv2d_bwd_weight.fill(DeviceType::cuda, cuda_conv2d_bwd_weight);
}

}  // namespace cairn::kernels::cuda
