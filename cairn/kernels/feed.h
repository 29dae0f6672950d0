// Slots that feed a training step from data on its own device, and that gather what it logs.
// Invariant: a batch equals, bit for bit, what the data loader's collate makes of the same samples;
// which samples it has stands in device memory, so that a captured step goes on by itself.
#pragma once

#include <cstdint>

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// x[b, c, h, w] = table[c, bytes[order[cursor + b], h, w(, c)]].
// x: f32 or bf16 [B, C, H, W], dense in any order of dimensions. bytes: u8 [N, H, W] (C = 1) or
// [N, H, W, C], any strides. table: f32 [C, 256], contiguous. order: i64 [M], contiguous; cursor:
// i64 0-d, with cursor + B <= M. Every entry of order is in [0, N).
extern Slot<void(Out x, In bytes, In table, In order, In cursor)> gather_images;

// y[b] = rows[order[cursor + b]], of one dtype, both contiguous: y [B, …], rows [N, …].
extern Slot<void(Out y, In rows, In order, In cursor)> gather_rows;

// cursor (i64 0-d) += by.
extern Slot<void(Out cursor, int64_t by)> advance_cursor;

// How the values of a run become one number.
enum class Running : uint8_t { weighted_sum, sum, min, max };
// total (f64 0-d), with value (one element of any dtype, as f64):
//   weighted_sum: total + value weight;  sum: total + value
//   min, max: value where it is NaN, else the smaller (larger) of total and value
// with one rounding an operation.
extern Slot<void(Out total, In value, Running how, double weight)> accumulate;

}  // namespace cairn::kernels
