// Reductions. An empty list of dimensions means all of them. Sums of bf16 and f16 are kept in f32,
// of integers in i64; one order of summation for every thread count.
#pragma once

#include <utility>

#include "cairn/tensor/tensor.h"

namespace cairn {

// bool and integers sum to i64.
Tensor sum(const Tensor& x, const Shape& dims = {}, bool keepdim = false);
// Floating only.
Tensor mean(const Tensor& x, const Shape& dims = {}, bool keepdim = false);
Tensor prod(const Tensor& x);
Tensor prod(const Tensor& x, int64_t dim, bool keepdim = false);
// Divides by n - correction; floating only.
Tensor var(const Tensor& x, const Shape& dims = {}, int64_t correction = 1, bool keepdim = false);
Tensor std(const Tensor& x, const Shape& dims = {}, int64_t correction = 1, bool keepdim = false);
// The gradient is shared equally among ties. Empty inputs are an error.
Tensor amax(const Tensor& x, const Shape& dims = {}, bool keepdim = false);
Tensor amin(const Tensor& x, const Shape& dims = {}, bool keepdim = false);
// Values and i64 indices (of the first extreme) along dim; the gradient goes to that index.
std::pair<Tensor, Tensor> max(const Tensor& x, int64_t dim, bool keepdim = false);
std::pair<Tensor, Tensor> min(const Tensor& x, int64_t dim, bool keepdim = false);
// i64; first of ties; NaN counts as the largest (argmax) and the smallest (argmin).
Tensor argmax(const Tensor& x);
Tensor argmax(const Tensor& x, int64_t dim, bool keepdim = false);
Tensor argmin(const Tensor& x);
Tensor argmin(const Tensor& x, int64_t dim, bool keepdim = false);
Tensor any(const Tensor& x);  // bool, 0-d
Tensor all(const Tensor& x);
Tensor logsumexp(const Tensor& x, int64_t dim, bool keepdim = false);
Tensor logsumexp(const Tensor& x, const Shape& dims, bool keepdim = false);
Tensor cumsum(const Tensor& x, int64_t dim);
// Euclidean norm of all elements, 0-d.
Tensor norm(const Tensor& x);

// Along dim; softmax of a row of -inf is NaN, as PyTorch's.
Tensor softmax(const Tensor& x, int64_t dim);
Tensor log_softmax(const Tensor& x, int64_t dim);

}  // namespace cairn
