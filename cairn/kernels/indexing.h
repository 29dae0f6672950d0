// Slots of picking, sorting and triangles.
// Invariant: indices were checked by the op (check_index); where several indices name one element,
// contributions are added in the order of the indices. On a device that works asynchronously the
// check's error comes later than the kernels that use the indices, so those must stay inside memory
// whatever an index holds; what they write for a wrong one is nobody's business.
#pragma once

#include <string>
#include <string_view>

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// Throws index_error for the first entry (row-major) of index (i64 or i32, any strides) outside
// [0, size). A device that works asynchronously throws the same error where the host next waits for
// it. op and what are string literals.
extern Slot<void(std::string_view op, std::string_view what, In index, int64_t size)> check_index;

// "op: what must be in [0, size), got I at position P" for entry `flat` (row-major) of an index of
// this shape; P is "2" for 1-d and "[0, 2]" else.
std::string index_error(std::string_view op, std::string_view what, int64_t size, int64_t value,
                        const Shape& shape, int64_t flat);

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
