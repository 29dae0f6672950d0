// Names and promotion of dtypes.
#include "cairn/tensor/dtype.h"

namespace cairn {

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
    case DType::boolean:
      return "bool";
  }
  return "?";
}

DType parse_dtype(std::string_view name) {
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    if (name_of(dtype) == name) return dtype;
  }
  fail("dtype: name must be one of f64 f32 bf16 f16 i64 i32 u8 bool, got '", name, "'");
}

DType promote_types(DType a, DType b) {
  // Floating beats integral; among equals the wider one wins; bool is the weakest. The dtypes form
  // a total order, bar bf16 against f16, where neither holds the other's values, and u8 against
  // i32 and i64, where the signed one is wider anyway.
  if (is_half(a) && is_half(b) && a != b) return DType::f32;
  const auto rank = [](DType d) {
    switch (d) {
      case DType::f64:
        return 6;
      case DType::f32:
        return 5;
      case DType::bf16:
      case DType::f16:
        return 4;
      case DType::i64:
        return 3;
      case DType::i32:
        return 2;
      case DType::u8:
        return 1;
      case DType::boolean:
        return 0;
    }
    return -1;
  };
  return rank(a) >= rank(b) ? a : b;
}

}  // namespace cairn
