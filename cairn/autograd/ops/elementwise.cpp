// Unary and binary elementwise ops: promotion, the kernel's call, and the rule that records it.
#include "cairn/autograd/ops/elementwise.h"

#include <cmath>
#include <limits>
#include <string_view>

#include "cairn/autograd/autocast.h"
#include "cairn/autograd/ops/elementwise_detail.h"
#include "cairn/autograd/ops/reduce.h"

namespace cairn {
namespace detail {

Tensor unary(const UnaryOp& op, const Tensor& x, kernels::Attributes attributes) {
  check_defined(op.name, x);
  if (!is_floating(x.dtype())) {
    if (!op.integers) return unary(op, raw::to(x, DType::f32), attributes);
    check(x.dtype() != DType::boolean, op.name, ": dtype must not be bool");
  }
  Tensor y = empty_like(x);
  op.fwd(x.device(), y, x, attributes);
  if (!recording(x)) return y;
  Saved saved;
  if (op.saves == functors::Saves::input) saved = Saved(x);
  if (op.saves == functors::Saves::output) saved = Saved(y);
  return record(op.name, std::move(y), {x},
                [saved = std::move(saved), name = op.name, &bwd = op.bwd, attributes](Grads& g) {
                  const Tensor& other = saved.defined() ? saved.get(name) : g.out();
                  bwd(g.out().device(), g.dst(0), g.out(), other, attributes);
                });
}

namespace {

// An operand kept for backward: a tensor, a number, or nothing.
struct SavedOperand {
  SavedOperand(const Argument& a, bool needed)
      : tensor(a.tensor && needed ? Saved(*a.tensor) : Saved()), number(a.scalar) {}
  kernels::Operand get(const char* op) const {
    if (tensor.defined()) return kernels::Operand(tensor.get(op));
    return kernels::Operand(number.as_double(), number.as_int());
  }
  Saved tensor;
  Scalar number;
};

kernels::Operand operand(const Argument& a) {
  if (a.tensor) return kernels::Operand(*a.tensor);
  return kernels::Operand(a.scalar.as_double(), a.scalar.as_int());
}

// Integer dtypes must be able to hold a number beside them.
void check_fits(const char* op, const Scalar& s, DType dtype) {
  if (s.kind() != Scalar::Kind::integer) return;
  const int64_t v = s.as_int();
  const bool fits = dtype == DType::i32  ? v == static_cast<int32_t>(v)
                    : dtype == DType::u8 ? v == static_cast<uint8_t>(v)
                                         : true;
  check(fits, op, ": number must fit ", dtype, ", got ", v);
}

void check_divisor(const BinaryOp& op, const Argument& b, DType dtype) {
  const bool divides = &op.fwd == &kernels::floor_divide_fwd || &op.fwd == &kernels::remainder_fwd;
  if (!divides || is_floating(dtype)) return;
  const bool zero = b.tensor ? any(eq(*b.tensor, 0)).item<bool>() : b.scalar.as_int() == 0;
  check(!zero, op.name, ": divisor must not be 0 for integers");
}

Tensor empty_binary(const char* op, DType dtype, const Argument& a, const Argument& b) {
  if (!a.tensor || !b.tensor) return empty_like(a.tensor ? *a.tensor : *b.tensor, dtype);
  check_same_device(op, *a.tensor, *b.tensor);
  const Shape& sa = a.tensor->shape();
  const Shape& sb = b.tensor->shape();
  if (sa == sb) return empty_result(sa, dtype, *a.tensor, b.tensor);
  return empty_result(broadcast_shapes(sa, sb, op), dtype, *a.tensor, b.tensor);
}

Tensor record_binary(const BinaryOp& op, Tensor y, const Argument& a, const Argument& b) {
  const Tensor none;
  const Tensor& ta = a.tensor ? *a.tensor : none;
  const Tensor& tb = b.tensor ? *b.tensor : none;
  if (!recording(ta) && !recording(tb)) return y;
  if (op.passes_on)
    return record(op.name, std::move(y), {ta, tb}, [](Grads& g) {
      g.give(0, g.out());
      g.give(1, g.out());
    });
  const int reads = (recording(ta) ? op.da_reads : 0) | (recording(tb) ? op.db_reads : 0);
  return record(
      op.name, std::move(y), {ta, tb},
      [sa = SavedOperand(a, reads & functors::kReadsA),
       sb = SavedOperand(b, reads & functors::kReadsB), name = op.name, &bwd = *op.bwd](Grads& g) {
        const kernels::Operand oa = sa.get(name);
        const kernels::Operand ob = sb.get(name);
        const Tensor& out = g.out();
        for (int i = 0; i < 2; ++i) {
          const auto u = static_cast<size_t>(i);
          if (!g.needs(u)) continue;
          if (g.shape(u) == out.shape()) {
            bwd(out.device(), g.dst(u), i, out, oa, ob);
            continue;
          }
          // A broadcast operand: its gradient in the output's shape first, then summed.
          const Tensor wide = empty_like(out);
          bwd(out.device(), Dst{wide, false}, i, out, oa, ob);
          g.give(u, wide);
        }
      });
}

}  // namespace

Tensor binary(const BinaryOp& op, const Argument& a, const Argument& b) {
  if (a.tensor) check_defined(op.name, *a.tensor);
  if (b.tensor) check_defined(op.name, *b.tensor);
  DType dtype = result_type(a, b);
  if (op.floating) dtype = to_floating(dtype);
  // What is converted to the result's dtype does not change that dtype.
  if (a.tensor && a.tensor->dtype() != dtype) return binary(op, to(*a.tensor, dtype), b);
  if (b.tensor && b.tensor->dtype() != dtype) return binary(op, a, to(*b.tensor, dtype));
  check_fits(op.name, a.tensor ? b.scalar : a.scalar, dtype);
  check_divisor(op, b, dtype);
  Tensor y = empty_binary(op.name, dtype, a, b);
  op.fwd(y.device(), y, operand(a), operand(b));
  return op.bwd ? record_binary(op, std::move(y), a, b) : y;
}

}  // namespace detail

// --- unary
// -------------------------------------------------------------------------------------------

namespace {

// Those of autocast's f32 list.
constexpr bool runs_in_f32(std::string_view op) {
  for (const std::string_view listed :
       {"exp", "expm1", "log", "log1p", "log2", "reciprocal", "rsqrt", "softplus", "tan"})
    if (op == listed) return true;
  return false;
}

}  // namespace

#define CAIRN_OP(name, Functor)                                                                  \
  Tensor name(const Tensor& x) {                                                                 \
    constexpr bool kWide = runs_in_f32(#name);                                                   \
    if (kWide && autocast::widens({x})) return name(autocast::widened(x));                       \
    return detail::unary(                                                                        \
        {#name, kernels::name##_fwd, kernels::name##_bwd, functors::Functor::kSaves, false}, x); \
  }
CAIRN_UNARY_FLOATING(CAIRN_OP)
#undef CAIRN_OP

#define CAIRN_OP(name, Functor)                                                                 \
  Tensor name(const Tensor& x) {                                                                \
    return detail::unary(                                                                       \
        {#name, kernels::name##_fwd, kernels::name##_bwd, functors::Functor::kSaves, true}, x); \
  }
CAIRN_UNARY_ANY(CAIRN_OP)
#undef CAIRN_OP

Tensor clamp(const Tensor& x, std::optional<double> min, std::optional<double> max) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  check(min.has_value() || max.has_value(), "clamp: min or max must be given");
  const double low = min.value_or(-kInfinity);
  const double high = max.value_or(kInfinity);
  detail::check_defined("clamp", x);
  if (!is_floating(x.dtype())) {
    // Bounds that are no integers make the result floating; open ends are the dtype's own.
    const bool whole = (!min || *min == std::floor(*min)) && (!max || *max == std::floor(*max));
    if (!whole) return clamp(raw::to(x, DType::f32), min, max);
    const double lowest = x.dtype() == DType::u8 ? 0 : x.dtype() == DType::i32 ? -0x1p31 : -0x1p63;
    const double highest = x.dtype() == DType::u8    ? 255
                           : x.dtype() == DType::i32 ? 0x1p31 - 1
                                                     : 0x1p63 - 1024;  // the last double below 2^63
    if (!max && x.dtype() == DType::i64) {
      // No double is the largest i64, so an open end there must not be a bound at all.
      return maximum(x, full({}, std::max(low, lowest), {DType::i64, x.device()}));
    }
    return detail::unary(
        {"clamp", kernels::clamp_fwd, kernels::clamp_bwd, functors::Clamp::kSaves, true}, x,
        {std::min(std::max(low, lowest), highest), std::max(std::min(high, highest), lowest)});
  }
  return detail::unary(
      {"clamp", kernels::clamp_fwd, kernels::clamp_bwd, functors::Clamp::kSaves, true}, x,
      {low, high});
}

Tensor leaky_relu(const Tensor& x, double negative_slope) {
  return detail::unary({"leaky_relu", kernels::leaky_relu_fwd, kernels::leaky_relu_bwd,
                        functors::LeakyRelu::kSaves, false},
                       x, {negative_slope, 0});
}

Tensor gelu(const Tensor& x, GeluApproximate approximate) {
  if (approximate == GeluApproximate::tanh)
    return detail::unary(
        {"gelu", kernels::gelu_tanh_fwd, kernels::gelu_tanh_bwd, functors::GeluTanh::kSaves, false},
        x);
  return detail::unary(
      {"gelu", kernels::gelu_erf_fwd, kernels::gelu_erf_bwd, functors::GeluErf::kSaves, false}, x);
}

// --- binary
// ------------------------------------------------------------------------------------------

namespace {

template <class F>
constexpr detail::BinaryOp described(const char* name, const kernels::BinaryFwd& fwd,
                                     const kernels::BinaryBwd& bwd, bool floating = false) {
  return {name, fwd, &bwd, F::kDaReads, F::kDbReads, floating, std::is_same_v<F, functors::Add>};
}

constexpr detail::BinaryOp kAdd =
    described<functors::Add>("add", kernels::add_fwd, kernels::add_bwd);
constexpr detail::BinaryOp kSub =
    described<functors::Sub>("sub", kernels::sub_fwd, kernels::sub_bwd);
constexpr detail::BinaryOp kMul =
    described<functors::Mul>("mul", kernels::mul_fwd, kernels::mul_bwd);
constexpr detail::BinaryOp kDiv =
    described<functors::Div>("div", kernels::div_fwd, kernels::div_bwd, true);
constexpr detail::BinaryOp kPow =
    described<functors::Pow>("pow", kernels::pow_fwd, kernels::pow_bwd);
constexpr detail::BinaryOp kMaximum =
    described<functors::Maximum>("maximum", kernels::maximum_fwd, kernels::maximum_bwd);
constexpr detail::BinaryOp kMinimum =
    described<functors::Minimum>("minimum", kernels::minimum_fwd, kernels::minimum_bwd);
constexpr detail::BinaryOp kRemainder =
    described<functors::Remainder>("remainder", kernels::remainder_fwd, kernels::remainder_bwd);
constexpr detail::BinaryOp kFloorDivide{"floor_divide", kernels::floor_divide_fwd, nullptr};

void check_not_bool(const char* op, const Tensor& x) {
  check(!x.defined() || x.dtype() != DType::boolean, op, ": dtype must not be bool");
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) { return detail::binary(kAdd, a, b); }
Tensor add(const Tensor& a, Scalar b) { return detail::binary(kAdd, a, b); }
Tensor sub(const Tensor& a, const Tensor& b) {
  check_not_bool("sub", a);
  check_not_bool("sub", b);
  return detail::binary(kSub, a, b);
}
Tensor sub(const Tensor& a, Scalar b) {
  check_not_bool("sub", a);
  return detail::binary(kSub, a, b);
}
Tensor sub(Scalar a, const Tensor& b) {
  check_not_bool("sub", b);
  return detail::binary(kSub, a, b);
}
Tensor mul(const Tensor& a, const Tensor& b) { return detail::binary(kMul, a, b); }
Tensor mul(const Tensor& a, Scalar b) { return detail::binary(kMul, a, b); }
Tensor div(const Tensor& a, const Tensor& b) { return detail::binary(kDiv, a, b); }
Tensor div(const Tensor& a, Scalar b) { return detail::binary(kDiv, a, b); }
Tensor div(Scalar a, const Tensor& b) { return detail::binary(kDiv, a, b); }
Tensor maximum(const Tensor& a, const Tensor& b) { return detail::binary(kMaximum, a, b); }
Tensor minimum(const Tensor& a, const Tensor& b) { return detail::binary(kMinimum, a, b); }
Tensor remainder(const Tensor& a, const Tensor& b) { return detail::binary(kRemainder, a, b); }
Tensor remainder(const Tensor& a, Scalar b) { return detail::binary(kRemainder, a, b); }
Tensor floor_divide(const Tensor& a, const Tensor& b) { return detail::binary(kFloorDivide, a, b); }
Tensor floor_divide(const Tensor& a, Scalar b) { return detail::binary(kFloorDivide, a, b); }
Tensor pow(const Tensor& a, const Tensor& b) {
  if (autocast::widens({a, b})) return pow(autocast::widened(a), autocast::widened(b));
  return detail::binary(kPow, a, b);
}

Tensor pow(const Tensor& a, Scalar b) {
  // The usual exponents have kernels of their own, without a call of pow per element.
  detail::check_defined("pow", a);
  if (autocast::widens({a})) return pow(autocast::widened(a), b);
  if (is_floating(a.dtype())) {
    if (b.as_double() == 2) return square(a);
    if (b.as_double() == 0.5) return sqrt(a);
    if (b.as_double() == -1) return reciprocal(a);
  } else if (b.kind() == Scalar::Kind::integer) {
    check(b.as_int() >= 0, "pow: exponent must not be negative for integers, got ", b.as_int());
  }
  return detail::binary(kPow, a, b);
}

// --- conversion
// --------------------------------------------------------------------------------------

Tensor to(const Tensor& x, DType dtype) {
  detail::check_defined("to", x);
  if (x.dtype() == dtype) return x;
  const Tensor y = raw::to(x, dtype);
  if (!is_floating(dtype)) return y;
  return record("to", y, {x}, [](Grads& g) { g.give(0, g.out()); });
}

Tensor to(const Tensor& x, Device device) {
  detail::check_defined("to", x);
  if (x.device() == device) return x;
  const Tensor y = raw::to(x, x.dtype(), device);
  if (!is_floating(x.dtype())) return y;
  return record("to", y, {x}, [home = x.device()](Grads& g) {
    g.give(0, raw::to(g.out(), g.out().dtype(), home));
  });
}

}  // namespace cairn
