// The scalar functions behind elementwise ops, for every device, and the lists of their rows.
// Invariant: a functor is pure arithmetic on values of the compute type (f32 for bf16); it names what
// its derivative reads, so that an op saves that and nothing else.
//
// Adding a unary op: write its functor and its row of CAIRN_UNARY here, declare the op in
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

// --- unary: f(x [, numbers]), and df(g, saved [, numbers]) = g times the derivative --------------------

struct Neg {
  static constexpr Saves kSaves = Saves::nothing;
  template <class T>
  static CAIRN_INLINE T f(T x) {
    return wrapping([](auto a, auto b) { return a - b; }, T(0), x) * T(1);
  }
  template <class T>
  static CAIRN_INLINE T df(T g, T) { return -g; }
};

struct Abs {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) {
    if constexpr (std::is_floating_point_v<T>)
      return std::fabs(x);
    else
      return x < T(0) ? Neg::f(x) : x;
  }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) {
    return fast::select(x > T(0), g, fast::select(x < T(0), -g, g * T(0)));
  }
};

struct Sign {
  static constexpr Saves kSaves = Saves::nothing;
  template <class T>
  static CAIRN_INLINE T f(T x) { return static_cast<T>((T(0) < x) - (x < T(0))); }
  template <class T>
  static CAIRN_INLINE T df(T, T) { return T(0); }
};

