// conv2d: checks, layouts and the backward rule.
// Invariant: a weight that already lies as its device's kernels want it is never copied, and its
// gradient is written straight into memory of that layout.
#include "cairn/autograd/ops/conv.h"

#include <algorithm>

#include "cairn/autograd/autocast.h"
#include "cairn/autograd/record.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/conv.h"
#include "cairn/kernels/matmul.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

using kernels::ConvParams;

Tensor empty_weight(const Shape& shape, const TensorOptions& options) {
  return empty_strided(shape, kernels::conv_weight_strides(options.device, shape), options);
}

Tensor to_weight_layout(const Tensor& w) {
  if (kernels::is_conv_weight(w, w.device())) return w;
  Tensor out = empty_weight(w.shape(), {w.dtype(), w.device()});
  raw::copy_(out, w);
  return out;
}

Tensor to_compute(const Tensor& t) {
  return raw::to(t, kernels::product_dtype(t.device(), t.dtype()));
}

int64_t output_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                    const char* axis) {
  const int64_t padded = checked_add(in, checked_mul(2, pad, "conv2d"), "conv2d");
  const int64_t extent = checked_add(checked_mul(dilation, kernel - 1, "conv2d"), 1, "conv2d");
  check(padded >= extent, "conv2d: padded input ", axis, " must be at least the kernel's extent ",
        extent, ", got ", padded);
  return (padded - extent) / stride + 1;
}

void check_conv2d(const Tensor& x, const Tensor& w, const Tensor& bias, const Conv2dOptions& o) {
  check(x.defined() && x.dim() == 4, "conv2d: input must be 4-d [N, C, H, W], got ",
        x.defined() ? cat(x.shape()) : "an undefined tensor");
  check(w.defined() && w.dim() == 4, "conv2d: weight must be 4-d [O, C / groups, KH, KW], got ",
        w.defined() ? cat(w.shape()) : "an undefined tensor");
  check(is_floating(x.dtype()), "conv2d: input must be floating, got ", x.dtype());
  check(w.dtype() == x.dtype(), "conv2d: weight must be ", x.dtype(), " like the input, got ",
        w.dtype());
  check(w.device() == x.device(), "conv2d: weight must be on ", x.device(), ", got ", w.device());
  check(o.stride.h >= 1 && o.stride.w >= 1, "conv2d: stride must be at least 1, got ",
        std::min(o.stride.h, o.stride.w));
  check(o.dilation.h >= 1 && o.dilation.w >= 1, "conv2d: dilation must be at least 1, got ",
        std::min(o.dilation.h, o.dilation.w));
  check(o.padding.h >= 0 && o.padding.w >= 0, "conv2d: padding must not be negative, got ",
        std::min(o.padding.h, o.padding.w));
  check(o.groups >= 1, "conv2d: groups must be at least 1, got ", o.groups);
  check(x.size(1) % o.groups == 0, "conv2d: input channels must divide by groups ", o.groups,
        ", got ", x.size(1));
  check(w.size(0) % o.groups == 0, "conv2d: output channels must divide by groups ", o.groups,
        ", got ", w.size(0));
  check(w.size(1) * o.groups == x.size(1), "conv2d: input must have ", w.size(1) * o.groups,
        " channels for weight ", w.shape(), " and groups ", o.groups, ", got ", x.size(1));
  check(w.size(2) >= 1 && w.size(3) >= 1, "conv2d: kernel size must be at least 1, got weight ",
        w.shape());
  if (!bias.defined()) return;
  check(bias.shape() == Shape{w.size(0)}, "conv2d: bias must be of shape ", Shape{w.size(0)},
        ", got ", bias.shape());
  check(bias.dtype() == x.dtype(), "conv2d: bias must be ", x.dtype(), " like the input, got ",
        bias.dtype());
  check(bias.device() == x.device(), "conv2d: bias must be on ", x.device(), ", got ",
        bias.device());
}

