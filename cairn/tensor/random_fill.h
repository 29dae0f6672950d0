// Filling a stretch of memory with random f32 numbers, as vectors.
// Invariant: word i of the stream from `offset` on (philox_word) decides element i, or its pair, so
// that a draw cut at multiples of 4 gives the same numbers.
#pragma once

#include <cstdint>

namespace cairn::detail {

// out[i - begin] = the 24 high bits of word i as a number in [0, 1), for i in [begin, end).
// begin is a multiple of 4.
void fill_uniform(float* out, int64_t begin, int64_t end, uint64_t seed, uint64_t offset);

// mean + std * z with z standard normal: Box and Muller 1958 on words 2j (radius) and 2j + 1
// (angle) for elements 2j and 2j + 1. begin is a multiple of 4. |z| is at most 6.7: the smallest
// radius word stands for 2^-32.
void fill_normal(float* out, int64_t begin, int64_t end, uint64_t seed, uint64_t offset, float mean,
                 float std);

}  // namespace cairn::detail
