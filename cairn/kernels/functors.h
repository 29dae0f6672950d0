// The scalar functions behind elementwise ops, for every device, and the lists of their rows.
// Invariant: a functor is pure arithmetic on values of the compute type (f32 for bf16 and f16); it
// names what its derivative reads, so that an op saves that and nothing else.
//
// Adding a unary op: write its functor and its row here, declare the op in
// autograd/ops/elementwise.h, add its line to check/elementwise.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cairn/kernels/fast_math.h"

namespace cairn::functors {

// What a unary derivative reads beside the gradient.
enum class Saves { nothing, input, output };
// Which operands a binary derivative reads: a sum of these bits.
constexpr int kReadsA = 1;
constexpr int kReadsB = 2;

// Numbers an op is called with, in the compute type.
template <class T>
struct Numbers {
  T a{};
  T b{};
};

// What functors inherit: SavesX for unary ones, Reads<da's, db's> for binary ones.
struct SavesNothing {
  static constexpr Saves kSaves = Saves::nothing;
};
struct SavesInput {
  static constexpr Saves kSaves = Saves::input;
};
struct SavesOutput {
  static constexpr Saves kSaves = Saves::output;
};
template <int kA, int kB>
struct Reads {
  static constexpr int kDaReads = kA;
  static constexpr int kDbReads = kB;
};

// Arithmetic of integers wraps around; bool counts as 0 and 1.
template <class T>
CAIRN_INLINE T wrapping(auto op, T a, T b) {
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
    // Through u64: narrower unsigned types would be promoted back to a signed int.
    return static_cast<T>(op(static_cast<uint64_t>(a), static_cast<uint64_t>(b)));
  } else {
    return static_cast<T>(op(a, b));
  }
}
CAIRN_INLINE auto negated(auto x) {
  return wrapping([](auto a, auto b) { return a - b; }, decltype(x)(0), x);
}
CAIRN_INLINE auto product(auto a, auto b) {
  return wrapping([](auto p, auto q) { return p * q; }, a, b);
}

// --- unary: f(x [, numbers]), and df(g, saved [, numbers]) = g times the derivative
// --------------------

struct Neg : SavesNothing {
  static CAIRN_INLINE auto f(auto x) {
    if constexpr (std::is_floating_point_v<decltype(x)>)
      return -x;
    else
      return negated(x);
  }
  static CAIRN_INLINE auto df(auto g, auto) { return -g; }
};

struct Abs : SavesInput {
  static CAIRN_INLINE auto f(auto x) {
    if constexpr (std::is_floating_point_v<decltype(x)>)
      return std::fabs(x);
    else
      return x < 0 ? negated(x) : x;
  }
  static CAIRN_INLINE auto df(auto g, auto x) {
    return fast::select(x > 0, g, fast::select(x < 0, -g, g * 0));
  }
};

struct Sign : SavesNothing {  // 0 for NaN
  static CAIRN_INLINE auto f(auto x) { return static_cast<decltype(x)>((0 < x) - (x < 0)); }
  static CAIRN_INLINE auto df(auto g, auto) { return decltype(g)(0); }
};

struct Exp : SavesOutput {
  static CAIRN_INLINE auto f(auto x) { return fast::exp(x); }
  static CAIRN_INLINE auto df(auto g, auto y) { return g * y; }
};

struct Expm1 : SavesOutput {
  static CAIRN_INLINE auto f(auto x) { return fast::expm1(x); }
  static CAIRN_INLINE auto df(auto g, auto y) { return g * (y + 1); }
};

struct Log : SavesInput {
  static CAIRN_INLINE auto f(auto x) { return fast::log(x); }
  static CAIRN_INLINE auto df(auto g, auto x) { return g / x; }
};

struct Log1p : SavesInput {
  static CAIRN_INLINE auto f(auto x) { return fast::log1p(x); }
  static CAIRN_INLINE auto df(auto g, auto x) { return g / (x + 1); }
};

