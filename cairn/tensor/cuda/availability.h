// Whether CUDA can be used in this process, found out once.
#pragma once

#include <string>

namespace cairn::cuda {

// Devices that the driver offers; 0 where there is no driver.
int usable_devices();
// A clause that says why there are none.
std::string why_unusable();

}  // namespace cairn::cuda
