// The text of the index check's error.
// Invariant: every device reports a wrong index in the same words.
#include "cairn/kernels/indexing.h"

#include "cairn/tensor/print.h"

namespace cairn::kernels {

std::string index_error(std::string_view op, std::string_view what, int64_t size, int64_t value,
                        const Shape& shape, int64_t flat) {
  return cat(op, ": ", what, " must be in [0, ", size, "), got ", value, " at position ",
             position_text(shape, flat));
}

}  // namespace cairn::kernels
