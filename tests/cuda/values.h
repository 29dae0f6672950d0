// Values for the kernels' tests, and how far two results are apart.
#pragma once

#include <cmath>

#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

namespace cairn::test {

// f64 in [-1, 1) on the CPU, different for each seed.
inline Tensor random(const Shape& shape, uint64_t seed) {
  const Tensor t = empty(shape, {DType::f64});
  Generator generator(seed);
  uniform_(t, -1, 1, generator);
  return t;
}

// Largest difference, both seen in f64 on the CPU; 1e30 for a NaN.
inline double difference(const Tensor& a, const Tensor& b) {
  const Tensor x = raw::contiguous(raw::to(a, DType::f64, kCPU));
  const Tensor y = raw::contiguous(raw::to(b, DType::f64, kCPU));
  REQUIRE(x.shape() == y.shape());
  double most = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double d = std::abs(x.data<double>()[i] - y.data<double>()[i]);
    if (!(d <= most)) most = std::isnan(d) ? 1e30 : d;
  }
  return most;
}

}  // namespace cairn::test
