// The text of the index check's error.
// Invariant: every device reports a wrong index in the same words.
#include "cairn/kernels/indexing.h"

namespace cairn::kernels {

std::string index_error(std::string_view op, std::string_view what, int64_t size, int64_t value,
                        const Shape& shape, int64_t flat) {
  std::string position = cat(flat);
  if (shape.size() > 1) {
    Shape at = shape;
    for (size_t d = shape.size(); d-- > 0;) {
      at[d] = flat % shape[d];
      flat /= shape[d];
    }
    position = cat(at);
  }
  return cat(op, ": ", what, " must be in [0, ", size, "), got ", value, " at position ", position);
}

}  // namespace cairn::kernels
