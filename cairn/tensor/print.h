// Text of tensors, laid out as PyTorch prints them.
// Invariant: digits, widths, line breaks and summaries are PyTorch's default ones (4 decimals, 80
// columns, over 1000 elements only 3 at each edge); only dtypes carry Cairn's names.
#pragma once

#include <iosfwd>
#include <string>

#include "cairn/tensor/tensor.h"

namespace cairn {

// "tensor([1., 2.], dtype=f64)"; the dtype is left out where it is f32, i64 or bool.
std::string to_string(const Tensor& t);
std::ostream& operator<<(std::ostream& out, const Tensor& t);
// Where entry `flat` (row-major) of a tensor of this shape is: "2" for 0-d and 1-d, "[0, 2]" else.
std::string position_text(const Shape& shape, int64_t flat);

}  // namespace cairn
