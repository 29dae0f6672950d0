// What tests share that call a slot on the CPU and on the emulated GPU and compare.
// Invariant: values depend on the seed alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"

namespace cairn::both {

inline const Device kGpu(DeviceType::cuda, 0);

// Uniform in [-1, 1), then times scale plus shift.
inline Tensor noise(const Shape& shape, DType dtype, uint64_t seed, double scale = 1,
                    double shift = 0) {
  const Tensor t = empty(shape, {DType::f64});
  uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  for (int64_t i = 0; i < t.numel(); ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    t.data<double>()[i] = (static_cast<double>(state >> 33) / 0x1p30 - 1) * scale + shift;
  }
  return raw::to(t, dtype);
}

inline Tensor on_gpu(const Tensor& t) { return t.defined() ? raw::to(t, t.dtype(), kGpu) : t; }
inline Tensor copy_of(const Tensor& t) { return t.defined() ? raw::clone(t) : t; }

inline Tensor as_doubles(const Tensor& t) { return raw::contiguous(raw::to(t, DType::f64, kCPU)); }

// The largest |a - b| / (1 + |b|); NaN equals NaN and infinity itself, and nothing else.
inline double difference(const Tensor& got, const Tensor& wanted) {
  const Tensor a = as_doubles(got), b = as_doubles(wanted);
  REQUIRE(a.shape() == b.shape());
  double most = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double x = a.data<double>()[i], y = b.data<double>()[i];
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    const double d = std::abs(x - y) / (1 + std::abs(y));
    most = std::max(most, std::isfinite(d) ? d : INFINITY);
  }
  return most;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = raw::contiguous(raw::to(a, a.dtype(), kCPU));
  const Tensor y = raw::contiguous(raw::to(b, b.dtype(), kCPU));
  return x.dtype() == y.dtype() && x.shape() == y.shape() &&
         std::memcmp(x.raw_data(), y.raw_data(), static_cast<size_t>(x.nbytes())) == 0;
}

// A few roundings of results near 1.
inline double roundings(DType dtype, double count = 8) {
  switch (dtype) {
    case DType::f64:
      return count * 0x1p-52;
    case DType::f32:
      return count * 0x1p-23;
    case DType::f16:
      return 1.01 * 0x1p-10;
    default:
      return 1.01 * 0x1p-8;  // computed in f32: one rounding of the result, to the other side
  }
}

// The threads of a block take turns in the other order while this lives.
class Backwards {
 public:
  explicit Backwards(bool on) { emulator::set_backwards(on); }
  ~Backwards() { emulator::set_backwards(false); }
};

}  // namespace cairn::both