struct Exp {
  static constexpr Saves kSaves = Saves::output;
  template <class T>
  static CAIRN_INLINE T f(T x) { return fast::exp(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T y) { return g * y; }
};

struct Expm1 {
  static constexpr Saves kSaves = Saves::output;
  template <class T>
  static CAIRN_INLINE T f(T x) { return fast::expm1(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T y) { return g * (y + T(1)); }
};

struct Log {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) { return fast::log(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) { return g / x; }
};

struct Log1p {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) { return fast::log1p(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) { return g / (x + T(1)); }
};

struct Log2 {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) { return fast::log2(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) { return g / (x * T(0.69314718055994530942)); }
};

struct Sqrt {
  static constexpr Saves kSaves = Saves::output;
  template <class T>
  static CAIRN_INLINE T f(T x) { return std::sqrt(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T y) { return g / (T(2) * y); }
};

struct Rsqrt {
  static constexpr Saves kSaves = Saves::output;
  template <class T>
  static CAIRN_INLINE T f(T x) { return T(1) / std::sqrt(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T y) { return T(-0.5) * g * y * y * y; }
};

struct Square {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) { return wrapping([](auto a, auto b) { return a * b; }, x, x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) { return g * (T(2) * x); }
};

struct Reciprocal {
  static constexpr Saves kSaves = Saves::output;
  template <class T>
  static CAIRN_INLINE T f(T x) { return T(1) / x; }
  template <class T>
  static CAIRN_INLINE T df(T g, T y) { return -g * y * y; }
};

struct Sin {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) { return std::sin(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) { return g * std::cos(x); }
};

struct Cos {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) { return std::cos(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) { return -g * std::sin(x); }
};

struct Tan {
  static constexpr Saves kSaves = Saves::output;
  template <class T>
  static CAIRN_INLINE T f(T x) { return std::tan(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T y) { return g * (T(1) + y * y); }
};

struct Erf {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) { return fast::erf(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) {
    return g * (T(1.12837916709551257390) * fast::exp(-x * x));  // 2 / sqrt(pi)
  }
};

// Steps: their derivative is 0 wherever they have one.
struct Floor {
  static constexpr Saves kSaves = Saves::nothing;
  template <class T>
  static CAIRN_INLINE T f(T x) {
    if constexpr (std::is_floating_point_v<T>)
      return std::floor(x);
    else
      return x;
  }
  template <class T>
  static CAIRN_INLINE T df(T, T) { return T(0); }
};

struct Ceil {
  static constexpr Saves kSaves = Saves::nothing;
  template <class T>
  static CAIRN_INLINE T f(T x) {
    if constexpr (std::is_floating_point_v<T>)
      return std::ceil(x);
    else
      return x;
  }
  template <class T>
  static CAIRN_INLINE T df(T, T) { return T(0); }
};

struct Round {  // halves to even, the mode the processor starts in
  static constexpr Saves kSaves = Saves::nothing;
  template <class T>
  static CAIRN_INLINE T f(T x) {
    if constexpr (std::is_floating_point_v<T>)
      return std::nearbyint(x);
    else
      return x;
  }
  template <class T>
  static CAIRN_INLINE T df(T, T) { return T(0); }
};

struct Trunc {
  static constexpr Saves kSaves = Saves::nothing;
  template <class T>
  static CAIRN_INLINE T f(T x) {
    if constexpr (std::is_floating_point_v<T>)
      return std::trunc(x);
    else
      return x;
  }
  template <class T>
  static CAIRN_INLINE T df(T, T) { return T(0); }
};

struct Relu {  // NaN passes through, in both directions
  static constexpr Saves kSaves = Saves::output;
  template <class T>
  static CAIRN_INLINE T f(T x) { return x < T(0) ? T(0) : x; }
  template <class T>
  static CAIRN_INLINE T df(T g, T y) { return y <= T(0) ? T(0) : g; }
};

struct Sigmoid {
  static constexpr Saves kSaves = Saves::output;
  template <class T>
  static CAIRN_INLINE T f(T x) { return fast::sigmoid(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T y) { return g * ((T(1) - y) * y); }
};

struct Tanh {
  static constexpr Saves kSaves = Saves::output;
  template <class T>
  static CAIRN_INLINE T f(T x) { return fast::tanh(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T y) { return g * (T(1) - y * y); }
};

struct Silu {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) { return x / (T(1) + fast::exp(-x)); }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) {
    const T s = fast::sigmoid(x);
    return g * (s * (T(1) + x * (T(1) - s)));
  }
};

struct GeluErf {
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) { return x * fast::normal_cdf(x); }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) {
    const T cdf = fast::normal_cdf(x);
    const T pdf = T(0.39894228040143267794) * fast::exp(T(-0.5) * x * x);
    return g * (cdf + x * pdf);
  }
};

struct GeluTanh {
  static constexpr Saves kSaves = Saves::input;
  static constexpr double kScale = 0.79788456080286535588;  // sqrt(2 / pi)
  static constexpr double kCubic = 0.044715;
  template <class T>
  static CAIRN_INLINE T f(T x) {
    const T inner = T(kScale) * (x + T(kCubic) * x * x * x);
    return T(0.5) * x * (T(1) + fast::tanh(inner));
  }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) {
    const T t = fast::tanh(T(kScale) * (x + T(kCubic) * x * x * x));
    const T slope = T(kScale) * (T(1) + T(3 * kCubic) * x * x);
    return g * (T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * slope);
  }
};

struct Softplus {  // written so that neither end overflows
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x) {
    return (x < T(0) ? T(0) : x) + fast::log1p(fast::exp(-std::fabs(x)));
  }
  template <class T>
  static CAIRN_INLINE T df(T g, T x) { return g * fast::sigmoid(x); }
};

struct LeakyRelu {  // a: the slope below 0
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x, Numbers<T> p) {
    return fast::select(x > T(0), x, x * p.a);
  }
  template <class T>
  static CAIRN_INLINE T df(T g, T x, Numbers<T> p) {
    return fast::select(x > T(0), g, g * p.a);
  }
};

struct Clamp {  // to [a, b]; where they cross, b wins
  static constexpr Saves kSaves = Saves::input;
  template <class T>
  static CAIRN_INLINE T f(T x, Numbers<T> p) {
    const T raised = x < p.a ? p.a : x;
    return raised > p.b ? p.b : raised;
  }
  template <class T>
  static CAIRN_INLINE T df(T g, T x, Numbers<T> p) {
    // An infinite bound is an open end: an infinity there keeps its slope.
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    const bool above = x > p.a || p.a == -kInfinity;
    const bool below = x < p.b || p.b == kInfinity;
    return above && below ? g : T(0);
  }
};

