// What the module tests share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cairn/nn/module.h"
#include "cairn/tensor/raw.h"

namespace cairn::test {

// The message of the Error that fn throws; "" when it throws none.
inline std::string error_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// All elements in row-major order of the logical shape.
inline std::vector<double> values_of(const Tensor& t) {
  const Tensor flat = raw::contiguous(raw::to(t, DType::f64));
  return {flat.data<double>(), flat.data<double>() + flat.numel()};
}

template <class Named>
std::vector<std::string> names_of(const Named& named) {
  std::vector<std::string> out;
  for (const auto& entry : named) out.push_back(entry.first);
  return out;
}

struct Moments {
  double mean = 0, variance = 0, low = 0, high = 0;
};
inline Moments moments_of(const Tensor& t) {
  const auto v = values_of(t);
  Moments m{.low = v[0], .high = v[0]};
  for (double x : v) {
    m.mean += x / static_cast<double>(v.size());
    m.low = std::min(m.low, x);
    m.high = std::max(m.high, x);
  }
  for (double x : v) m.variance += (x - m.mean) * (x - m.mean) / static_cast<double>(v.size());
  return m;
}

}  // namespace cairn::test
