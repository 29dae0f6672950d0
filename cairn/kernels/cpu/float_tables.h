// Tables of kernels, one for each float type, of the best instruction set that the processor has.
#pragma once

#include <hwy/highway.h>

#include <type_traits>

#include "cairn/tensor/dtype.h"

// In HWY_NAMESPACE, behind `template <class T> Table<T> fns()`.
#define CAIRN_FLOAT_TABLES(Table, fns)                                       \
  Table<double> fns##_f64() { return fns<double>(); }                        \
  Table<float> fns##_f32() { return fns<float>(); }                          \
  Table<::cairn::bfloat16> fns##_bf16() { return fns<::cairn::bfloat16>(); } \
  Table<::cairn::float16> fns##_f16() { return fns<::cairn::float16>(); }

// In the namespace around it, once: defines best_fns<T>().
#define CAIRN_BEST_FLOAT_TABLES(Table, fns)                  \
  HWY_EXPORT(fns##_f64);                                     \
  HWY_EXPORT(fns##_f32);                                     \
  HWY_EXPORT(fns##_bf16);                                    \
  HWY_EXPORT(fns##_f16);                                     \
  template <class T>                                         \
  Table<T> best_##fns() {                                    \
    if constexpr (std::is_same_v<T, double>)                 \
      return HWY_DYNAMIC_DISPATCH(fns##_f64)();              \
    else if constexpr (std::is_same_v<T, float>)             \
      return HWY_DYNAMIC_DISPATCH(fns##_f32)();              \
    else if constexpr (std::is_same_v<T, ::cairn::bfloat16>) \
      return HWY_DYNAMIC_DISPATCH(fns##_bf16)();             \
    else                                                     \
      return HWY_DYNAMIC_DISPATCH(fns##_f16)();              \
  }
