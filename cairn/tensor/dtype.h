// Element types, their promotion, and the dispatch from a run-time dtype to a C++ type.
// Invariant: adding a dtype means a row in CAIRN_DTYPES and nothing else in this file.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "cairn/tensor/error.h"

namespace cairn {

// Brain float: the upper half of an f32. Arithmetic is done in f32; narrowing rounds to nearest
// even.
struct bfloat16 {
  uint16_t bits = 0;

  bfloat16() = default;
  template <class T>
  requires std::is_arithmetic_v<T>
  constexpr explicit bfloat16(T value) : bits(from_float(static_cast<float>(value))) {}
  constexpr operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }

 private:
  static constexpr uint16_t from_float(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);  // NaN
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
};

// IEEE half: 5 bits of exponent, 10 of mantissa; largest 65504, smallest normal 2^-14, smallest
// subnormal 2^-24. Arithmetic is done in f32; narrowing rounds to nearest even.
struct float16 {
  uint16_t bits = 0;

  float16() = default;
  template <class T>
  requires std::is_arithmetic_v<T>
  constexpr explicit float16(T value) : bits(from_float(static_cast<float>(value))) {}
  constexpr operator float() const {
    const uint32_t sign = (bits & 0x8000u) << 16;
    const uint32_t m = bits & 0x7fffu;
    // Exponents are 112 apart, those of infinity and NaN 224.
    uint32_t u = (m << 13) + (m < 0x7c00u ? 112u << 23 : 224u << 23);
    if (m < 0x400u) u = std::bit_cast<uint32_t>(static_cast<float>(m) * 0x1p-24f);
    return std::bit_cast<float>(sign | u);
  }

 private:
  static constexpr uint16_t from_float(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t m = u & 0x7fffffffu;
    uint32_t half = 0;
    if (m > 0x7f800000u)  // NaN
      half = 0x7e00u | ((m >> 13) & 0x3ffu);
    else if (m >= (143u << 23))  // 2^16
      half = 0x7c00u;
    else if (m >= (113u << 23))  // 2^-14
      half = (m - (112u << 23) + 0xfffu + ((m >> 13) & 1u)) >> 13;
    else  // the last digit of 0.5 is 2^-24, so the sum rounds as a subnormal does
      half = std::bit_cast<uint32_t>(std::bit_cast<float>(m) + 0.5f) - (126u << 23);
    return static_cast<uint16_t>(((u >> 16) & 0x8000u) | half);
  }
};

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32, u8, boolean };

constexpr int kDTypeCount = 8;

#define CAIRN_DTYPES(X) \
  X(f64, double)        \
  X(f32, float)         \
  X(bf16, bfloat16)     \
  X(f16, float16)       \
  X(i64, int64_t)       \
  X(i32, int32_t)       \
  X(u8, uint8_t)        \
  X(boolean, bool)

template <class T>
constexpr DType dtype_of() {
#define CAIRN_CASE(name, type) \
  if constexpr (std::is_same_v<T, type>) return DType::name;
  CAIRN_DTYPES(CAIRN_CASE)
#undef CAIRN_CASE
}

// Bytes of one element.
constexpr int64_t item_size(DType dtype) {
  switch (dtype) {
#define CAIRN_CASE(name, type) \
  case DType::name:            \
    return sizeof(type);
    CAIRN_DTYPES(CAIRN_CASE)
#undef CAIRN_CASE
  }
  return 0;
}

constexpr bool is_floating(DType d) {
  return d == DType::f64 || d == DType::f32 || d == DType::bf16 || d == DType::f16;
}
// Of two bytes: stored so, computed in f32.
constexpr bool is_half(DType d) { return d == DType::bf16 || d == DType::f16; }
template <class T>
constexpr bool kIsHalf = std::is_same_v<T, bfloat16> || std::is_same_v<T, float16>;
// What arithmetic on tensors of `d` is done in.
constexpr DType compute_dtype(DType d) { return is_half(d) ? DType::f32 : d; }
template <class T>
using Compute = std::conditional_t<kIsHalf<T>, float, T>;

constexpr bool is_integral(DType d) {  // bool included
  return !is_floating(d);
}

// "f32", "i64", "bool", …
std::string_view name_of(DType dtype);
// The inverse; throws Error naming the known ones.
DType parse_dtype(std::string_view name);
inline void append_text(std::string& out, DType dtype) { out += name_of(dtype); }

// The common type of two dtypes, both of tensors with at least one dimension (torch.promote_types).
DType promote_types(DType a, DType b);

// Calls fn.template operator()<T>() with the C++ type of `dtype`.
template <class Fn>
decltype(auto) dispatch(DType dtype, Fn&& fn) {
  switch (dtype) {
#define CAIRN_CASE(name, type) \
  case DType::name:            \
    return fn.template operator()<type>();
    CAIRN_DTYPES(CAIRN_CASE)
#undef CAIRN_CASE
  }
  fail("dispatch: unknown dtype");
}

// As dispatch, for f64, f32, bf16 and f16 only; `op` names the caller in the error.
template <class Fn>
decltype(auto) dispatch_floating(DType dtype, std::string_view op, Fn&& fn) {
  switch (dtype) {
    case DType::f64:
      return fn.template operator()<double>();
    case DType::f32:
      return fn.template operator()<float>();
    case DType::bf16:
      return fn.template operator()<bfloat16>();
    case DType::f16:
      return fn.template operator()<float16>();
    default:
      fail(op, ": dtype must be f64, f32, bf16 or f16, got ", dtype);
  }
}

// The type sums are kept in: f64 for f64, f32 for f32, bf16 and f16, i64 for integers.
template <class T>
using Accumulate = std::conditional_t<std::is_integral_v<T>, int64_t, Compute<T>>;

}  // namespace cairn
