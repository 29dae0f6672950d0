// Reductions over any dimensions: sum, product, extremes, sum of squares.
// Invariant: sums are kept in the accumulator's type in blocks of fixed size; see reduce_driver.h.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/reduce.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "cairn/kernels/cpu/reduce_driver.h"
#include "cairn/kernels/cpu/rows.h"
#include "cairn/kernels/reduce.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

// Running results side by side: enough for four of the widest vectors, and the same number on every
// machine, so that all add in one order.
template <class Acc>
constexpr int64_t kLanes = 256 / sizeof(Acc);

template <class Op, class In, class Acc>
CAIRN_INLINE Acc mapped(In x) {
  Acc v = static_cast<Acc>(x);
  Op::map(v);
  return v;
}

// Up to kBlock contiguous elements into lanes, then across the lanes.
template <class Op, class In, class Acc>
HWY_ATTR Acc reduce_block(const In* x, int64_t n) {
  constexpr int64_t kWide = kLanes<Acc>;
  Acc lanes[kWide];
  for (int64_t k = 0; k < kWide; ++k) lanes[k] = Op::template identity<Acc>();
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide)
    for (int64_t k = 0; k < kWide; ++k) Op::combine(lanes[k], mapped<Op, In, Acc>(x[i + k]));
  for (int64_t k = 0; i + k < n; ++k) Op::combine(lanes[k], mapped<Op, In, Acc>(x[i + k]));
  for (int64_t width = kWide / 2; width > 0; width /= 2)
    for (int64_t k = 0; k < width; ++k) Op::combine(lanes[k], lanes[k + width]);
  return lanes[0];
}

template <class Op, class In, class Acc>
HWY_ATTR Acc reduce_run(const In* x, int64_t step, int64_t n) {
  constexpr int64_t kBlock = 4096;
  if (step == 1 && n >= kLanes<Acc> / 4) {
    if (n <= kBlock) return reduce_block<Op, In, Acc>(x, n);
    Cascade<Op, Acc> total;
    for (int64_t i = 0; i < n; i += kBlock)
      total.add(reduce_block<Op, In, Acc>(x + i, std::min(kBlock, n - i)));
    return total.total();
  }
  if (n <= 32) {
    Acc sum = Op::template identity<Acc>();
    for (int64_t i = 0; i < n; ++i) Op::combine(sum, mapped<Op, In, Acc>(x[i * step]));
    return sum;
  }
  Cascade<Op, Acc> total;
  for (int64_t i = 0; i < n; ++i) total.add(mapped<Op, In, Acc>(x[i * step]));
  return total.total();
}

