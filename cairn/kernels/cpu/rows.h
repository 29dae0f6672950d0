// Small tools of row functions: typed access to operands, and loops that may be vectorised even
// when output and input are the same memory.
#pragma once

#include "cairn/kernels/cpu/loops.h"

// Output and inputs are either the same elements or do not overlap (the ops see to it), which is
// all that vectorising needs.
#if defined(__clang__)
#define CAIRN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define CAIRN_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace cairn::kernels::cpu {

// The one value of an operand with step 0 or kNumber.
template <class T>
CAIRN_INLINE Compute<T> single(const std::byte* at, int64_t step) {
  if (step == kNumber) return *reinterpret_cast<const Compute<T>*>(at);
  return static_cast<Compute<T>>(*reinterpret_cast<const T*>(at));
}

CAIRN_INLINE bool is_single(int64_t step) { return step == 0 || step == kNumber; }

template <class T>
CAIRN_INLINE Compute<T> load(const std::byte* at, int64_t bytes) {
  return static_cast<Compute<T>>(*reinterpret_cast<const T*>(at + bytes));
}

// A functor's f or df, with the attributes where it takes them.
template <class F, class C>
CAIRN_INLINE auto call_f(C x, functors::Numbers<C> p) {
  if constexpr (requires { F::f(x, p); })
    return F::f(x, p);
  else
    return F::f(x);
}
template <class F, class C>
CAIRN_INLINE C call_df(C g, C saved, functors::Numbers<C> p) {
  if constexpr (requires { F::df(g, saved, p); })
    return F::df(g, saved, p);
  else
    return F::df(g, saved);
}

}  // namespace cairn::kernels::cpu