// --- binary: f(a, b), and da / db = g times the derivative by that operand --------------------------------

struct Add {
  static constexpr int kDaReads = 0;
  static constexpr int kDbReads = 0;
  template <class T>
  static CAIRN_INLINE T f(T a, T b) {
    return wrapping([](auto p, auto q) { return p + q; }, a, b);
  }
  template <class T>
  static CAIRN_INLINE T da(T g, T, T) { return g; }
  template <class T>
  static CAIRN_INLINE T db(T g, T, T) { return g; }
};

struct Sub {
  static constexpr int kDaReads = 0;
  static constexpr int kDbReads = 0;
  template <class T>
  static CAIRN_INLINE T f(T a, T b) {
    return wrapping([](auto p, auto q) { return p - q; }, a, b);
  }
  template <class T>
  static CAIRN_INLINE T da(T g, T, T) { return g; }
  template <class T>
  static CAIRN_INLINE T db(T g, T, T) { return -g; }
};

struct Mul {
  static constexpr int kDaReads = kReadsB;
  static constexpr int kDbReads = kReadsA;
  template <class T>
  static CAIRN_INLINE T f(T a, T b) {
    return wrapping([](auto p, auto q) { return p * q; }, a, b);
  }
  template <class T>
  static CAIRN_INLINE T da(T g, T, T b) { return g * b; }
  template <class T>
  static CAIRN_INLINE T db(T g, T a, T) { return g * a; }
};

struct Div {  // floating only
  static constexpr int kDaReads = kReadsB;
  static constexpr int kDbReads = kReadsA | kReadsB;
  template <class T>
  static CAIRN_INLINE T f(T a, T b) { return a / b; }
  template <class T>
  static CAIRN_INLINE T da(T g, T, T b) { return g / b; }
  template <class T>
  static CAIRN_INLINE T db(T g, T a, T b) { return -g * ((a / b) / b); }
};

struct Pow {
  static constexpr int kDaReads = kReadsA | kReadsB;
  static constexpr int kDbReads = kReadsA | kReadsB;
  template <class T>
  static CAIRN_INLINE T f(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      return std::pow(a, b);
    } else {
      if (b < T(0)) return a == T(1) ? T(1) : a == T(-1) ? (b % T(2) == 0 ? T(1) : T(-1)) : T(0);
      T result = T(1);
      for (; b > T(0); b = static_cast<T>(b / 2)) {
        if (b % 2 != 0) result = Mul::f(result, a);
        a = Mul::f(a, a);
      }
      return result;
    }
  }
  template <class T>
  static CAIRN_INLINE T da(T g, T a, T b) {
    return b == T(0) ? T(0) : g * (b * std::pow(a, b - T(1)));
  }
  template <class T>
  static CAIRN_INLINE T db(T g, T a, T b) {
    return a == T(0) && b >= T(0) ? T(0) : g * (std::pow(a, b) * std::log(a));
  }
};

struct Maximum {
  static constexpr int kDaReads = kReadsA | kReadsB;
  static constexpr int kDbReads = kReadsA | kReadsB;
  template <class T>
  static CAIRN_INLINE T f(T a, T b) { return a > b || a != a ? a : b; }
  template <class T>
  static CAIRN_INLINE T da(T g, T a, T b) {
    return fast::select(a < b, T(0), fast::select(a == b, g / T(2), g));
  }
  template <class T>
  static CAIRN_INLINE T db(T g, T a, T b) {
    return fast::select(a > b, T(0), fast::select(a == b, g / T(2), g));
  }
};

struct Minimum {
  static constexpr int kDaReads = kReadsA | kReadsB;
  static constexpr int kDbReads = kReadsA | kReadsB;
  template <class T>
  static CAIRN_INLINE T f(T a, T b) { return a < b || a != a ? a : b; }
  template <class T>
  static CAIRN_INLINE T da(T g, T a, T b) {
    return fast::select(a > b, T(0), fast::select(a == b, g / T(2), g));
  }
  template <class T>
  static CAIRN_INLINE T db(T g, T a, T b) {
    return fast::select(a < b, T(0), fast::select(a == b, g / T(2), g));
  }
};

