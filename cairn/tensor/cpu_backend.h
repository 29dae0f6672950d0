// The CPU's row of the device table.
#pragma once

#include "cairn/tensor/device.h"

namespace cairn {

extern const DeviceBackend kCpuBackend;

}  // namespace cairn
