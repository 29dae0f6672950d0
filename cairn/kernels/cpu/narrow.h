// Elements of bf16 and f16 to f32 buffers and back, so that a kernel's f32 code serves them too.
// Invariant: widening is exact, and a value is rounded once, when it is narrowed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cairn/tensor/dtype.h"

namespace cairn::kernels::cpu {

// out[i] = the half at `from` + i * step bytes.
void widen(DType half, const std::byte* from, int64_t step, int64_t n, float* out);
// The half at `to` + i * step bytes = in[i].
void narrow(DType half, const float* in, int64_t n, std::byte* to, int64_t step);

}  // namespace cairn::kernels::cpu
