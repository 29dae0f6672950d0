// The kernel at the end of a graph that draws random numbers.
#pragma once

#include "cairn/tensor/tensor.h"

namespace cairn::cuda {

// shift (i64, one element) += blocks.
void advance_shift(const Tensor& shift, int64_t blocks);

}  // namespace cairn::cuda
