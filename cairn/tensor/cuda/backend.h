// CUDA's row of the device table and of the public CUDA functions.
#pragma once

namespace cairn::cuda {

// Called once at start-up by the generated list of device code.
void fill_tensor();

}  // namespace cairn::cuda
