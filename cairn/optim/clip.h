// Gradient clipping and unscaling, in place. Parameters without a gradient are skipped.
#pragma once

#include <span>

#include "cairn/tensor/tensor.h"

namespace cairn::optim {

// Scales all gradients by min(1, max_norm / (total + 1e-6)), where total is the norm_type-norm of
// all their elements together (norm_type may be infinity), and returns total, f64 0-d, on their
// device. With error_if_nonfinite a total that is NaN or infinite throws Error and changes nothing.
// One order of summation for every thread count. The gradients must lie on one device.
Tensor clip_grad_norm_(std::span<const Tensor> parameters, double max_norm, double norm_type = 2,
                       bool error_if_nonfinite = false);
// The total alone, without clipping.
Tensor grad_norm(std::span<const Tensor> parameters, double norm_type = 2);
// Clamps every element to [-clip_value, clip_value].
void clip_grad_value_(std::span<const Tensor> parameters, double clip_value);

// Divides all gradients by scale; where one of them is NaN or infinite, found_inf becomes 1, else
// it stays as it is. Both are f32 with one element, on the gradients' device. Nothing is read back.
void unscale_grad_(std::span<const Tensor> parameters, const Tensor& scale,
                   const Tensor& found_inf);

}  // namespace cairn::optim
