// Words of the Philox stream on the device.
// Invariant: inside a captured graph a draw's offset is the one it was captured with plus what the
// graph's launches have used so far, which lies in device memory.
#pragma once

#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/random.h"

namespace cairn::cuda {

// Where a draw's blocks begin.
struct Stream {
  uint64_t seed = 0;
  uint64_t offset = 0;
  const int64_t* shift = nullptr;  // random_shift(); null outside captures

  // The four words of block `i` of the draw.
  __device__ __forceinline__ void words(uint64_t i, uint32_t (&out)[4]) const {
    const uint64_t first = shift == nullptr ? offset : offset + static_cast<uint64_t>(*shift);
    const std::array<uint32_t, 4> block = philox(seed, first + i);
#pragma unroll
    for (size_t k = 0; k < 4; ++k) out[k] = block[k];
  }
};

}  // namespace cairn::cuda
