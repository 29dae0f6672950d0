// Moves a graph's random numbers on by what one launch draws.
#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/cuda/shift.h"

namespace cairn::cuda {
namespace {

__global__ void add_blocks(int64_t* shift, int64_t blocks) { *shift += blocks; }

}  // namespace

void advance_shift(const Tensor& shift, int64_t blocks) {
  launch(shift.device(), "advance_shift", add_blocks, Grid{dim3(1), dim3(1)}, shift.data<int64_t>(),
         blocks);
}

}  // namespace cairn::cuda
