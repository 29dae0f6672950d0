// Comparisons, tests and choice: kernels whose output or condition is bool.
// Invariant: the loop of a row is plain code that the compiler vectorises for each target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/compare.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "cairn/kernels/cpu/loops.h"
#include "cairn/kernels/cpu/rows.h"

#ifndef CAIRN_COMPARE_KIND
#define CAIRN_COMPARE_KIND
namespace cairn::kernels::cpu {
enum class CompareKind {
#define CAIRN_NAME(name, Functor) name,
  CAIRN_COMPARE(CAIRN_NAME) CAIRN_TEST(CAIRN_NAME)
#undef CAIRN_NAME
};
}  // namespace cairn::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

template <class F, class T>
HWY_ATTR void compare_row(std::byte* const* at, const int64_t* step, int64_t n, const RowContext&) {
  using C = Compute<T>;
  constexpr int64_t kUnit = sizeof(T);
  bool* y = reinterpret_cast<bool*>(at[0]);
  const T* a = reinterpret_cast<const T*>(at[1]);
  const T* b = reinterpret_cast<const T*>(at[2]);
  if (step[0] == 1 && step[1] == kUnit && step[2] == kUnit) {
    CAIRN_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = F::f(static_cast<C>(a[i]), static_cast<C>(b[i]));
  } else if (step[0] == 1 && step[1] == kUnit && is_single(step[2])) {
    const C value = single<T>(at[2], step[2]);
    CAIRN_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = F::f(static_cast<C>(a[i]), value);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const C va = is_single(step[1]) ? single<T>(at[1], step[1]) : load<T>(at[1], i * step[1]);
      const C vb = is_single(step[2]) ? single<T>(at[2], step[2]) : load<T>(at[2], i * step[2]);
      *reinterpret_cast<bool*>(at[0] + i * step[0]) = F::f(va, vb);
    }
  }
}

template <class F, class T>
HWY_ATTR void test_row(std::byte* const* at, const int64_t* step, int64_t n, const RowContext&) {
  using C = Compute<T>;
  if (step[0] == 1 && step[1] == sizeof(T)) {
    bool* y = reinterpret_cast<bool*>(at[0]);
    const T* x = reinterpret_cast<const T*>(at[1]);
    CAIRN_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = F::f(static_cast<C>(x[i]));
    return;
  }
  for (int64_t i = 0; i < n; ++i)
    *reinterpret_cast<bool*>(at[0] + i * step[0]) = F::f(load<T>(at[1], i * step[1]));
}

// f32's row for halves, see Loop::run_as.
template <class Fn>
Row wide_row(DType dtype, Fn&& row) {
  return dispatch(dtype, [&]<class T>() -> Row { return row.template operator()<Compute<T>>(); });
}

Row pick_compare(CompareKind kind, DType dtype) {
  switch (kind) {
#define CAIRN_CASE(name, Functor) \
  case CompareKind::name:         \
    return wide_row(dtype, []<class T>() -> Row { return compare_row<functors::Functor, T>; });
    CAIRN_COMPARE(CAIRN_CASE)
#undef CAIRN_CASE
#define CAIRN_CASE(name, Functor) \
  case CompareKind::name:         \
    return wide_row(dtype, []<class T>() -> Row { return test_row<functors::Functor, T>; });
    CAIRN_TEST(CAIRN_CASE)
#undef CAIRN_CASE
  }
  return nullptr;
}

template <class T>
HWY_ATTR void where_row(std::byte* const* at, const int64_t* step, int64_t n, const RowContext&) {
  constexpr int64_t kUnit = sizeof(T);
  T* y = reinterpret_cast<T*>(at[0]);
  const bool* c = reinterpret_cast<const bool*>(at[1]);
  const T* a = reinterpret_cast<const T*>(at[2]);
  const T* b = reinterpret_cast<const T*>(at[3]);
  if (step[0] == kUnit && step[1] == 1 && step[2] == kUnit && step[3] == kUnit) {
    CAIRN_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      const T va = a[i];
      const T vb = b[i];
      y[i] = c[i] ? va : vb;
    }
    return;
  }
  // A number arrives in the compute type; choosing moves values of the tensors' type.
  const auto fixed = [&](int k) {
    return step[k] == kNumber ? static_cast<T>(*reinterpret_cast<const Compute<T>*>(at[k])) : T{};
  };
  const T fixed_a = fixed(2);
  const T fixed_b = fixed(3);
  for (int64_t i = 0; i < n; ++i) {
    const bool choose = *reinterpret_cast<const bool*>(at[1] + i * step[1]);
    const T va = step[2] == kNumber ? fixed_a : *reinterpret_cast<const T*>(at[2] + i * step[2]);
    const T vb = step[3] == kNumber ? fixed_b : *reinterpret_cast<const T*>(at[3] + i * step[3]);
    *reinterpret_cast<T*>(at[0] + i * step[0]) = choose ? va : vb;
  }
}

