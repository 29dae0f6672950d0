// Functions that make tensors.
#include "cairn/tensor/factory.h"

#include <cmath>
#include <cstring>

#include "cairn/tensor/raw.h"

namespace cairn {

Tensor empty_strided(const Shape& shape, const Shape& strides, const TensorOptions& options) {
  return Tensor("empty", options.dtype, shape, strides, options.device);
}

Tensor empty(const Shape& shape, const TensorOptions& options) {
  return empty_strided(shape, contiguous_strides(shape), options);
}

Tensor empty_like(const Tensor& like, DType dtype) {
  return empty_strided(like.shape(),
                       like.is_dense() ? like.strides() : contiguous_strides(like.shape()),
                       {dtype, like.device()});
}

Tensor empty_like(const Tensor& like) { return empty_like(like, like.dtype()); }

Tensor empty_channels_last(const Shape& shape, const TensorOptions& options) {
  numel_of(shape, "empty");
  return empty_strided(shape, channels_last_strides(shape), options);
}

Tensor full(const Shape& shape, double value, const TensorOptions& options) {
  Tensor out = empty(shape, options);
  raw::fill_(out, value);
  return out;
}

Tensor zeros(const Shape& shape, const TensorOptions& options) {
  Tensor out = empty(shape, options);
  if (!out.storage()->began_as_zeros()) raw::fill_(out, 0);
  return out;
}
Tensor ones(const Shape& shape, const TensorOptions& options) { return full(shape, 1, options); }

Tensor full_like(const Tensor& like, double value) {
  Tensor out = empty_like(like);
  raw::fill_(out, value);
  return out;
}

Tensor zeros_like(const Tensor& like) { return full_like(like, 0); }
Tensor ones_like(const Tensor& like) { return full_like(like, 1); }

Tensor arange(double start, double end, double step, const TensorOptions& options) {
  check(step != 0 && std::isfinite(start) && std::isfinite(end) && std::isfinite(step),
        "arange: start, end and a non-zero step must be finite, got ", start, ", ", end, ", ",
        step);
  const double count = std::ceil((end - start) / step);
  check(count < 9e15, "arange: size must fit in 53 bits, got ", count);
  const int64_t n = count > 0 ? static_cast<int64_t>(count) : 0;
  const Tensor host = empty({n}, {DType::f64});
  double* values = host.data<double>();
  for (int64_t i = 0; i < n; ++i) values[i] = start + static_cast<double>(i) * step;
  return raw::to(host, options.dtype, options.device);
}

Tensor linspace(double start, double end, int64_t count, const TensorOptions& options) {
  check(count >= 0, "linspace: count must not be negative, got ", count);
  const Tensor host = empty({count}, {DType::f64});
  double* values = host.data<double>();
  const double step = count > 1 ? (end - start) / static_cast<double>(count - 1) : 0;
  for (int64_t i = 0; i < count; ++i) {
    // From both ends, so that the last point is exactly `end`.
    values[i] = i < count / 2 || count == 1 ? start + step * static_cast<double>(i)
                                            : end - step * static_cast<double>(count - 1 - i);
  }
  return raw::to(host, options.dtype, options.device);
}

Tensor eye(int64_t n, const TensorOptions& options) {
  Tensor out = zeros({n, n}, options);
  raw::fill_(raw::as_strided(out, {n}, {n + 1}, 0), 1);
  return out;
}

template <class T>
Tensor from_values(std::span<const T> values, const Shape& shape, Device device) {
  const int64_t count = numel_of(shape, "from_values");
  check(count == static_cast<int64_t>(values.size()), "from_values: values must number ", count,
        " for shape ", shape, ", got ", values.size());
  Tensor host = empty(shape, {dtype_of<T>(), kCPU});
  if (count > 0) std::memcpy(host.raw_data(), values.data(), values.size_bytes());
  return device == kCPU ? host : raw::to(host, dtype_of<T>(), device);
}

#define CAIRN_INSTANTIATE(name, type) \
  template Tensor from_values(std::span<const type>, const Shape&, Device);
CAIRN_DTYPES(CAIRN_INSTANTIATE)
#undef CAIRN_INSTANTIATE

Tensor scalar_tensor(double value, const TensorOptions& options) {
  return full({}, value, options);
}

Tensor from_blob(void* data, const Shape& shape, const TensorOptions& options) {
  const int64_t bytes =
      checked_mul(numel_of(shape, "from_blob"), item_size(options.dtype), "from_blob");
  return Tensor(std::make_shared<Storage>(data, bytes, options.device, nullptr), options.dtype,
                shape, contiguous_strides(shape), 0);
}

}  // namespace cairn