struct Log2 : SavesInput {
  static CAIRN_INLINE auto f(auto x) { return fast::log2(x); }
  static CAIRN_INLINE auto df(auto g, auto x) {
    return g / (x * decltype(x)(0.69314718055994530942));  // log 2
  }
};

struct Sqrt : SavesOutput {
  static CAIRN_INLINE auto f(auto x) { return std::sqrt(x); }
  static CAIRN_INLINE auto df(auto g, auto y) { return g / (2 * y); }
};

struct Rsqrt : SavesOutput {
  static CAIRN_INLINE auto f(auto x) { return 1 / std::sqrt(x); }
  static CAIRN_INLINE auto df(auto g, auto y) { return -g / 2 * y * y * y; }
};

struct Square : SavesInput {
  static CAIRN_INLINE auto f(auto x) { return product(x, x); }
  static CAIRN_INLINE auto df(auto g, auto x) { return g * (2 * x); }
};

struct Reciprocal : SavesOutput {
  static CAIRN_INLINE auto f(auto x) { return 1 / x; }
  static CAIRN_INLINE auto df(auto g, auto y) { return -g * y * y; }
};

struct Sin : SavesInput {
  static CAIRN_INLINE auto f(auto x) { return std::sin(x); }
  static CAIRN_INLINE auto df(auto g, auto x) { return g * std::cos(x); }
};

struct Cos : SavesInput {
  static CAIRN_INLINE auto f(auto x) { return std::cos(x); }
  static CAIRN_INLINE auto df(auto g, auto x) { return -g * std::sin(x); }
};

struct Tan : SavesOutput {
  static CAIRN_INLINE auto f(auto x) { return std::tan(x); }
  static CAIRN_INLINE auto df(auto g, auto y) { return g * (1 + y * y); }
};

struct Erf : SavesInput {
  static CAIRN_INLINE auto f(auto x) { return fast::erf(x); }
  static CAIRN_INLINE auto df(auto g, auto x) {
    return g * (decltype(x)(1.12837916709551257390) * fast::exp(-x * x));  // 2 / sqrt(pi)
  }
};

// Steps: their derivative is 0 wherever they have one.
struct Step : SavesNothing {
  static CAIRN_INLINE auto df(auto g, auto) { return decltype(g)(0); }
};

struct Floor : Step {
  static CAIRN_INLINE auto f(auto x) {
    if constexpr (std::is_integral_v<decltype(x)>)
      return x;
    else
      return std::floor(x);
  }
};

struct Ceil : Step {
  static CAIRN_INLINE auto f(auto x) {
    if constexpr (std::is_integral_v<decltype(x)>)
      return x;
    else
      return std::ceil(x);
  }
};

struct Round : Step {  // halves to even, the mode the processor starts in
  static CAIRN_INLINE auto f(auto x) {
    if constexpr (std::is_integral_v<decltype(x)>)
      return x;
    else
      return std::nearbyint(x);
  }
};

struct Trunc : Step {
  static CAIRN_INLINE auto f(auto x) {
    if constexpr (std::is_integral_v<decltype(x)>)
      return x;
    else
      return std::trunc(x);
  }
};

struct Relu : SavesOutput {  // NaN passes through, in both directions
  static CAIRN_INLINE auto f(auto x) { return x < 0 ? decltype(x)(0) : x; }
  static CAIRN_INLINE auto df(auto g, auto y) { return y <= 0 ? decltype(g)(0) : g; }
};

struct Sigmoid : SavesOutput {
  static CAIRN_INLINE auto f(auto x) { return fast::sigmoid(x); }
  static CAIRN_INLINE auto df(auto g, auto y) { return g * ((1 - y) * y); }
};

struct Tanh : SavesOutput {
  static CAIRN_INLINE auto f(auto x) { return fast::tanh(x); }
  static CAIRN_INLINE auto df(auto g, auto y) { return g * (1 - y * y); }
};

struct Silu : SavesInput {
  static CAIRN_INLINE auto f(auto x) { return x / (1 + fast::exp(-x)); }
  static CAIRN_INLINE auto df(auto g, auto x) {
    const auto s = fast::sigmoid(x);
    return g * (s * (1 + x * (1 - s)));
  }
};

