// What reductions combine with.
// Invariant: combine is associative up to rounding, and identity leaves the other side as it is.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "cairn/kernels/fast_math.h"
#include "cairn/tensor/dtype.h"

namespace cairn::kernels::cpu {

// Integers wrap around instead of overflowing.
template <class V>
CAIRN_INLINE void add_into(V& a, const V& b) {
  if constexpr (std::is_integral_v<V>)
    a = static_cast<V>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  else
    a = a + b;
}

struct SumOp {
  template <class A>
  static constexpr A identity() {
    return A(0);
  }
  template <class V>
  static CAIRN_INLINE void map(V&) {}
  template <class V>
  static CAIRN_INLINE void combine(V& a, const V& b) {
    add_into(a, b);
  }
};

struct SumSquaresOp {
  template <class A>
  static constexpr A identity() {
    return A(0);
  }
  template <class V>
  static CAIRN_INLINE void map(V& v) {
    v = v * v;
  }
  template <class V>
  static CAIRN_INLINE void combine(V& a, const V& b) {
    add_into(a, b);
  }
};

struct ProdOp {
  template <class A>
  static constexpr A identity() {
    return A(1);
  }
  template <class V>
  static CAIRN_INLINE void map(V&) {}
  template <class V>
  static CAIRN_INLINE void combine(V& a, const V& b) {
    if constexpr (std::is_integral_v<V>)
      a = static_cast<V>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
    else
      a = a * b;
  }
};

struct MaxOp {
  template <class A>
  static constexpr A identity() {
    return std::is_floating_point_v<A> ? -std::numeric_limits<A>::infinity()
                                       : std::numeric_limits<A>::lowest();
  }
  template <class V>
  static CAIRN_INLINE void map(V&) {}
  template <class V>
  static CAIRN_INLINE void combine(V& a, const V& b) {
    a = ((a > b) | (a != a)) ? a : b;
  }
};

struct MinOp {
  template <class A>
  static constexpr A identity() {
    return std::is_floating_point_v<A> ? std::numeric_limits<A>::infinity()
                                       : std::numeric_limits<A>::max();
  }
  template <class V>
  static CAIRN_INLINE void map(V&) {}
  template <class V>
  static CAIRN_INLINE void combine(V& a, const V& b) {
    a = ((a < b) | (a != a)) ? a : b;
  }
};

enum class ReduceKind { sum, sum_squares, prod, max, min };

// Entry points of one (operation, input type, accumulator): `run` reduces n elements `step` apart;
// `columns` combines `rows` rows of `cols` columns into acc[0 … cols).
template <class In, class Acc>
struct ReduceRows {
  Acc (*run)(const In* x, int64_t step, int64_t n);
  void (*columns)(Acc* acc, const In* x, int64_t row_step, int64_t rows, int64_t col_step,
                  int64_t cols);
};

// The ReduceRows<In, Acc> for this machine, untyped. Acc is Accumulate<In>, but f64 for squares and
// where `wide`. Null where the kind has no meaning for the dtype.
const void* reduce_rows(ReduceKind kind, DType in, bool wide = false);

}  // namespace cairn::kernels::cpu