struct FloorDivide {  // integers: the divisor is not 0
  static constexpr int kDaReads = 0;
  static constexpr int kDbReads = 0;
  template <class T>
  static CAIRN_INLINE T f(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      if (b == T(0)) return a / b;
      // From the exact remainder; rounding a / b first could land on the next integer.
      const T rest = std::fmod(a, b);
      const T quotient = (a - rest) / b - (rest != T(0) && (rest < T(0)) != (b < T(0)) ? T(1) : T(0));
      const T whole = std::nearbyint(quotient);
      return quotient == T(0) ? std::copysign(T(0), a / b) : whole;
    } else if constexpr (std::is_signed_v<T>) {
      if (b == T(-1)) return Neg::f(a);  // the lowest integer has no positive twin
      const T quotient = static_cast<T>(a / b);
      return static_cast<T>(quotient - (a % b != 0 && (a < 0) != (b < 0)));
    } else {
      return static_cast<T>(a / b);
    }
  }
  template <class T>
  static CAIRN_INLINE T da(T, T, T) { return T(0); }
  template <class T>
  static CAIRN_INLINE T db(T, T, T) { return T(0); }
};

struct Remainder {  // sign of the divisor; integers: the divisor is not 0
  static constexpr int kDaReads = 0;
  static constexpr int kDbReads = kReadsA | kReadsB;
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
  template <class T>
  static CAIRN_INLINE T da(T g, T, T) { return g; }
  template <class T>
  static CAIRN_INLINE T db(T g, T a, T b) { return -g * FloorDivide::f(a, b); }
};

// --- tests: f -> bool ----------------------------------------------------------------------------------------

struct Eq {
  template <class T>
  static CAIRN_INLINE bool f(T a, T b) { return a == b; }
};
struct Ne {
  template <class T>
  static CAIRN_INLINE bool f(T a, T b) { return a != b; }
};
struct Lt {
  template <class T>
  static CAIRN_INLINE bool f(T a, T b) { return a < b; }
};
struct Le {
  template <class T>
  static CAIRN_INLINE bool f(T a, T b) { return a <= b; }
};
struct Gt {
  template <class T>
  static CAIRN_INLINE bool f(T a, T b) { return a > b; }
};
struct Ge {
  template <class T>
  static CAIRN_INLINE bool f(T a, T b) { return a >= b; }
};
struct LogicalAnd {
  template <class T>
  static CAIRN_INLINE bool f(T a, T b) { return (a != T(0)) & (b != T(0)); }
};
struct LogicalOr {
  template <class T>
  static CAIRN_INLINE bool f(T a, T b) { return (a != T(0)) | (b != T(0)); }
};
struct LogicalNot {
  template <class T>
  static CAIRN_INLINE bool f(T x) { return x == T(0); }
};
struct IsNan {
  template <class T>
  static CAIRN_INLINE bool f(T x) { return x != x; }
};
struct IsFinite {
  template <class T>
  static CAIRN_INLINE bool f(T x) { return x - x == T(0); }
};

}  // namespace cairn::functors

// --- rows: X(name of the op, functor). The kernels' slots are named after the op: exp_fwd, exp_bwd. -----

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

#define CAIRN_BINARY(X)         \
  X(add, Add)                   \
  X(sub, Sub)                   \
  X(mul, Mul)                   \
  X(div, Div)                   \
  X(pow, Pow)                   \
  X(maximum, Maximum)           \
  X(minimum, Minimum)           \
  X(floor_divide, FloorDivide)  \
  X(remainder, Remainder)

#define CAIRN_COMPARE(X)      \
  X(eq, Eq)                   \
  X(ne, Ne)                   \
  X(lt, Lt)                   \
  X(le, Le)                   \
  X(gt, Gt)                   \
  X(ge, Ge)                   \
  X(logical_and, LogicalAnd)  \
  X(logical_or, LogicalOr)

#define CAIRN_TEST(X)         \
  X(logical_not, LogicalNot)  \
  X(isnan, IsNan)             \
  X(isfinite, IsFinite)
