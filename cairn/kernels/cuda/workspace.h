// Scratch memory that the vendors' libraries ask for.
// Invariant: there is one piece per device and stream, used by one call after the other, and a
// piece that was once handed out is never given back: a captured graph may go on using it.
#pragma once

#include "cairn/tensor/device.h"

namespace cairn::kernels::cuda {

// The most that one call may have: what cuBLASLt wants on Hopper is 32 MiB; convolutions get more.
constexpr int64_t kBlasWorkspace = int64_t{32} << 20;
constexpr int64_t kDnnWorkspace = int64_t{256} << 20;

// At least `bytes` bytes for the device's current stream; null for 0.
void* workspace(Device device, int64_t bytes);

}  // namespace cairn::kernels::cuda
