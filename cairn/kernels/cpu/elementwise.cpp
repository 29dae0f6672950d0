// Unary elementwise kernels: one row function per functor, dtype and CPU target.
// Invariant: the loop of a row is plain code that the compiler vectorises for each target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "cairn/kernels/cpu/loops.h"
#include "cairn/kernels/cpu/rows.h"

#ifndef CAIRN_UNARY_KIND
#define CAIRN_UNARY_KIND
namespace cairn::kernels::cpu {
enum class UnaryKind {
#define CAIRN_NAME(name, Functor) name,
  CAIRN_UNARY(CAIRN_NAME)
#undef CAIRN_NAME
};
}  // namespace cairn::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

template <class F, class T>
HWY_ATTR void unary_row(std::byte* const* at, const int64_t* step, int64_t n,
                        const RowContext& context) {
  using C = Compute<T>;
  const functors::Numbers<C> p{static_cast<C>(context.a), static_cast<C>(context.b)};
  if (step[0] == sizeof(T) && step[1] == sizeof(T)) {
    T* y = reinterpret_cast<T*>(at[0]);
    const T* x = reinterpret_cast<const T*>(at[1]);
    CAIRN_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(call_f<F>(static_cast<C>(x[i]), p));
    return;
  }
  for (int64_t i = 0; i < n; ++i)
    *reinterpret_cast<T*>(at[0] + i * step[0]) =
        static_cast<T>(call_f<F>(load<T>(at[1], i * step[1]), p));
}

template <class F, class T>
HWY_ATTR void unary_bwd_row(std::byte* const* at, const int64_t* step, int64_t n,
                            const RowContext& context) {
  using C = Compute<T>;
  const functors::Numbers<C> p{static_cast<C>(context.a), static_cast<C>(context.b)};
  if (step[0] == sizeof(T) && step[1] == sizeof(T) && step[2] == sizeof(T)) {
    T* d = reinterpret_cast<T*>(at[0]);
    const T* g = reinterpret_cast<const T*>(at[1]);
    const T* s = reinterpret_cast<const T*>(at[2]);
    if (context.add) {
      CAIRN_INDEPENDENT
      for (int64_t i = 0; i < n; ++i)
        d[i] = static_cast<T>(static_cast<C>(d[i]) +
                              call_df<F>(static_cast<C>(g[i]), static_cast<C>(s[i]), p));
    } else {
      CAIRN_INDEPENDENT
      for (int64_t i = 0; i < n; ++i)
        d[i] = static_cast<T>(call_df<F>(static_cast<C>(g[i]), static_cast<C>(s[i]), p));
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    T& d = *reinterpret_cast<T*>(at[0] + i * step[0]);
    const C v = call_df<F>(load<T>(at[1], i * step[1]), load<T>(at[2], i * step[2]), p);
    d = static_cast<T>(context.add ? static_cast<C>(d) + v : v);
  }
}

// Null where the op has no meaning for the dtype. Halves take f32's rows, see
// Loop::run_as.
template <class F>
HWY_ATTR Row floating_row(DType dtype) {
  return dtype == DType::f64   ? unary_row<F, double>
         : dtype == DType::f32 ? unary_row<F, float>
                               : nullptr;
}
template <class F>
HWY_ATTR Row any_row(DType dtype) {
  return dtype == DType::i64   ? unary_row<F, int64_t>
         : dtype == DType::i32 ? unary_row<F, int32_t>
         : dtype == DType::u8  ? unary_row<F, uint8_t>
                               : floating_row<F>(dtype);
}
template <class F>
HWY_ATTR Row bwd_row(DType dtype) {
  return dtype == DType::f64   ? unary_bwd_row<F, double>
         : dtype == DType::f32 ? unary_bwd_row<F, float>
                               : nullptr;
}

Row pick_unary(UnaryKind kind, DType dtype) {
  switch (kind) {
#define CAIRN_FLOATING(name, Functor) \
  case UnaryKind::name:               \
    return floating_row<functors::Functor>(dtype);
#define CAIRN_ANY(name, Functor) \
  case UnaryKind::name:          \
    return any_row<functors::Functor>(dtype);
    CAIRN_UNARY_FLOATING(CAIRN_FLOATING)
    CAIRN_UNARY_FLOATING_CUSTOM(CAIRN_FLOATING)
    CAIRN_UNARY_ANY(CAIRN_ANY)
    CAIRN_UNARY_ANY_CUSTOM(CAIRN_ANY)
#undef CAIRN_FLOATING
#undef CAIRN_ANY
  }
  return nullptr;
}

Row pick_unary_bwd(UnaryKind kind, DType dtype) {
  switch (kind) {
#define CAIRN_CASE(name, Functor) \
  case UnaryKind::name:           \
    return bwd_row<functors::Functor>(dtype);
    CAIRN_UNARY(CAIRN_CASE)
#undef CAIRN_CASE
  }
  return nullptr;
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {

HWY_EXPORT(pick_unary);
HWY_EXPORT(pick_unary_bwd);

namespace {

// Elements worth a thread: about 10 us of the cheapest kernels, which wait for memory.
constexpr int64_t kGrain = 32768;

void unary_fwd(UnaryKind kind, const char* name, Out y, In x, const Attributes& attributes) {
  const Row row = HWY_DYNAMIC_DISPATCH(pick_unary)(kind, compute_dtype(x.dtype()));
  check(row != nullptr, name, ": dtype must be one the op computes in, got ", x.dtype());
  Loop(y).add_tensor(x).run_as(x.dtype(), row, {attributes.a, attributes.b, false}, kGrain);
}

void unary_bwd(UnaryKind kind, const char* name, const Dst& dx, In g, In saved,
               const Attributes& attributes) {
  if (!dx) return;
  const Row row = HWY_DYNAMIC_DISPATCH(pick_unary_bwd)(kind, compute_dtype(g.dtype()));
  check(row != nullptr, name, ": dtype must be floating, got ", g.dtype());
  Loop(dx.tensor).add_tensor(g).add_tensor(saved).run_as(
      g.dtype(), row, {attributes.a, attributes.b, dx.add}, kGrain);
}

}  // namespace
}  // namespace cpu

#define CAIRN_SLOTS(name, Functor)                                                            \
  static void cpu_##name##_fwd(Out y, In x, const Attributes& attributes) {                   \
    cpu::unary_fwd(cpu::UnaryKind::name, #name, y, x, attributes);                            \
  }                                                                                           \
  static void cpu_##name##_bwd(const Dst& dx, In g, In saved, const Attributes& attributes) { \
    cpu::unary_bwd(cpu::UnaryKind::name, #name, dx, g, saved, attributes);                    \
  }                                                                                           \
  UnaryFwd name##_fwd{#name "_fwd", cpu_##name##_fwd};                                        \
  UnaryBwd name##_bwd{#name "_bwd", cpu_##name##_bwd};
CAIRN_UNARY(CAIRN_SLOTS)
#undef CAIRN_SLOTS

}  // namespace cairn::kernels
#endif  // HWY_ONCE
