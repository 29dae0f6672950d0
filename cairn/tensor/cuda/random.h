// Draws of random numbers on the device; see DeviceBackend::random.
#pragma once

#include "cairn/tensor/device.h"

namespace cairn::cuda {

void random_on_device(const Tensor& t, const RandomDraw& draw);

}  // namespace cairn::cuda
