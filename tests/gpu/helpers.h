// What the tests on a real device share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cairn/tensor/error.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

namespace cairn::test {

inline const Device kGpu(DeviceType::cuda, 0);

// All elements in row-major order.
inline std::vector<double> values_of(const Tensor& t) {
  const Tensor flat = raw::contiguous(raw::to(t, DType::f64, kCPU));
  return {flat.data<double>(), flat.data<double>() + flat.numel()};
}

inline std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace cairn::test
