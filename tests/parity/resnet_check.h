// ResNet18 of the main job against PyTorch's numbers, on any device. What is compared, and how
// close it must be: resnet_check.cpp.
#pragma once

#include "cairn/tensor/device.h"
#include "cairn/tensor/dtype.h"

namespace cairn::parity {

// Catch2 checks of logits in eval mode; of logits, loss, gradients and buffers of a training pass;
// and of five steps of Adam. f64 or f32.
void check_eval(DType dtype, Device device);
void check_training_pass(DType dtype, Device device);
void check_adam(DType dtype, Device device);

}  // namespace cairn::parity
