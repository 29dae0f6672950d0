// Pooling: argument checks, memory and backward rules.
#include "cairn/autograd/ops/pool.h"

#include "cairn/autograd/record.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/pool.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

// What stands for a pair in a message: "2" or "[2, 3]".
std::string text_of(Pair p) { return p.h == p.w ? cat(p.h) : cat(Shape{p.h, p.w}); }

void check_image(const char* op, const Tensor& x) {
  check(x.defined() && x.dim() == 4, op, ": input must be 4-d [N, C, H, W], got ",
        x.defined() ? cat(x.shape()) : "an undefined tensor");
  check(is_floating(x.dtype()), op, ": input must be floating, got ", x.dtype());
}

void check_window(const char* op, Pair kernel, Pair stride, Pair padding) {
  check(kernel.h >= 1 && kernel.w >= 1, op, ": kernel_size must be at least 1, got ",
        text_of(kernel));
  check(stride.h >= 1 && stride.w >= 1, op, ": stride must be at least 1, got ", text_of(stride));
  check(padding.h >= 0 && padding.w >= 0, op, ": padding must not be negative, got ",
        text_of(padding));
  check(padding.h <= kernel.h / 2 && padding.w <= kernel.w / 2, op,
        ": padding must be at most half of kernel_size ", text_of(kernel), ", got ",
        text_of(padding));
}

int64_t output_size(const char* op, const char* axis, int64_t in, int64_t kernel, int64_t stride,
                    int64_t pad, int64_t dilation) {
  const int64_t padded = checked_add(in, checked_mul(2, pad, op), op);
  const int64_t extent = checked_add(checked_mul(dilation, kernel - 1, op), 1, op);
  check(padded >= extent, op, ": padded input ", axis, " must be at least the kernel's extent ",
        extent, ", got ", padded);
  return (padded - extent) / stride + 1;
}

Tensor pooled_memory(const Tensor& x, int64_t h, int64_t w, DType dtype) {
  return empty_channels_last({x.size(0), x.size(1), h, w}, {dtype, x.device()});
}

// Runs kernel(dst) on channels-last memory of `dtype` for input 0's gradient: the engine's own
// where it is so.
template <class Kernel>
void image_gradient(Grads& g, DType dtype, Kernel&& kernel) {
  const Dst dx = g.dst(0);
  if (!dx) return;
  if (dx.tensor.is_channels_last() && dx.tensor.dtype() == dtype) return kernel(dx);
  const Dst temporary{empty_channels_last(dx.tensor.shape(), {dtype, dx.tensor.device()}), false};
  kernel(temporary);
  kernels::accumulate_to(dx.tensor.device(), dx, temporary.tensor);
}

// Halves are computed in f32: a window's sum may be cut into pieces, which must not be rounded.
Tensor to_compute(const Tensor& t) { return raw::to(t, compute_dtype(t.dtype())); }

Tensor average(const char* op, const Tensor& input, const kernels::AveragePoolParams& params) {
  const Tensor x = to_compute(raw::channels_last(input));
  const Tensor y = pooled_memory(x, params.h.out, params.w.out, x.dtype());
  kernels::avg_pool2d_fwd(x.device(), y, x, params);
  return record(op, raw::to(y, input.dtype()), {input}, [params](Grads& g) {
    const Tensor dy = to_compute(raw::channels_last(g.out()));
    image_gradient(g, dy.dtype(),
                   [&](const Dst& dx) { kernels::avg_pool2d_bwd(dy.device(), dx, dy, params); });
  });
}

}  // namespace

Tensor max_pool2d(const Tensor& input, const MaxPool2dOptions& o) {
  const char* op = "max_pool2d";
  check_image(op, input);
  const Pair stride{o.stride.h == 0 ? o.kernel_size.h : o.stride.h,
                    o.stride.w == 0 ? o.kernel_size.w : o.stride.w};
  check_window(op, o.kernel_size, stride, o.padding);
  check(o.dilation.h >= 1 && o.dilation.w >= 1, op, ": dilation must be at least 1, got ",
        text_of(o.dilation));
  const kernels::MaxPoolParams params{o.kernel_size.h, o.kernel_size.w, stride.h,     stride.w,
                                      o.padding.h,     o.padding.w,     o.dilation.h, o.dilation.w};
  const int64_t h = output_size(op, "height", input.size(2), params.kernel_h, params.stride_h,
                                params.pad_h, params.dil_h);
  const int64_t w = output_size(op, "width", input.size(3), params.kernel_w, params.stride_w,
                                params.pad_w, params.dil_w);
  const Tensor x = raw::channels_last(input);
  const Tensor y = pooled_memory(x, h, w, x.dtype());
  const int64_t taps = checked_mul(params.kernel_h, params.kernel_w, op);
  const Tensor index = will_record({input})
                           ? pooled_memory(x, h, w, taps <= 256 ? DType::u8 : DType::i32)
                           : Tensor{};
  kernels::max_pool2d_fwd(x.device(), y, index, x, params);
  return record(op, y, {input}, [index = Saved(index), params](Grads& g) {
    const Tensor dy = raw::channels_last(g.out());
    image_gradient(g, dy.dtype(), [&](const Dst& dx) {
      kernels::max_pool2d_bwd(dy.device(), dx, dy, index.get("max_pool2d"), params);
    });
  });
}

Tensor avg_pool2d(const Tensor& x, const AvgPool2dOptions& o) {
  const char* op = "avg_pool2d";
  check_image(op, x);
  const Pair stride{o.stride.h == 0 ? o.kernel_size.h : o.stride.h,
                    o.stride.w == 0 ? o.kernel_size.w : o.stride.w};
  check_window(op, o.kernel_size, stride, o.padding);
  kernels::AveragePoolParams params;
  params.h = {x.size(2), 0, o.kernel_size.h, stride.h, o.padding.h};
  params.w = {x.size(3), 0, o.kernel_size.w, stride.w, o.padding.w};
  params.h.out = output_size(op, "height", x.size(2), o.kernel_size.h, stride.h, o.padding.h, 1);
  params.w.out = output_size(op, "width", x.size(3), o.kernel_size.w, stride.w, o.padding.w, 1);
  params.divisor =
      o.count_include_pad ? checked_mul(o.kernel_size.h, o.kernel_size.w, op) : int64_t{0};
  return average(op, x, params);
}

Tensor adaptive_avg_pool2d(const Tensor& x, Pair output_size) {
  const char* op = "adaptive_avg_pool2d";
  check_image(op, x);
  check(output_size.h >= 1 && output_size.w >= 1, op, ": output_size must be at least 1, got ",
        text_of(output_size));
  check(x.size(2) >= 1 && x.size(3) >= 1, op, ": input must have pixels, got ", x.shape());
  kernels::AveragePoolParams params;
  params.h = {x.size(2), output_size.h, 0, 0, 0};
  params.w = {x.size(3), output_size.w, 0, 0, 0};
  return average(op, x, params);
}

}  // namespace cairn