// Hands `value` over into dst, which some other layout or dtype keeps the kernel from writing.
void hand_over(const Dst& dst, const Tensor& value) {
  if (dst.zeros) dst.zeros->clear();
  kernels::accumulate_to(dst.tensor.device(), dst, value);
}

void data_gradient(Grads& g, const Shape& x_shape, const Tensor& dy, const Tensor& w,
                   const ConvParams& params) {
  const Dst dx = g.dst(0);
  if (!dx) return;
  if (dx.tensor.is_channels_last() && dx.tensor.dtype() == dy.dtype())
    return kernels::conv2d_bwd_data(dy.device(), dx, dy, w, params);
  const Dst temporary{empty_channels_last(x_shape, {dy.dtype(), dy.device()}), false};
  kernels::conv2d_bwd_data(dy.device(), temporary, dy, w, params);
  hand_over(dx, temporary.tensor);
}

void weight_gradient(Grads& g, const Shape& w_shape, const Tensor& x, const Tensor& dy,
                     const ConvParams& params) {
  const Dst dw = g.dst_with_zeros(1), db = g.dst(2);
  Dst dw_direct = dw, db_direct = db;
  const bool direct_w =
      !dw || (kernels::is_conv_weight(dw.tensor, dy.device()) && dw.tensor.dtype() == dy.dtype());
  const bool direct_b = !db || (db.tensor.is_contiguous() && db.tensor.dtype() == dy.dtype());
  const TensorOptions options{dy.dtype(), dy.device()};
  if (!direct_w) dw_direct = {empty_weight(w_shape, options), false};
  if (!direct_b) db_direct = {empty({w_shape[0]}, options), false};
  if (dw || db) kernels::conv2d_bwd_weight(dy.device(), dw_direct, db_direct, x, dy, params);
  if (!direct_w) hand_over(dw, dw_direct.tensor);
  if (!direct_b) hand_over(db, db_direct.tensor);
}

}  // namespace

Shape conv2d_weight_strides(Device device, const Shape& weight) {
  check(weight.size() == 4, "conv2d: weight must be 4-d [O, C / groups, KH, KW], got ", weight);
  return kernels::conv_weight_strides(device, weight);
}

bool is_conv2d_weight(const Tensor& weight) {
  return weight.dim() == 4 && kernels::is_conv_weight(weight, weight.device());
}

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const Conv2dOptions& options) {
  if (autocast::narrows({x, weight, bias}))
    return conv2d(autocast::narrowed(x), autocast::narrowed(weight), autocast::narrowed(bias),
                  options);
  check_conv2d(x, weight, bias, options);
  const ConvParams params{options.stride.h,  options.stride.w,   options.padding.h,
                          options.padding.w, options.dilation.h, options.dilation.w,
                          options.groups};
  const Shape shape{
      x.size(0), weight.size(0),
      output_size(x.size(2), weight.size(2), params.stride_h, params.pad_h, params.dil_h, "height"),
      output_size(x.size(3), weight.size(3), params.stride_w, params.pad_w, params.dil_w, "width")};
  const Tensor image = raw::channels_last(x);
  const Tensor kernel = to_weight_layout(weight);
  const DType dtype = kernels::product_dtype(x.device(), x.dtype());
  const Tensor y = empty_channels_last(shape, {dtype, x.device()});
  kernels::conv2d_fwd(x.device(), y, to_compute(image), to_compute(kernel),
                      bias.defined() ? to_compute(raw::contiguous(bias)) : bias, params);
  return record("conv2d", raw::to(y, x.dtype()), {x, weight, bias},
                [x = Saved(image), w = Saved(kernel), params](Grads& g) {
                  const Tensor& image = x.get("conv2d");
                  const Tensor& kernel = w.get("conv2d");
                  const Tensor dy = to_compute(raw::channels_last(g.out()));
                  data_gradient(g, image.shape(), dy, to_compute(kernel), params);
                  weight_gradient(g, kernel.shape(), to_compute(image), dy, params);
                });
}

}  // namespace cairn
