// Elementwise ops with a gradient. Shapes broadcast and dtypes promote as PyTorch's do.
#pragma once

#include <concepts>
#include <optional>

#include "cairn/tensor/tensor.h"

namespace cairn {

// A number of the program beside a tensor: it takes part in promotion by kind only (bool < integer
// < floating), never by width.
class Scalar {
 public:
  Scalar(double v) : f_(v), i_(static_cast<int64_t>(0)), kind_(Kind::floating) {}
  template <std::integral I>
  Scalar(I v)
      : f_(static_cast<double>(v)),
        i_(static_cast<int64_t>(v)),
        kind_(std::same_as<I, bool> ? Kind::boolean : Kind::integer) {}
  enum class Kind { boolean, integer, floating };
  Kind kind() const { return kind_; }
  double as_double() const { return f_; }
  // 0 for a floating number that no int64 holds.
  int64_t as_int() const {
    if (kind_ != Kind::floating) return i_;
    return f_ >= -0x1p63 && f_ < 0x1p63 ? static_cast<int64_t>(f_) : 0;
  }

 private:
  double f_;
  int64_t i_;
  Kind kind_;
};

// dtype of an op over both (torch.result_type): dimensioned tensors beat 0-d ones beat scalars
// within the same kind.
DType result_type(const Tensor& a, const Tensor& b);
DType result_type(const Tensor& a, Scalar b);

// --- binary arithmetic
// -----------------------------------------------------------------------------
Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
// True division: integers give f32.
Tensor div(const Tensor& a, const Tensor& b);
Tensor pow(const Tensor& a, const Tensor& b);
Tensor maximum(const Tensor& a, const Tensor& b);  // NaN wins; a tie splits the gradient in half
Tensor minimum(const Tensor& a, const Tensor& b);
// Remainder with the divisor's sign, and division rounded down; no gradient through floor_divide.
Tensor remainder(const Tensor& a, const Tensor& b);
Tensor floor_divide(const Tensor& a, const Tensor& b);

Tensor add(const Tensor& a, Scalar b);
Tensor sub(const Tensor& a, Scalar b);
Tensor mul(const Tensor& a, Scalar b);
Tensor div(const Tensor& a, Scalar b);
Tensor pow(const Tensor& a, Scalar b);
Tensor sub(Scalar a, const Tensor& b);
Tensor div(Scalar a, const Tensor& b);
Tensor remainder(const Tensor& a, Scalar b);
Tensor floor_divide(const Tensor& a, Scalar b);

inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
inline Tensor operator+(const Tensor& a, Scalar b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, Scalar b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, Scalar b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, Scalar b) { return div(a, b); }
inline Tensor operator+(Scalar a, const Tensor& b) { return add(b, a); }
inline Tensor operator-(Scalar a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(Scalar a, const Tensor& b) { return mul(b, a); }
inline Tensor operator/(Scalar a, const Tensor& b) { return div(a, b); }

// --- unary maths: integers and bool give f32 where the result is not an integer
// ---------------------
Tensor neg(const Tensor& x);
inline Tensor operator-(const Tensor& x) { return neg(x); }
Tensor abs(const Tensor& x);
Tensor sign(const Tensor& x);
Tensor exp(const Tensor& x);
Tensor expm1(const Tensor& x);
Tensor log(const Tensor& x);
Tensor log1p(const Tensor& x);
Tensor log2(const Tensor& x);
Tensor sqrt(const Tensor& x);
Tensor rsqrt(const Tensor& x);
Tensor square(const Tensor& x);
Tensor reciprocal(const Tensor& x);
Tensor sin(const Tensor& x);
Tensor cos(const Tensor& x);
Tensor tan(const Tensor& x);
Tensor erf(const Tensor& x);
Tensor floor(const Tensor& x);  // gradient 0, as ceil, round, trunc
Tensor ceil(const Tensor& x);
Tensor round(const Tensor& x);  // halves to even
Tensor trunc(const Tensor& x);
// Absent bounds are open; NaN stays NaN; the gradient is 0 on a bound, as PyTorch's.
Tensor clamp(const Tensor& x, std::optional<double> min, std::optional<double> max);

// --- activations
// -------------------------------------------------------------------------------------
enum class GeluApproximate { none, tanh };
Tensor relu(const Tensor& x);
Tensor leaky_relu(const Tensor& x, double negative_slope = 0.01);
Tensor sigmoid(const Tensor& x);
Tensor tanh(const Tensor& x);
Tensor silu(const Tensor& x);
Tensor gelu(const Tensor& x, GeluApproximate approximate = GeluApproximate::none);
Tensor softplus(const Tensor& x);  // log(1 + exp(x)), beta 1

// --- comparison, logic, choice
// -----------------------------------------------------------------------
Tensor eq(const Tensor& a, const Tensor& b);  // bool, no gradient
Tensor ne(const Tensor& a, const Tensor& b);
Tensor lt(const Tensor& a, const Tensor& b);
Tensor le(const Tensor& a, const Tensor& b);
Tensor gt(const Tensor& a, const Tensor& b);
Tensor ge(const Tensor& a, const Tensor& b);
Tensor eq(const Tensor& a, Scalar b);
Tensor ne(const Tensor& a, Scalar b);
Tensor lt(const Tensor& a, Scalar b);
Tensor le(const Tensor& a, Scalar b);
Tensor gt(const Tensor& a, Scalar b);
Tensor ge(const Tensor& a, Scalar b);
Tensor logical_and(const Tensor& a, const Tensor& b);
Tensor logical_or(const Tensor& a, const Tensor& b);
Tensor logical_not(const Tensor& x);
Tensor isnan(const Tensor& x);
Tensor isfinite(const Tensor& x);
// condition is bool; all three broadcast.
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b);
Tensor masked_fill(const Tensor& x, const Tensor& mask, double value);

// --- conversion
// ----------------------------------------------------------------------------------------
Tensor to(const Tensor& x, DType dtype);
Tensor to(const Tensor& x, Device device);

// --- in place: recorded where autograd allows (not on leaves that require a gradient, nor views)
// -----
const Tensor& add_(const Tensor& self, const Tensor& other, double alpha = 1);
const Tensor& mul_(const Tensor& self, const Tensor& other);
const Tensor& add_(const Tensor& self, Scalar other);
const Tensor& mul_(const Tensor& self, Scalar other);
const Tensor& relu_(const Tensor& self);
const Tensor& zero_(const Tensor& self);
const Tensor& fill_(const Tensor& self, double value);
const Tensor& copy_(const Tensor& self, const Tensor& source);

}  // namespace cairn
