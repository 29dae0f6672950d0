// Views with a gradient, and ops that pick, join and sort.
#pragma once

#include <concepts>
#include <span>
#include <utility>
#include <vector>

#include "cairn/tensor/tensor.h"

namespace cairn {

// --- views: share the memory; the gradient flows back into the viewed part
// -------------------------
Tensor view(const Tensor& x, const Shape& shape);
Tensor reshape(const Tensor& x, const Shape& shape);
Tensor flatten(const Tensor& x, int64_t start_dim = 0, int64_t end_dim = -1);
Tensor permute(const Tensor& x, const Shape& dims);
Tensor transpose(const Tensor& x, int64_t dim0, int64_t dim1);
Tensor slice(const Tensor& x, int64_t dim, int64_t start, int64_t end, int64_t step = 1);
Tensor narrow(const Tensor& x, int64_t dim, int64_t start, int64_t length);
Tensor select(const Tensor& x, int64_t dim, int64_t index);
Tensor expand(const Tensor& x, const Shape& shape);
Tensor squeeze(const Tensor& x, int64_t dim);
Tensor squeeze(const Tensor& x);
Tensor unsqueeze(const Tensor& x, int64_t dim);
Tensor contiguous(const Tensor& x);
Tensor clone(const Tensor& x);
std::vector<Tensor> split(const Tensor& x, int64_t size, int64_t dim = 0);
std::vector<Tensor> chunk(const Tensor& x, int64_t chunks, int64_t dim = 0);

// --- picking
// -------------------------------------------------------------------------------------------
// index: 1-d i64 or i32; negative or too large entries are errors that name position and value.
Tensor index_select(const Tensor& x, int64_t dim, const Tensor& index);
// index: i64, as many dimensions as x, no larger than x but in `dim`.
Tensor gather(const Tensor& x, int64_t dim, const Tensor& index);
// x with src added at the indices gather would read.
Tensor scatter_add(const Tensor& x, int64_t dim, const Tensor& index, const Tensor& src);
// Values and i64 indices, sorted from the largest (or smallest); ties in order of index.
std::pair<Tensor, Tensor> topk(const Tensor& x, int64_t k, int64_t dim = -1, bool largest = true);
std::pair<Tensor, Tensor> sort(const Tensor& x, int64_t dim = -1, bool descending = false);
Tensor argsort(const Tensor& x, int64_t dim = -1, bool descending = false);
// i64 [count, rank]: the indices of elements that are not zero, row-major.
Tensor nonzero(const Tensor& x);

// --- joining
// -------------------------------------------------------------------------------------------
// dtypes promote; shapes must agree but in dim.
Tensor cat(std::span<const Tensor> tensors, int64_t dim = 0);
Tensor cat(std::initializer_list<Tensor> tensors, int64_t dim = 0);
// Any list of tensors; closer than the text-building cat of error.h, which would take it otherwise.
template <class List>
requires std::convertible_to<const List&, std::span<const Tensor>> Tensor cat(const List& tensors) {
  return cat(std::span<const Tensor>(tensors), int64_t{0});
}
template <class List, std::integral Dim>
requires std::convertible_to<const List&, std::span<const Tensor>> Tensor cat(const List& tensors,
                                                                              Dim dim) {
  return cat(std::span<const Tensor>(tensors), static_cast<int64_t>(dim));
}
Tensor stack(std::span<const Tensor> tensors, int64_t dim = 0);
Tensor stack(std::initializer_list<Tensor> tensors, int64_t dim = 0);
// 0 off the triangle; the diagonal counts from the main one.
Tensor tril(const Tensor& x, int64_t diagonal = 0);
Tensor triu(const Tensor& x, int64_t diagonal = 0);
// i64 classes -> i64 [..., num_classes] of 0 and 1.
Tensor one_hot(const Tensor& classes, int64_t num_classes);

}  // namespace cairn
