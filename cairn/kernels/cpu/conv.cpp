// Convolution slots on the CPU: tensors become the raw geometry of conv_compute.h.
#include "cairn/kernels/conv.h"

#include <algorithm>

#include "cairn/kernels/cpu/conv_compute.h"
#include "cairn/kernels/cpu/conv_plan.h"

namespace cairn::kernels {
namespace cpu {
namespace {

ConvGeometry geometry_of(const Shape& x, const Shape& w, const Shape& y, const ConvParams& p) {
  return {.n = x[0],
          .h = x[2],
          .w = x[3],
          .ci = x[1],
          .oh = y[2],
          .ow = y[3],
          .co = y[1],
          .kh = w[2],
          .kw = w[3],
          .stride_h = p.stride_h,
          .stride_w = p.stride_w,
          .pad_h = p.pad_h,
          .pad_w = p.pad_w,
          .dil_h = p.dil_h,
          .dil_w = p.dil_w,
          .groups = p.groups};
}

// f64 or f32; bf16 and f16 are converted by the op.
template <class Fn>
void dispatch_conv(DType dtype, Fn&& fn) {
  if (dtype == DType::f64) return fn.template operator()<double>();
  check(dtype == DType::f32, "conv2d: kernel dtype must be f64 or f32, got ", dtype);
  fn.template operator()<float>();
}

void cpu_conv2d_fwd(Out y, In x, In w, In bias, const ConvParams& params) {
  const ConvGeometry g = geometry_of(x.shape(), w.shape(), y.shape(), params);
  dispatch_conv(x.dtype(), [&]<class T>() {
    conv2d_fwd<T>(g, y.data<T>(), x.data<T>(), w.data<T>(),
                  bias.defined() ? bias.data<T>() : nullptr);
  });
}

void cpu_conv2d_bwd_data(const Dst& dx, In dy, In w, const ConvParams& params) {
  const ConvGeometry g = geometry_of(dx.tensor.shape(), w.shape(), dy.shape(), params);
  dispatch_conv(dy.dtype(), [&]<class T>() {
    conv2d_bwd_data<T>(g, dx.tensor.data<T>(), dx.add, dy.data<T>(), w.data<T>());
  });
}

void cpu_conv2d_bwd_weight(const Dst& dw, const Dst& db, In x, In dy, const ConvParams& params) {
  dispatch_conv(dy.dtype(), [&]<class T>() {
    if (dw) {
      const ConvGeometry g = geometry_of(x.shape(), dw.tensor.shape(), dy.shape(), params);
      conv2d_bwd_weight<T>(g, dw.tensor.data<T>(), dw.add, x.data<T>(), dy.data<T>(), dw.zeros);
    }
    if (db) {
      const Shape pointwise{dy.size(1), 1, 1, 1};  // the kernel's size does not matter to a bias
      const ConvGeometry g = geometry_of(x.shape(), pointwise, dy.shape(), params);
      conv2d_bwd_bias<T>(g, db.tensor.data<T>(), db.add, dy.data<T>());
    }
  });
}

// FLOPs of the taps that meet data.
int64_t valid_flops(const ConvGeometry& g) {
  const auto pairs = [](const AxisGeometry& axis) {
    int64_t count = 0;
    for (int64_t t = 0; t < axis.k; ++t)
      count += std::max<int64_t>(0, valid_outputs(axis, t).count());
    return count;
  };
  return 2 * g.n * g.co * (g.ci / g.groups) * pairs(axis_y(g)) * pairs(axis_x(g));
}

void conv2d_fwd_cost(profiler::Work& work, Out y, In x, In w, In, const ConvParams& params) {
  work.flops = valid_flops(geometry_of(x.shape(), w.shape(), y.shape(), params));
}
void conv2d_bwd_data_cost(profiler::Work& work, const Dst& dx, In dy, In w,
                          const ConvParams& params) {
  work.flops = valid_flops(geometry_of(dx.tensor.shape(), w.shape(), dy.shape(), params));
}
void conv2d_bwd_weight_cost(profiler::Work& work, const Dst& dw, const Dst&, In x, In dy,
                            const ConvParams& params) {
  if (dw) work.flops = valid_flops(geometry_of(x.shape(), dw.tensor.shape(), dy.shape(), params));
}

}  // namespace
}  // namespace cpu

Slot<void(Out, In, In, In, const ConvParams&)> conv2d_fwd{"conv2d_fwd", cpu::cpu_conv2d_fwd,
                                                          cpu::conv2d_fwd_cost};
Slot<void(const Dst&, In, In, const ConvParams&)> conv2d_bwd_data{
    "conv2d_bwd_data", cpu::cpu_conv2d_bwd_data, cpu::conv2d_bwd_data_cost};
Slot<void(const Dst&, const Dst&, In, In, const ConvParams&)> conv2d_bwd_weight{
    "conv2d_bwd_weight", cpu::cpu_conv2d_bwd_weight, cpu::conv2d_bwd_weight_cost};

}  // namespace cairn::kernels
