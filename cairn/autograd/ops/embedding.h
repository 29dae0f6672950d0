// Embedding and dropout.
#pragma once

#include <optional>

#include "cairn/tensor/random.h"
#include "cairn/tensor/tensor.h"

namespace cairn {

// weight [V, D], indices i64 or i32 of any shape -> [..., D]. Row padding_idx (negative counts from
// the end, absent = none) gets no gradient. An index outside [0, V) throws with its position.
Tensor embedding(const Tensor& weight, const Tensor& indices,
                 std::optional<int64_t> padding_idx = {});

// Zeroes elements with probability p and scales the rest by 1 / (1 - p) when training; else x
// itself. Element i of the row-major order always gets the same number of the generator's stream.
Tensor dropout(const Tensor& x, double p = 0.5, bool training = true,
               Generator& generator = default_generator());

}  // namespace cairn
