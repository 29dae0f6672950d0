// The CPU's row of the device table.
#pragma once

#include "cairn/tensor/device.h"

namespace cairn {

extern const DeviceBackend kCpuBackend;

// Its random row.
void cpu_random(const Tensor& t, const RandomDraw& draw);

}  // namespace cairn
