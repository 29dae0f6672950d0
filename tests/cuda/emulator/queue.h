// Giving work to an emulated stream; for the emulated libraries.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

namespace cairn::emulator {

// Runs `work` in the stream's turn, or at every launch of the graph that is being captured.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);

}  // namespace cairn::emulator
