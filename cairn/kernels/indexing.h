// Slots of picking, sorting and triangles.
// Invariant: indices were checked by the op (first_invalid); where several indices name one
// element, contributions are added in the order of the indices.
#pragma once

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// Looks for the first entry (row-major) of index (i64 or i32) outside [0, size): its position, or
// -1, and its value.
extern Slot<void(In index, int64_t size, int64_t& position, int64_t& value)> first_invalid;

// y[o, k, :] = x[o, index[k], :], all contiguous: x [outer, n, inner], y [outer, count, inner];
// index 1-d i64 or i32, contiguous.
extern Slot<void(Out y, In x, In index, int64_t outer, int64_t n, int64_t inner)> index_select_fwd;
// dx[o, index[k], :] += g[o, k, :], shapes as above; dx already holds numbers.
extern Slot<void(Out dx, In g, In index, int64_t outer, int64_t n, int64_t inner)> index_add;

// y = x at index along dim; index (i64) has y's shape.
extern Slot<void(Out y, In x, int64_t dim, In index)> gather_fwd;
// y at index along dim += src; src's shape is at least index's. y already holds numbers.
extern Slot<void(Out y, int64_t dim, In index, In src)> scatter_add;

// Rows of x [rows, n], contiguous, to values and indices [rows, k], contiguous: the k first in
// order. k == n is a full sort. NaN counts as the largest; ties in order of index.
extern Slot<void(Out values, Out indices, In x, bool descending)> top_rows;

// Number of elements that are not zero, and their indices [count, rank], row-major order.
extern Slot<void(In x, int64_t& count)> count_nonzero;
extern Slot<void(Out indices, In x)> nonzero_fwd;

// y = x where column - row <= diagonal (upper: >=), else 0; over the last two dimensions.
extern Slot<void(Out y, In x, int64_t diagonal, bool upper)> triangle_fwd;
// y (i64, contiguous, zero) gets 1 at each class; classes i64, contiguous.
extern Slot<void(Out y, In classes, int64_t num_classes)> one_hot_fwd;

}  // namespace cairn::kernels
