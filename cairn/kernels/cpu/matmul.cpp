// Batched matrix products on the raw gemm.
// Invariant: products that are summed into one result run in order of their batch index.
#include "cairn/kernels/matmul.h"

#include <algorithm>

#include "cairn/kernels/cpu/conv_compute.h"
#include "cairn/kernels/cpu/gemm.h"
#include "cairn/kernels/elementwise.h"
#include "cairn/tensor/parallel.h"
#include "cairn/tensor/raw.h"

namespace cairn::kernels {
namespace cpu {
namespace {

template <class Fn>
void dispatch_matmul(DType dtype, Fn&& fn) {
  if (dtype == DType::f64) return fn.template operator()<double>();
  check(dtype == DType::f32, "matmul: kernel dtype must be f64 or f32, got ", dtype);
  fn.template operator()<float>();
}

// One operand's place for a batch index.
struct BatchOffsets {
  int64_t a = 0, b = 0, c = 0;
  bool first = true;  // the first product for this place of c
};

BatchOffsets offsets_of(int64_t index, In a, In b, In c) {
  BatchOffsets at;
  for (size_t d = c.shape().size() - 2; d-- > 0;) {
    const int64_t i = index % c.shape()[d];
    index /= c.shape()[d];
    at.a += i * a.strides()[d];
    at.b += i * b.strides()[d];
    at.c += i * c.strides()[d];
    if (c.strides()[d] == 0 && i != 0) at.first = false;
  }
  return at;
}

template <class T>
void matmul_as(const Dst& dst, In a, In b) {
  const Tensor& c = dst.tensor;
  const size_t rows = c.shape().size() - 2, cols = rows + 1;
  const int64_t m = c.shape()[rows], n = c.shape()[cols], k = a.shape()[cols];
  int64_t batches = 1;
  bool sums = false;
  for (size_t d = 0; d < rows; ++d) {
    batches *= c.shape()[d];
    sums |= c.strides()[d] == 0 && c.shape()[d] > 1;
  }
  // gemm writes rows of adjacent elements; a column-major result is the transposed product.
  const bool transposed = c.strides()[cols] != 1 && n > 1;
  const auto run = [&](int64_t lo, int64_t hi) {
    for (int64_t i = lo; i < hi; ++i) {
      const BatchOffsets at = offsets_of(i, a, b, c);
      const T* pa = a.data<T>() + at.a;
      const T* pb = b.data<T>() + at.b;
      T* pc = c.data<T>() + at.c;
      const bool add = dst.add || !at.first;
      if (transposed)
        gemm<T>(n, m, k, pb, b.strides()[cols], b.strides()[rows], pa, a.strides()[cols],
                a.strides()[rows], pc, c.strides()[cols], add);
      else
        gemm<T>(m, n, k, pa, a.strides()[rows], a.strides()[cols], pb, b.strides()[rows],
                b.strides()[cols], pc, c.strides()[rows], add);
    }
  };
  // Many small products: whole products to each thread. Few large ones: gemm cuts them itself.
  constexpr double kLarge = 4e6;
  const double flops =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  if (sums || batches == 1 || flops > kLarge)
    run(0, batches);
  else
    parallel_for(0, batches, static_cast<int64_t>(1 + 4e5 / (flops + 1)), run);
}

void cpu_matmul(const Dst& c, In a, In b) {
  dispatch_matmul(a.dtype(), [&]<class T>() { matmul_as<T>(c, a, b); });
}

void matmul_cost(profiler::Work& work, const Dst& c, In a, In) {
  work.flops = 2 * c.tensor.numel() * a.size(-1);
}
void linear_cost(profiler::Work& work, Out y, Out, Tensor*, In x, In, In, Activation) {
  work.flops = 2 * y.numel() * x.size(1);
}
void weight_cost(profiler::Work& work, const Dst&, const Dst&, In dy, In x) {
  work.flops = 2 * dy.numel() * x.size(1);
}
void input_cost(profiler::Work& work, const Dst& dpre, const Dst&, In dy, In, In, In, Activation) {
  work.flops = 2 * dpre.tensor.numel() * dy.size(1);
}

void cpu_linear_fwd(Out y, Out pre, Tensor* mask, In x, In w, In bias, Activation activation) {
  if (mask != nullptr) *mask = Tensor();
  const Tensor& product = pre.defined() ? pre : y;
  dispatch_matmul(y.dtype(), [&]<class T>() {
    gemm<T>(y.size(0), y.size(1), x.size(1), x.data<T>(), x.stride(0), x.stride(1), w.data<T>(),
            w.stride(1), w.stride(0), product.data<T>(), y.size(1), false,
            bias.defined() ? bias.data<T>() : nullptr);
  });
  if (activation == Activation::none || y.numel() == 0) return;
  const UnaryFwd& apply = activation == Activation::relu ? relu_fwd : gelu_tanh_fwd;
  apply.of(DeviceType::cpu)(y, product, Attributes{});
}

void cpu_sum_rows(const Dst& db, In dy) {
  dispatch_matmul(dy.dtype(), [&]<class T>() {
    ConvGeometry g{};
    g.n = g.oh = g.h = g.w = g.kh = g.kw = 1;
    g.stride_h = g.stride_w = g.dil_h = g.dil_w = g.groups = g.ci = 1;
    g.ow = dy.size(0);
    g.co = dy.size(1);
    conv2d_bwd_bias<T>(g, db.tensor.data<T>(), db.add, dy.data<T>());
  });
}

void cpu_linear_bwd_weight(const Dst& dw, const Dst& db, In dy, In x) {
  cpu_matmul(dw, raw::transpose(dy, 0, 1), x);
  if (db) cpu_sum_rows(db, dy);
}

// Two passes: what the first one wrote is in cache for the second, or too large to matter.
void cpu_linear_bwd_activation(const Dst& dpre, const Dst& db, In dy, In saved,
                               Activation activation) {
  const UnaryBwd& undo = activation == Activation::relu ? relu_bwd : gelu_tanh_bwd;
  if (dy.numel() > 0) undo.of(DeviceType::cpu)(dpre, dy, saved, Attributes{});
  if (db) cpu_sum_rows(db, dpre.tensor);
}

void cpu_linear_bwd_input(const Dst& dpre, const Dst& db, In dy, In w, In saved, In,
                          Activation activation) {
  cpu_matmul(dpre, dy, w);
  cpu_linear_bwd_activation(dpre, db, dpre.tensor, saved, activation);
}

}  // namespace
}  // namespace cpu

Slot<void(const Dst&, In, In)> matmul{"matmul", cpu::cpu_matmul, cpu::matmul_cost};
Slot<void(Out, Out, Tensor*, In, In, In, Activation)> linear_fwd{"linear_fwd", cpu::cpu_linear_fwd,
                                                                 cpu::linear_cost};
Slot<void(const Dst&, const Dst&, In, In)> linear_bwd_weight{
    "linear_bwd_weight", cpu::cpu_linear_bwd_weight, cpu::weight_cost};
Slot<void(const Dst&, const Dst&, In, In, In, In, Activation)> linear_bwd_input{
    "linear_bwd_input", cpu::cpu_linear_bwd_input, cpu::input_cost};
Slot<void(const Dst&, const Dst&, In, In, Activation)> linear_bwd_activation{
    "linear_bwd_activation", cpu::cpu_linear_bwd_activation};
Slot<void(const Dst&, In)> sum_rows{"sum_rows", cpu::cpu_sum_rows};

}  // namespace cairn::kernels