struct GeluErf : SavesInput {
  static CAIRN_INLINE auto f(auto x) { return x * fast::normal_cdf(x); }
  static CAIRN_INLINE auto df(auto g, auto x) {
    const auto density = decltype(x)(0.39894228040143267794) * fast::exp(-x * x / 2);
    return g * (fast::normal_cdf(x) + x * density);
  }
};

struct GeluTanh : SavesInput {
  static constexpr double kScale = 0.79788456080286535588;  // sqrt(2 / pi)
  static constexpr double kCubic = 0.044715;
  static CAIRN_INLINE auto inner(auto x) {
    return decltype(x)(kScale) * (x + decltype(x)(kCubic) * x * x * x);
  }
  static CAIRN_INLINE auto f(auto x) { return x / 2 * (1 + fast::tanh(inner(x))); }
  static CAIRN_INLINE auto df(auto g, auto x) {
    const auto t = fast::tanh(inner(x));
    const auto slope = decltype(x)(kScale) * (1 + decltype(x)(3 * kCubic) * x * x);
    return g * ((1 + t) / 2 + x / 2 * (1 - t * t) * slope);
  }
};

struct Softplus : SavesInput {  // written so that neither end overflows
  static CAIRN_INLINE auto f(auto x) {
    return fast::select(x < 0, decltype(x)(0), x) + fast::log1p(fast::exp(-std::fabs(x)));
  }
  static CAIRN_INLINE auto df(auto g, auto x) { return g * fast::sigmoid(x); }
};

struct LeakyRelu : SavesInput {  // a: the slope below 0
  static CAIRN_INLINE auto f(auto x, auto p) { return fast::select(x > 0, x, x * p.a); }
  static CAIRN_INLINE auto df(auto g, auto x, auto p) { return fast::select(x > 0, g, g * p.a); }
};

// To [a, b]; where they cross, b wins. At a bound the slope is 0, as in PyTorch 2.15.
struct Clamp : SavesInput {
  static CAIRN_INLINE auto f(auto x, auto p) {
    const auto raised = x < p.a ? p.a : x;
    return raised > p.b ? p.b : raised;
  }
  static CAIRN_INLINE auto df(auto g, auto x, auto p) {
    // An infinite bound is an open end: an infinity there keeps its slope.
    constexpr auto kInfinity = std::numeric_limits<decltype(x)>::infinity();
    const bool above = (x > p.a) | (p.a == -kInfinity);
    const bool below = (x < p.b) | (p.b == kInfinity);
    return (above & below) ? g : decltype(g)(0);
  }
};

// --- binary: f(a, b), and da / db = g times the derivative by that operand
// -----------------------------

struct Add : Reads<0, 0> {
  static CAIRN_INLINE auto f(auto a, auto b) {
    return wrapping([](auto p, auto q) { return p + q; }, a, b);
  }
  static CAIRN_INLINE auto da(auto g, auto, auto) { return g; }
  static CAIRN_INLINE auto db(auto g, auto, auto) { return g; }
};

struct Sub : Reads<0, 0> {
  static CAIRN_INLINE auto f(auto a, auto b) {
    return wrapping([](auto p, auto q) { return p - q; }, a, b);
  }
  static CAIRN_INLINE auto da(auto g, auto, auto) { return g; }
  static CAIRN_INLINE auto db(auto g, auto, auto) { return -g; }
};

struct Mul : Reads<kReadsB, kReadsA> {
  static CAIRN_INLINE auto f(auto a, auto b) { return product(a, b); }
  static CAIRN_INLINE auto da(auto g, auto, auto b) { return g * b; }
  static CAIRN_INLINE auto db(auto g, auto a, auto) { return g * a; }
};

struct Div : Reads<kReadsB, kReadsA | kReadsB> {  // floating only
  static CAIRN_INLINE auto f(auto a, auto b) { return a / b; }
  static CAIRN_INLINE auto da(auto g, auto, auto b) { return g / b; }
  static CAIRN_INLINE auto db(auto g, auto a, auto b) { return -g * ((a / b) / b); }
};

