// A batch norm's tensors on one device, and its outputs compared with the CPU's.
#pragma once

#include "cairn/kernels/norm.h"
#include "tests/cuda/both.h"

namespace cairn::both {

struct Shape2 {
  int64_t rows, channels;
};
struct BatchNorm {
  Tensor x, residual, w, b, running_mean, running_var, y, mean, rstd, work, coef;

  BatchNorm(const BatchNorm& other, Device device) {
    const auto move = [device](const Tensor& t) {
      return t.defined() ? raw::to(raw::clone(t), t.dtype(), device) : t;
    };
    x = move(other.x), residual = move(other.residual), w = move(other.w), b = move(other.b);
    running_mean = move(other.running_mean), running_var = move(other.running_var);
    reserve();
  }
  BatchNorm(Shape2 s, DType dtype, DType vectors, bool with_residual, double shift = 0.3) {
    x = noise({s.rows, s.channels}, dtype, 1, 1, shift);
    if (with_residual) residual = noise({s.rows, s.channels}, dtype, 2);
    w = noise({s.channels}, vectors, 3, 0.5, 1);
    b = noise({s.channels}, vectors, 4);
    running_mean = noise({s.channels}, vectors, 5);
    running_var = noise({s.channels}, vectors, 6, 0.5, 1);
    reserve();
  }
  void reserve() {
    const int64_t rows = x.size(0), channels = x.size(1);
    y = empty(x.shape(), {x.dtype(), x.device()});
    mean = empty({channels}, {DType::f64, x.device()});
    rstd = empty({channels}, {DType::f64, x.device()});
    work = empty({kernels::batch_norm_work(rows, channels)}, {DType::f64, x.device()});
    coef = empty({5 * channels}, {x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device()});
  }
  void forward(bool relu) const {
    kernels::batch_norm_fwd(x.device(), y, mean, rstd, running_mean, running_var, work, coef, x,
                            residual, w, b, 0.1, 1e-5, relu);
  }
  void evaluate(bool relu) const {
    kernels::batch_norm_eval(x.device(), y, mean, rstd, coef, x, residual, w, b, running_mean,
                             running_var, 1e-5, relu);
  }
};

inline void check_outputs(const BatchNorm& gpu, const BatchNorm& cpu) {
  const DType dtype = cpu.x.dtype();
  const double tolerance = dtype == DType::f64 ? 1e-12 : 1e-5;
  CHECK(difference(gpu.mean, cpu.mean) < tolerance);
  CHECK(difference(gpu.rstd, cpu.rstd) < tolerance);
  CHECK(difference(gpu.running_mean, cpu.running_mean) <=
        std::max(tolerance, roundings(cpu.running_mean.dtype())));
  CHECK(difference(gpu.running_var, cpu.running_var) <=
        std::max(tolerance, roundings(cpu.running_var.dtype())));
  CHECK(difference(gpu.y, cpu.y) <= std::max(tolerance, roundings(dtype, 64)));
}

}  // namespace cairn::both
