// What the optimizer tests share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/random.h"
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

// A parameter with values in (-1, 1).
inline Tensor leaf(const Shape& shape, uint64_t seed, DType dtype = DType::f32) {
  Generator generator(seed);
  const Tensor t = empty(shape, {dtype});
  uniform_(t, -1, 1, generator);
  return set_requires_grad(t);
}

}  // namespace cairn::test