struct Pow : Reads<kReadsA | kReadsB, kReadsA | kReadsB> {
  template <class T>
  static CAIRN_INLINE T f(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      return std::pow(a, b);
    } else {
      if (b < T(0)) return a == T(1) ? T(1) : a == T(-1) ? (b % T(2) == 0 ? T(1) : T(-1)) : T(0);
      T result = T(1);
      for (; b > T(0); b = static_cast<T>(b / 2)) {
        if (b % 2 != 0) result = product(result, a);
        a = product(a, a);
      }
      return result;
    }
  }
  static CAIRN_INLINE auto da(auto g, auto a, auto b) {
    return b == 0 ? decltype(g)(0) : g * (b * std::pow(a, b - 1));
  }
  static CAIRN_INLINE auto db(auto g, auto a, auto b) {
    return a == 0 && b >= 0 ? decltype(g)(0) : g * (std::pow(a, b) * std::log(a));
  }
};

// g, halved where a and b are equal, 0 where the other one won. NaN wins for both.
CAIRN_INLINE auto winner_share(auto g, bool lost, bool tie) {
  return fast::select(lost, decltype(g)(0), fast::select(tie, g / 2, g));
}

struct Maximum : Reads<kReadsA | kReadsB, kReadsA | kReadsB> {
  static CAIRN_INLINE auto f(auto a, auto b) { return ((a > b) | (a != a)) ? a : b; }
  static CAIRN_INLINE auto da(auto g, auto a, auto b) { return winner_share(g, a < b, a == b); }
  static CAIRN_INLINE auto db(auto g, auto a, auto b) { return winner_share(g, a > b, a == b); }
};

struct Minimum : Reads<kReadsA | kReadsB, kReadsA | kReadsB> {
  static CAIRN_INLINE auto f(auto a, auto b) { return ((a < b) | (a != a)) ? a : b; }
  static CAIRN_INLINE auto da(auto g, auto a, auto b) { return winner_share(g, a > b, a == b); }
  static CAIRN_INLINE auto db(auto g, auto a, auto b) { return winner_share(g, a < b, a == b); }
};

struct FloorDivide : Reads<0, 0> {  // integers: the divisor is not 0
  template <class T>
  static CAIRN_INLINE T f(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      if (b == T(0)) return a / b;
      // From the exact remainder; rounding a / b first could land on the next integer.
      const T rest = std::fmod(a, b);
      const T below = rest != T(0) && (rest < T(0)) != (b < T(0)) ? T(1) : T(0);
      const T quotient = (a - rest) / b - below;
      return quotient == T(0) ? std::copysign(T(0), a / b) : std::nearbyint(quotient);
    } else if constexpr (std::is_signed_v<T>) {
      if (b == T(-1)) return negated(a);  // the lowest integer has no positive twin
      return static_cast<T>(a / b - (a % b != 0 && (a < 0) != (b < 0)));
    } else {
      return static_cast<T>(a / b);
    }
  }
  static CAIRN_INLINE auto da(auto g, auto, auto) { return decltype(g)(0); }
  static CAIRN_INLINE auto db(auto g, auto, auto) { return decltype(g)(0); }
};

struct Remainder : Reads<0, kReadsA | kReadsB> {  // sign of the divisor; integers: it is not 0
  template <class T>
  static CAIRN_INLINE T f(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      const T rest = std::fmod(a, b);
      return rest != T(0) && (rest < T(0)) != (b < T(0)) ? rest + b : rest;
    } else if constexpr (std::is_signed_v<T>) {
      if (b == T(-1)) return T(0);
      const T rest = static_cast<T>(a % b);
      return rest != 0 && (rest < 0) != (b < 0) ? static_cast<T>(rest + b) : rest;
    } else {
      return static_cast<T>(a % b);
    }
  }
  static CAIRN_INLINE auto da(auto g, auto, auto) { return g; }
  static CAIRN_INLINE auto db(auto g, auto a, auto b) { return -g * FloorDivide::f(a, b); }
};

