// exp, expm1, log, log1p, log2, tanh, erf and the normal distribution of floats as straight-line
// code, so that a loop over them vectorises; doubles go to the C library.
// Invariant: no branch, no table, no conversion that could be undefined; infinities, NaN and the
// ends of the range come out right, the rest is within 4 ulp.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>

// Functions that loops of any instruction set must be able to take in; constexpr, because that is
// what makes them callable on a GPU (nvcc --expt-relaxed-constexpr). The ones that call the C
// library are templates: a plain constexpr function may not call what never is a constant.
#define CAIRN_INLINE constexpr inline __attribute__((always_inline))

namespace cairn::fast {

// condition ? a : b by masks: a compiler that may not move arithmetic across a branch (it could
// trap) would otherwise keep the branch and the scalar loop.
CAIRN_INLINE float select(bool condition, float a, float b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return std::bit_cast<float>((std::bit_cast<uint32_t>(a) & mask) |
                              (std::bit_cast<uint32_t>(b) & ~mask));
}
CAIRN_INLINE double select(bool condition, double a, double b) {
  const uint64_t mask = uint64_t{0} - static_cast<uint64_t>(condition);
  return std::bit_cast<double>((std::bit_cast<uint64_t>(a) & mask) |
                               (std::bit_cast<uint64_t>(b) & ~mask));
}

CAIRN_INLINE float magnitude(float x) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7fffffffu);
}
// The magnitude of a (not negative) with the sign of b.
CAIRN_INLINE float with_sign(float a, float b) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(a) |
                              (std::bit_cast<uint32_t>(b) & 0x80000000u));
}

// exp(x) = 2^n exp(r), |r| <= log(2)/2. 2^n comes as two factors, so that neither end overflows.
struct Reduced {
  float r, scale_a, scale_b;
};

// |x| is at most 128; a NaN gives a NaN in r.
CAIRN_INLINE Reduced reduce(float x) {
  // A large addend leaves x / log 2, rounded, in the low bits of the mantissa.
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  const float shifted = x * 1.44269504088896341f + kShift;
  const float n = shifted - kShift;
  const auto whole = static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - 0x4b400000u);
  const int32_t half = whole >> 1;
  // log 2 in two parts; the first has so few bits that its product with n is exact.
  const float r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
  const auto power = [](int32_t k) {
    return std::bit_cast<float>((static_cast<uint32_t>(k) + 127u) << 23);
  };
  return {r, power(half), power(whole - half)};
}

// exp(r) - 1 for |r| <= log(2)/2: Taylor's series up to r^8, whose next term is below 2^-28.
CAIRN_INLINE float expm1_small(float r) {
  float p = 1.0f / 40320;
  p = p * r + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  return r + r * r * p;
}

CAIRN_INLINE float exp(float x) {
  // Outside these bounds the result is 0 or infinity anyway. NaN passes both comparisons by.
  float bounded = x > 89.0f ? 89.0f : x;
  bounded = bounded < -105.0f ? -105.0f : bounded;
  const Reduced e = reduce(bounded);
  return (1.0f + expm1_small(e.r)) * e.scale_a * e.scale_b;
}
template <std::same_as<double> T>
CAIRN_INLINE T exp(T x) {
  return std::exp(x);
}

CAIRN_INLINE float expm1(float x) {
  float bounded = x > 89.0f ? 89.0f : x;
  bounded = bounded < -20.0f ? -20.0f : bounded;  // -1 within rounding
  const Reduced e = reduce(bounded);
  const float p = expm1_small(e.r);
  // 2^n p + (2^n - 1), the scales apart; 1 / scale_b is exact. Near 0 the second term is exactly 0.
  return (p * e.scale_a + (e.scale_a - 1.0f / e.scale_b)) * e.scale_b;
}
template <std::same_as<double> T>
CAIRN_INLINE T expm1(T x) {
  return std::expm1(x);
}

// The parts of log x = exponent log 2 + log m, m in [sqrt(1/2), sqrt(2)).
struct LogParts {
  float exponent, log_m;
};

// x positive and finite, subnormal included.
CAIRN_INLINE LogParts log_parts(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float normal = x * (tiny ? 8388608.0f : 1.0f);  // 2^23
  // Exponent and mantissa, counted from sqrt(1/2).
  const uint32_t bits = std::bit_cast<uint32_t>(normal) - 0x3f3504f3u;
  const auto exponent = static_cast<int32_t>(bits) >> 23;
  const float m = std::bit_cast<float>((bits & 0x007fffffu) + 0x3f3504f3u);
  // log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172: the series' next term is below 2^-28.
  const float s = (m - 1.0f) / (m + 1.0f);
  const float q = s * s;
  float p = 2.0f / 9;
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  return {static_cast<float>(exponent) - (tiny ? 23.0f : 0.0f), 2.0f * s + s * q * p};
}

