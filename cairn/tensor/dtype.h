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
  explicit bfloat16(T value) : bits(from_float(static_cast<float>(value))) {}
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

 private:
  static uint16_t from_float(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);  // NaN
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
};

enum class DType : uint8_t { f64, f32, bf16, i64, i32, u8, boolean };

constexpr int kDTypeCount = 7;

#define CAIRN_DTYPES(X) \
  X(f64, double)        \
  X(f32, float)         \
  X(bf16, bfloat16)     \
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
  return d == DType::f64 || d == DType::f32 || d == DType::bf16;
}
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

// As dispatch, for f64, f32 and bf16 only; `op` names the caller in the error.
template <class Fn>
decltype(auto) dispatch_floating(DType dtype, std::string_view op, Fn&& fn) {
  switch (dtype) {
    case DType::f64:
      return fn.template operator()<double>();
    case DType::f32:
      return fn.template operator()<float>();
    case DType::bf16:
      return fn.template operator()<bfloat16>();
    default:
      fail(op, ": dtype must be f64, f32 or bf16, got ", dtype);
  }
}

// The type sums are kept in: f64 for f64, f32 for f32 and bf16, i64 for integers.
template <class T>
using Accumulate = std::conditional_t<
    std::is_same_v<T, double>, double,
    std::conditional_t<std::is_same_v<T, float> || std::is_same_v<T, bfloat16>, float, int64_t>>;

}  // namespace cairn
