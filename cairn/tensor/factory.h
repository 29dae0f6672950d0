// Functions that make tensors.
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "cairn/tensor/tensor.h"

namespace cairn {

struct TensorOptions {
  DType dtype = DType::f32;
  Device device = {};
};

// Not initialised. Sizes that are negative or overflow throw Error.
Tensor empty(const Shape& shape, const TensorOptions& options = {});
// Not initialised; strides in elements.
Tensor empty_strided(const Shape& shape, const Shape& strides, const TensorOptions& options = {});
// Not initialised; the strides of `like` where it is dense, else contiguous.
Tensor empty_like(const Tensor& like);
Tensor empty_like(const Tensor& like, DType dtype);
// Not initialised, NHWC in memory. shape is [N, C, H, W].
Tensor empty_channels_last(const Shape& shape, const TensorOptions& options = {});

Tensor zeros(const Shape& shape, const TensorOptions& options = {});
Tensor ones(const Shape& shape, const TensorOptions& options = {});
Tensor full(const Shape& shape, double value, const TensorOptions& options = {});
Tensor zeros_like(const Tensor& like);
Tensor ones_like(const Tensor& like);
Tensor full_like(const Tensor& like, double value);

// start, start + step, … below (or, for a negative step, above) end.
Tensor arange(double start, double end, double step = 1,
              const TensorOptions& options = {.dtype = DType::i64});
// `count` points from start to end, both included.
Tensor linspace(double start, double end, int64_t count, const TensorOptions& options = {});
Tensor eye(int64_t n, const TensorOptions& options = {});

// Values in row-major order; their number must be the shape's.
template <class T>
Tensor from_values(std::span<const T> values, const Shape& shape, Device device = {});
template <class T>
Tensor from_values(const std::vector<T>& values, const Shape& shape, Device device = {}) {
  return from_values(std::span<const T>(values), shape, device);
}
// A 1-d tensor: tensor<float>({1, 2, 3}).
template <class T = float>
Tensor tensor(std::initializer_list<T> values) {
  return from_values(std::span<const T>(values.begin(), values.size()),
                     Shape{static_cast<int64_t>(values.size())});
}
// A 0-d tensor.
Tensor scalar_tensor(double value, const TensorOptions& options = {});
// A view of memory of the caller, who keeps it alive; row-major.
Tensor from_blob(void* data, const Shape& shape, const TensorOptions& options = {});

}  // namespace cairn