// d (+)= condition == side ? g : 0; context.a is the side.
template <class T>
HWY_ATTR void where_bwd_row(std::byte* const* at, const int64_t* step, int64_t n,
                            const RowContext& context) {
  using C = Compute<T>;
  const bool side = context.a != 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool kept = *reinterpret_cast<const bool*>(at[2] + i * step[2]) == side;
    T& d = *reinterpret_cast<T*>(at[0] + i * step[0]);
    const C v = kept ? load<T>(at[1], i * step[1]) : C{};
    d = static_cast<T>(context.add ? static_cast<C>(d) + v : v);
  }
}

Row pick_where(DType dtype) {
  return dispatch(dtype, []<class T>() -> Row { return where_row<T>; });
}
Row pick_where_bwd(DType dtype) {
  return dispatch_floating(dtype, "where", []<class T>() -> Row { return where_bwd_row<T>; });
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {

HWY_EXPORT(pick_compare);
HWY_EXPORT(pick_where);
HWY_EXPORT(pick_where_bwd);

namespace {

// Elements worth a thread.
constexpr int64_t kGrain = 32768;

void compare(CompareKind kind, Out y, const Operand& a, const Operand& b) {
  const DType dtype = a.tensor ? a.tensor->dtype() : b.tensor->dtype();
  Loop(y).add_operand(a, dtype).add_operand(b, dtype).run_as(
      dtype, HWY_DYNAMIC_DISPATCH(pick_compare)(kind, dtype), {}, kGrain);
}

void test(CompareKind kind, Out y, In x) {
  Loop(y).add_tensor(x).run_as(x.dtype(), HWY_DYNAMIC_DISPATCH(pick_compare)(kind, x.dtype()), {},
                               kGrain);
}

}  // namespace
}  // namespace cpu

#define CAIRN_SLOTS(name, Functor)                                          \
  static void cpu_##name##_fwd(Out y, const Operand& a, const Operand& b) { \
    cpu::compare(cpu::CompareKind::name, y, a, b);                          \
  }                                                                         \
  BinaryFwd name##_fwd{#name "_fwd", cpu_##name##_fwd};
CAIRN_COMPARE(CAIRN_SLOTS)
#undef CAIRN_SLOTS

#define CAIRN_SLOTS(name, Functor)                               \
  static void cpu_##name##_fwd(Out y, In x, const Attributes&) { \
    cpu::test(cpu::CompareKind::name, y, x);                     \
  }                                                              \
  UnaryFwd name##_fwd{#name "_fwd", cpu_##name##_fwd};
CAIRN_TEST(CAIRN_SLOTS)
#undef CAIRN_SLOTS

static void cpu_where_fwd(Out y, In condition, const Operand& a, const Operand& b) {
  using namespace cpu;
  Loop(y)
      .add_tensor(condition)
      .add_operand(a, y.dtype())
      .add_operand(b, y.dtype())
      .run(HWY_DYNAMIC_DISPATCH(pick_where)(y.dtype()), {}, kGrain);
}
Slot<void(Out, In, const Operand&, const Operand&)> where_fwd{"where_fwd", cpu_where_fwd};

static void cpu_where_bwd(const Dst& d, bool side, In g, In condition) {
  using namespace cpu;
  if (!d) return;
  Loop(d.tensor).add_tensor(g).add_tensor(condition).run(
      HWY_DYNAMIC_DISPATCH(pick_where_bwd)(g.dtype()), {side ? 1.0 : 0.0, 0, d.add}, kGrain);
}
Slot<void(const Dst&, bool, In, In)> where_bwd{"where_bwd", cpu_where_bwd};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
