// What a loader hands to a training step.
// Invariant: dimension 0 of input, and of target where there is one, counts the samples.
#pragma once

#include <cstdint>

#include "cairn/tensor/tensor.h"

namespace cairn {

struct Batch {
  Tensor input;   // [batch, …]
  Tensor target;  // [batch, …], or undefined where the dataset has no targets

  // Number of samples; 0 for a batch without input.
  int64_t size() const { return input.defined() && input.dim() > 0 ? input.size(0) : 0; }
};

}  // namespace cairn
