// Kernels of embedding and dropout.
#pragma once

#include <cstdint>

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// out [n, D] contiguous = rows of weight [V, D] (any strides) named by index i64 [n] contiguous.
// Throws "embedding: index must be in [0, V), got I at position P"; a device that works
// asynchronously throws it where the host next waits for it, and this and embedding_bwd must stay
// inside memory until then.
extern Slot<void(Out out, In weight, In index)> embedding_fwd;
// dweight [V, D] (any strides; cleared before, or to be added to) += rows of dout [n, D]
// contiguous, in order of n; row `skip` is left alone. Accumulates in dweight's dtype.
extern Slot<void(Out dweight, In dout, In index, int64_t skip)> embedding_bwd;

// One dropout: element i of the row-major order is kept where word i of the Philox stream (seed,
// offset), as a number in [0, 1), is at least p, and then multiplied by scale.
struct DropoutParams {
  uint64_t seed = 0;
  uint64_t offset = 0;
  double p = 0;
  double scale = 1;
};
// out (+)= the kept elements of x, contiguous both.
extern Slot<void(const Dst& out, In x, const DropoutParams& params)> dropout_apply;

}  // namespace cairn::kernels
