// Running the same kernels on the CPU and on the emulated GPU.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"

namespace cairn::on_device {

inline const Device kGpu(DeviceType::cuda, 0);

using Inputs = std::vector<Tensor>;

// The same strides there; raw::to makes what is not dense contiguous.
inline Tensor there(const Tensor& t) {
  if (!t.defined()) return t;
  int64_t span = 1;
  for (size_t d = 0; d < t.shape().size(); ++d) {
    if (t.shape()[d] == 0) return raw::to(t, t.dtype(), kGpu);
    span += (t.shape()[d] - 1) * t.strides()[d];
  }
  const Tensor memory = Tensor(t.storage(), t.dtype(), {span}, {1}, t.offset());
  const Tensor copy = raw::to(memory, t.dtype(), kGpu);
  return Tensor(copy.storage(), t.dtype(), t.shape(), t.strides(), copy.offset());
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = raw::contiguous(raw::to(a, a.dtype(), kCPU));
  const Tensor y = raw::contiguous(raw::to(b, b.dtype(), kCPU));
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         (x.numel() == 0 ||
          std::memcmp(x.raw_data(), y.raw_data(), static_cast<size_t>(x.nbytes())) == 0);
}

// Largest |a - b| relative to max(1, |b|); infinity where NaN or infinities disagree.
inline double distance(const Tensor& a, const Tensor& b) {
  const Tensor x = raw::contiguous(raw::to(a, DType::f64, kCPU));
  const Tensor y = raw::contiguous(raw::to(b, DType::f64, kCPU));
  if (x.shape() != y.shape()) return std::numeric_limits<double>::infinity();
  double most = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double u = x.data<double>()[i];
    const double v = y.data<double>()[i];
    if (u == v || (std::isnan(u) && std::isnan(v))) continue;
    if (!std::isfinite(u) || !std::isfinite(v)) return std::numeric_limits<double>::infinity();
    most = std::max(most, std::abs(u - v) / std::max(1.0, std::abs(v)));
  }
  return most;
}

// body on the device must give what it gives on the CPU, and the same bits in either order of a
// block's threads. `close` is a relative distance; 0: integers and the like.
inline void same_on_device(const Inputs& inputs, const std::function<Tensor(const Inputs&)>& body,
                           double close = 1e-5) {
  Inputs on_gpu;
  for (const Tensor& t : inputs) on_gpu.push_back(there(t));
  const Tensor expected = body(inputs);
  const Tensor got = raw::to(body(on_gpu), expected.dtype(), kCPU);
  emulator::set_backwards(true);
  const Tensor again = raw::to(body(on_gpu), expected.dtype(), kCPU);
  emulator::set_backwards(false);
  CHECK(distance(got, expected) <= (is_floating(expected.dtype()) ? close : 0));
  CHECK(same_bits(got, again));
  CHECK(emulator::guard_violations() == 0);
}

}  // namespace cairn::on_device