// The logarithm's ends: NaN below 0, -infinity at 0, infinity and NaN as they are.
CAIRN_INLINE float log_ends(float x, float y) {
  const float infinity = std::bit_cast<float>(0x7f800000u);
  const float not_a_number = std::bit_cast<float>(0x7fc00000u);
  y = select(x > 0.0f, y, not_a_number);
  y = select(x == 0.0f, -infinity, y);
  y = select(x == infinity, infinity, y);
  return select(x == x, y, x);
}

CAIRN_INLINE float log(float x) {
  const LogParts l = log_parts(x);
  return log_ends(
      x, l.exponent * 0.693145751953125f + (l.log_m + l.exponent * 1.42860682030941723e-6f));
}
template <std::same_as<double> T>
CAIRN_INLINE T log(T x) {
  return std::log(x);
}

CAIRN_INLINE float log2(float x) {  // exact at powers of 2
  const LogParts l = log_parts(x);
  return log_ends(x, l.exponent + l.log_m * 1.44269504088896341f);
}
template <std::same_as<double> T>
CAIRN_INLINE T log2(T x) {
  return std::log2(x);
}

CAIRN_INLINE float log1p(float x) {
  const float u = 1.0f + x;
  // What rounding took from u, as a first-order term; nothing is lost where x is large.
  const float lost = select(x < 1.0f, x - (u - 1.0f), 0.0f);
  const float y = log(u) + lost / u;
  return select((u - u == 0.0f) & (u > 0.0f), y, log(u));
}
template <std::same_as<double> T>
CAIRN_INLINE T log1p(T x) {
  return std::log1p(x);
}

CAIRN_INLINE float tanh(float x) {
  const float m = magnitude(x);
  const float bounded = m > 20.0f ? 20.0f : m;  // 1 from 9.02 on
  const float e = expm1(2.0f * bounded);
  return with_sign(e / (e + 2.0f), x);
}
template <std::same_as<double> T>
CAIRN_INLINE T tanh(T x) {
  return std::tanh(x);
}

// erf(m) / m as a polynomial in m^2 for m <= 0.95; coefficients fitted to 6e-10.
CAIRN_INLINE float erf_near(float q) {
  float p = 8.185073966160417e-05f;
  p = p * q - 0.0008097698446363211f;
  p = p * q + 0.005196951329708099f;
  p = p * q - 0.026857703924179077f;
  p = p * q + 0.11283663660287857f;
  p = p * q - 0.37612631916999817f;
  return p * q + 1.128379225730896f;
}

// 1 - erf(m) for m >= 0.95: exp(-m^2) times a polynomial in 1 / (1 + 0.4 m); fitted to 1e-8.
CAIRN_INLINE float erfc_far(float m) {
  const float bounded = m > 10.1f ? 10.1f : m;
  const float t = 1.0f / (1.0f + 0.4f * bounded);
  float p = 0.021962491795420647f;
  p = p * t - 0.19695475697517395f;
  p = p * t + 0.36988765001296997f;
  p = p * t - 0.10149312764406204f;
  p = p * t + 0.2709033787250519f;
  p = p * t + 0.17987027764320374f;
  p = p * t + 0.23043300211429596f;
  p = p * t + 0.2252180427312851f;
  p = p * t + 1.8925264157587662e-05f;
  return exp(-bounded * bounded) * p;
}

CAIRN_INLINE float erf(float x) {
  const float m = magnitude(x);
  return with_sign(select(m > 0.95f, 1.0f - erfc_far(m), m * erf_near(m * m)), x);
}
template <std::same_as<double> T>
CAIRN_INLINE T erf(T x) {
  return std::erf(x);
}

// Distribution function of the normal distribution, accurate in the lower tail too.
CAIRN_INLINE float normal_cdf(float x) {
  const float z = x * 0.70710678118654752440f;
  const float m = magnitude(z);
  const float tail = 0.5f * erfc_far(m);
  const float far = select(x < 0.0f, tail, 1.0f - tail);
  return select(m > 0.95f, far, 0.5f + 0.5f * (z * erf_near(m * m)));
}
template <std::same_as<double> T>
CAIRN_INLINE T normal_cdf(T x) {
  return 0.5 * std::erfc(-x * 0.70710678118654752440);
}

// 1 / (1 + exp(-x)).
template <class T>
CAIRN_INLINE T sigmoid(T x) {
  return T(1) / (T(1) + fast::exp(-x));
}

}  // namespace cairn::fast