template <class Op, class In, class Acc>
HWY_ATTR void reduce_columns(Acc* acc, const In* x, int64_t row_step, int64_t rows,
                             int64_t col_step, int64_t cols) {
  if (col_step == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      const In* row = x + r * row_step;
      CAIRN_INDEPENDENT
      for (int64_t c = 0; c < cols; ++c) {
        Acc v = static_cast<Acc>(row[c]);
        Op::map(v);
        Op::combine(acc[c], v);
      }
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      Op::combine(acc[c], mapped<Op, In, Acc>(x[r * row_step + c * col_step]));
}

#define CAIRN_TABLES(name, Op)                                              \
  template <class In, class Acc>                                            \
  HWY_ATTR const ReduceRows<In, Acc>* name() {                              \
    static constexpr ReduceRows<In, Acc> rows{reduce_run<Op, In, Acc>,      \
                                              reduce_columns<Op, In, Acc>}; \
    return &rows;                                                           \
  }
CAIRN_TABLES(rows_sum, SumOp)
CAIRN_TABLES(rows_sum_squares, SumSquaresOp)
CAIRN_TABLES(rows_prod, ProdOp)
CAIRN_TABLES(rows_max, MaxOp)
CAIRN_TABLES(rows_min, MinOp)
#undef CAIRN_TABLES

// The table behind one (kind, input, accumulator), untyped, so that one function crosses targets.
const void* pick_reduce(ReduceKind kind, DType dtype, bool wide) {
  return dispatch(dtype, [&]<class In>() -> const void* {
    using Acc = Accumulate<In>;
    switch (kind) {
      case ReduceKind::sum:
        if constexpr (std::is_same_v<In, float> || kIsHalf<In>)
          if (wide) return rows_sum<In, double>();
        return rows_sum<In, Acc>();
      case ReduceKind::sum_squares:
        if constexpr (!std::is_integral_v<In>) return rows_sum_squares<In, double>();
        return nullptr;
      case ReduceKind::prod:
        return rows_prod<In, Acc>();
      case ReduceKind::max:
        return rows_max<In, Acc>();
      case ReduceKind::min:
        return rows_min<In, Acc>();
    }
    return nullptr;
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {

HWY_EXPORT(pick_reduce);
const void* reduce_rows(ReduceKind kind, DType in, bool wide) {
  return HWY_DYNAMIC_DISPATCH(pick_reduce)(kind, in, wide);
}

namespace {

// write(y element, accumulated) for every output.
template <class Op, class In, class Acc, class T, class Write>
void reduce_into(ReduceKind kind, Out y, const In* in, const ReducePlan& plan, Write write) {
  const auto& rows = *static_cast<const ReduceRows<In, Acc>*>(reduce_rows(kind, dtype_of<In>()));
  T* out = y.data<T>();
  Reduction<Op, In, Acc>(plan, in, rows).run([&](int64_t at, Acc acc) { write(out[at], acc); });
}

void sum(Out y, const Tensor& x, double divisor) {
  if (y.numel() == 0) return;
  const ReducePlan plan = plan_reduction(y, x);
  dispatch(x.dtype(), [&]<class T>() {
    using Acc = Accumulate<T>;
    using Result = std::conditional_t<std::is_integral_v<T>, int64_t, T>;
    reduce_into<SumOp, T, Acc, Result>(
        ReduceKind::sum, y, static_cast<const T*>(x.raw_data()), plan, [&](Result& out, Acc acc) {
          if constexpr (std::is_integral_v<T>)
            out = acc;
          else
            out = static_cast<Result>(divisor == 1 ? acc : acc / static_cast<Acc>(divisor));
        });
  });
}

void prod(Out y, const Tensor& x) {
  if (y.numel() == 0) return;
  const ReducePlan plan = plan_reduction(y, x);
  dispatch(x.dtype(), [&]<class T>() {
    using Acc = Accumulate<T>;
    using Result = std::conditional_t<std::is_integral_v<T>, int64_t, T>;
    reduce_into<ProdOp, T, Acc, Result>(
        ReduceKind::prod, y, static_cast<const T*>(x.raw_data()), plan,
        [&](Result& out, Acc acc) { out = static_cast<Result>(acc); });
  });
}

void extreme(Out y, const Tensor& x, bool largest) {
  if (y.numel() == 0) return;
  const ReducePlan plan = plan_reduction(y, x);
  dispatch(x.dtype(), [&]<class T>() {
    using Acc = Accumulate<T>;
    const T* in = static_cast<const T*>(x.raw_data());
    const auto write = [](T& out, Acc acc) { out = static_cast<T>(acc); };
    if (largest)
      reduce_into<MaxOp, T, Acc, T>(ReduceKind::max, y, in, plan, write);
    else
      reduce_into<MinOp, T, Acc, T>(ReduceKind::min, y, in, plan, write);
  });
}

void sum_squares(Out y, const Tensor& x) {
  if (y.numel() == 0) return;
  const ReducePlan plan = plan_reduction(y, x);
  dispatch_floating(x.dtype(), "norm", [&]<class T>() {
    reduce_into<SumSquaresOp, T, double, double>(ReduceKind::sum_squares, y,
                                                 static_cast<const T*>(x.raw_data()), plan,
                                                 [](double& out, double acc) { out = acc; });
  });
}

}  // namespace
}  // namespace cpu

Slot<void(Out, In, double)> sum_fwd{"sum_fwd", cpu::sum};
Slot<void(Out, In)> prod_fwd{"prod_fwd", cpu::prod};
Slot<void(Out, In, bool)> extreme_fwd{"extreme_fwd", cpu::extreme};
Slot<void(Out, In)> sum_squares_fwd{"sum_squares_fwd", cpu::sum_squares};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
