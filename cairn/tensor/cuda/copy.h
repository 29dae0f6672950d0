// Copies and fills by kernels; both tensors lie on one device.
#pragma once

#include "cairn/tensor/tensor.h"

namespace cairn::cuda {

// dst = src, converted; equal shapes, any strides.
void copy_on_device(const Tensor& dst, const Tensor& src);
void fill_on_device(const Tensor& dst, double value);

}  // namespace cairn::cuda
