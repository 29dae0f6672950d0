// Reducing several buffers of equal length into one, element by element: what collectives do.
#pragma once

#include <span>

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

enum class ReduceOp : uint8_t { sum, avg, min, max, prod };
std::string_view name_of(ReduceOp op);
inline void append_text(std::string& out, ReduceOp op) { out += name_of(op); }

// A buffer and what it holds.
struct Part {
  const void* data = nullptr;
  DType dtype = DType::f32;
};

// out[i] = parts[0][i] op parts[1][i] op …, in this order, for n elements; out may be one of the
// parts. avg sums; the result of sum and avg is multiplied by `scale`, which only floating dtypes
// may have other than 1. All of one dtype, or f32 mixed with bf16 and f16 (out too); 16-bit floats
// are taken as f32 and rounded once, at the end. Integers wrap around; min and max of floats
// propagate NaN. At least one part. Runs on the calling thread alone.
extern Slot<void(void* out, DType dtype, std::span<const Part> parts, int64_t n, ReduceOp op,
                 double scale)>
    combine;

// As combine, with the result written to each of `outs`, all of the dtype; any of them may be one
// of the parts. At least one.
extern Slot<void(std::span<void* const> outs, DType dtype, std::span<const Part> parts, int64_t n,
                 ReduceOp op, double scale)>
    combine_to_all;

}  // namespace cairn::kernels