// --- tests: f -> bool
// ----------------------------------------------------------------------------------

struct Eq {
  static CAIRN_INLINE bool f(auto a, auto b) { return a == b; }
};
struct Ne {
  static CAIRN_INLINE bool f(auto a, auto b) { return a != b; }
};
struct Lt {
  static CAIRN_INLINE bool f(auto a, auto b) { return a < b; }
};
struct Le {
  static CAIRN_INLINE bool f(auto a, auto b) { return a <= b; }
};
struct Gt {
  static CAIRN_INLINE bool f(auto a, auto b) { return a > b; }
};
struct Ge {
  static CAIRN_INLINE bool f(auto a, auto b) { return a >= b; }
};
struct LogicalAnd {
  static CAIRN_INLINE bool f(auto a, auto b) { return (a != 0) & (b != 0); }
};
struct LogicalOr {
  static CAIRN_INLINE bool f(auto a, auto b) { return (a != 0) | (b != 0); }
};
struct LogicalNot {
  static CAIRN_INLINE bool f(auto x) { return x == 0; }
};
struct IsNan {
  static CAIRN_INLINE bool f(auto x) { return x != x; }
};
struct IsFinite {
  static CAIRN_INLINE bool f(auto x) { return x - x == 0; }
};

}  // namespace cairn::functors

// --- rows: X(name of the op, functor). The kernels' slots are named after the op: exp_fwd,
// exp_bwd. -----

// Results of integers are f32.
#define CAIRN_UNARY_FLOATING(X) \
  X(exp, Exp)                   \
  X(expm1, Expm1)               \
  X(log, Log)                   \
  X(log1p, Log1p)               \
  X(log2, Log2)                 \
  X(sqrt, Sqrt)                 \
  X(rsqrt, Rsqrt)               \
  X(reciprocal, Reciprocal)     \
  X(sin, Sin)                   \
  X(cos, Cos)                   \
  X(tan, Tan)                   \
  X(erf, Erf)                   \
  X(sigmoid, Sigmoid)           \
  X(tanh, Tanh)                 \
  X(silu, Silu)                 \
  X(softplus, Softplus)

// Integers stay integers.
#define CAIRN_UNARY_ANY(X) \
  X(neg, Neg)              \
  X(abs, Abs)              \
  X(sign, Sign)            \
  X(square, Square)        \
  X(floor, Floor)          \
  X(ceil, Ceil)            \
  X(round, Round)          \
  X(trunc, Trunc)          \
  X(relu, Relu)

// Ops with attributes; their public functions are written by hand.
#define CAIRN_UNARY_FLOATING_CUSTOM(X) \
  X(gelu_erf, GeluErf)                 \
  X(gelu_tanh, GeluTanh)               \
  X(leaky_relu, LeakyRelu)
#define CAIRN_UNARY_ANY_CUSTOM(X) X(clamp, Clamp)

#define CAIRN_UNARY(X)           \
  CAIRN_UNARY_FLOATING(X)        \
  CAIRN_UNARY_ANY(X)             \
  CAIRN_UNARY_FLOATING_CUSTOM(X) \
  CAIRN_UNARY_ANY_CUSTOM(X)

#define CAIRN_BINARY(X)        \
  X(add, Add)                  \
  X(sub, Sub)                  \
  X(mul, Mul)                  \
  X(div, Div)                  \
  X(pow, Pow)                  \
  X(maximum, Maximum)          \
  X(minimum, Minimum)          \
  X(floor_divide, FloorDivide) \
  X(remainder, Remainder)

#define CAIRN_COMPARE(X)     \
  X(eq, Eq)                  \
  X(ne, Ne)                  \
  X(lt, Lt)                  \
  X(le, Le)                  \
  X(gt, Gt)                  \
  X(ge, Ge)                  \
  X(logical_and, LogicalAnd) \
  X(logical_or, LogicalOr)

#define CAIRN_TEST(X)        \
  X(logical_not, LogicalNot) \
  X(isnan, IsNan)            \
  X(isfinite, IsFinite)
