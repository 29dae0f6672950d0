// Binary elementwise kernels: one row function per functor, dtype and CPU target.
// Invariant: the loop of a row is plain code that the compiler vectorises for each target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/binary.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "cairn/kernels/cpu/loops.h"
#include "cairn/kernels/cpu/rows.h"

#ifndef CAIRN_BINARY_KIND
#define CAIRN_BINARY_KIND
namespace cairn::kernels::cpu {
enum class BinaryKind {
#define CAIRN_NAME(name, Functor) name,
  CAIRN_BINARY(CAIRN_NAME)
#undef CAIRN_NAME
};

// The derivative by one operand as a functor of (g, a, b).
template <class F>
struct ByA {
  static constexpr int kReads = F::kDaReads;
  template <class C>
  static CAIRN_INLINE C f(C g, C a, C b) {
    return F::da(g, a, b);
  }
};
template <class F>
struct ByB {
  static constexpr int kReads = F::kDbReads;
  template <class C>
  static CAIRN_INLINE C f(C g, C a, C b) {
    return F::db(g, a, b);
  }
};
}  // namespace cairn::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

template <class F, class T>
HWY_ATTR void binary_row(std::byte* const* at, const int64_t* step, int64_t n, const RowContext&) {
  using C = Compute<T>;
  constexpr int64_t kUnit = sizeof(T);
  T* y = reinterpret_cast<T*>(at[0]);
  const T* a = reinterpret_cast<const T*>(at[1]);
  const T* b = reinterpret_cast<const T*>(at[2]);
  if (step[0] == kUnit && step[1] == kUnit && step[2] == kUnit) {
    CAIRN_INDEPENDENT
    for (int64_t i = 0; i < n; ++i)
      y[i] = static_cast<T>(F::f(static_cast<C>(a[i]), static_cast<C>(b[i])));
  } else if (step[0] == kUnit && step[1] == kUnit && is_single(step[2])) {
    const C value = single<T>(at[2], step[2]);
    CAIRN_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(F::f(static_cast<C>(a[i]), value));
  } else if (step[0] == kUnit && is_single(step[1]) && step[2] == kUnit) {
    const C value = single<T>(at[1], step[1]);
    CAIRN_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(F::f(value, static_cast<C>(b[i])));
  } else {
    const bool single_a = is_single(step[1]);
    const bool single_b = is_single(step[2]);
    const C value_a = single_a ? single<T>(at[1], step[1]) : C{};
    const C value_b = single_b ? single<T>(at[2], step[2]) : C{};
    for (int64_t i = 0; i < n; ++i) {
      const C va = single_a ? value_a : load<T>(at[1], i * step[1]);
      const C vb = single_b ? value_b : load<T>(at[2], i * step[2]);
      *reinterpret_cast<T*>(at[0] + i * step[0]) = static_cast<T>(F::f(va, vb));
    }
  }
}

// d (+)= F(g, a, b); operands that F does not read are not touched.
template <class F, class T>
HWY_ATTR void binary_bwd_row(std::byte* const* at, const int64_t* step, int64_t n,
                             const RowContext& context) {
  using C = Compute<T>;
  constexpr int64_t kUnit = sizeof(T);
  constexpr bool kA = F::kReads & functors::kReadsA;
  constexpr bool kB = F::kReads & functors::kReadsB;
  T* d = reinterpret_cast<T*>(at[0]);
  const T* g = reinterpret_cast<const T*>(at[1]);
  const T* a = reinterpret_cast<const T*>(at[2]);
  const T* b = reinterpret_cast<const T*>(at[3]);
  const bool unit = step[0] == kUnit && step[1] == kUnit && (!kA || step[2] == kUnit);
  const auto of = [](const T* p, int64_t i, bool read)
                      HWY_ATTR { return read ? static_cast<C>(p[i]) : C{}; };
  if (unit && (!kB || step[3] == kUnit)) {
    if (context.add) {
      CAIRN_INDEPENDENT
      for (int64_t i = 0; i < n; ++i)
        d[i] = static_cast<T>(static_cast<C>(d[i]) +
                              F::f(static_cast<C>(g[i]), of(a, i, kA), of(b, i, kB)));
    } else {
      CAIRN_INDEPENDENT
      for (int64_t i = 0; i < n; ++i)
        d[i] = static_cast<T>(F::f(static_cast<C>(g[i]), of(a, i, kA), of(b, i, kB)));
    }
  } else if (unit && is_single(step[3])) {
    const C value = single<T>(at[3], step[3]);
    if (context.add) {
      CAIRN_INDEPENDENT
      for (int64_t i = 0; i < n; ++i)
        d[i] =
            static_cast<T>(static_cast<C>(d[i]) + F::f(static_cast<C>(g[i]), of(a, i, kA), value));
    } else {
      CAIRN_INDEPENDENT
      for (int64_t i = 0; i < n; ++i)
        d[i] = static_cast<T>(F::f(static_cast<C>(g[i]), of(a, i, kA), value));
    }
  } else {
    const bool single_a = !kA || is_single(step[2]);
    const bool single_b = !kB || is_single(step[3]);
    const C value_a = kA && single_a ? single<T>(at[2], step[2]) : C{};
    const C value_b = kB && single_b ? single<T>(at[3], step[3]) : C{};
    for (int64_t i = 0; i < n; ++i) {
      const C va = single_a ? value_a : load<T>(at[2], i * step[2]);
      const C vb = single_b ? value_b : load<T>(at[3], i * step[3]);
      const C v = F::f(load<T>(at[1], i * step[1]), va, vb);
      T& out = *reinterpret_cast<T*>(at[0] + i * step[0]);
      out = static_cast<T>(context.add ? static_cast<C>(out) + v : v);
    }
  }
}

// y = a + b * context.a
template <class T>
HWY_ATTR void add_scaled_row(std::byte* const* at, const int64_t* step, int64_t n,
                             const RowContext& context) {
  using C = Compute<T>;
  constexpr int64_t kUnit = sizeof(T);
  const C scale = static_cast<C>(context.a);
  T* y = reinterpret_cast<T*>(at[0]);
  const T* a = reinterpret_cast<const T*>(at[1]);
  const T* b = reinterpret_cast<const T*>(at[2]);
  if (step[0] == kUnit && step[1] == kUnit && step[2] == kUnit) {
    CAIRN_INDEPENDENT
    for (int64_t i = 0; i < n; ++i)
      y[i] = static_cast<T>(
          functors::Add::f(static_cast<C>(a[i]), functors::Mul::f(static_cast<C>(b[i]), scale)));
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const C va = is_single(step[1]) ? single<T>(at[1], step[1]) : load<T>(at[1], i * step[1]);
    const C vb = is_single(step[2]) ? single<T>(at[2], step[2]) : load<T>(at[2], i * step[2]);
    *reinterpret_cast<T*>(at[0] + i * step[0]) =
        static_cast<T>(functors::Add::f(va, functors::Mul::f(vb, scale)));
  }
}

template <class F>
HWY_ATTR Row forward_row(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return binary_row<F, double>;
    case DType::f32:
      return binary_row<F, float>;
    default:
      break;
  }
  if constexpr (!std::is_same_v<F, functors::Div>) {
    switch (dtype) {
      case DType::i64:
        return binary_row<F, int64_t>;
      case DType::i32:
        return binary_row<F, int32_t>;
      case DType::u8:
        return binary_row<F, uint8_t>;
      case DType::boolean:
        return binary_row<F, bool>;
      default:
        break;
    }
  }
  return nullptr;
}

template <class F>
HWY_ATTR Row backward_row(DType dtype) {
  return dtype == DType::f64   ? binary_bwd_row<F, double>
         : dtype == DType::f32 ? binary_bwd_row<F, float>
                               : nullptr;
}

Row pick_binary(BinaryKind kind, DType dtype) {
  switch (kind) {
#define CAIRN_CASE(name, Functor) \
  case BinaryKind::name:          \
    return forward_row<functors::Functor>(dtype);
    CAIRN_BINARY(CAIRN_CASE)
#undef CAIRN_CASE
  }
  return nullptr;
}

Row pick_binary_bwd(BinaryKind kind, int which, DType dtype) {
  switch (kind) {
#define CAIRN_CASE(name, Functor)                                   \
  case BinaryKind::name:                                            \
    return which == 0 ? backward_row<ByA<functors::Functor>>(dtype) \
                      : backward_row<ByB<functors::Functor>>(dtype);
    CAIRN_BINARY(CAIRN_CASE)
#undef CAIRN_CASE
  }
  return nullptr;
}

Row pick_add_scaled(DType dtype) {
  return dispatch(dtype, []<class T>() -> Row { return add_scaled_row<T>; });
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {

HWY_EXPORT(pick_binary);
HWY_EXPORT(pick_binary_bwd);
HWY_EXPORT(pick_add_scaled);

namespace {

// Elements worth a thread: about 10 us of the cheapest kernels, which wait for memory.
constexpr int64_t kGrain = 32768;

void binary_fwd(BinaryKind kind, const char* name, Out y, const Operand& a, const Operand& b) {
  const Row row = HWY_DYNAMIC_DISPATCH(pick_binary)(kind, compute_dtype(y.dtype()));
  check(row != nullptr, name, ": dtype must be one the op computes in, got ", y.dtype());
  Loop(y).add_operand(a, y.dtype()).add_operand(b, y.dtype()).run_as(y.dtype(), row, {}, kGrain);
}

void binary_bwd(BinaryKind kind, const char* name, const Dst& d, int which, In g, const Operand& a,
                const Operand& b) {
  if (!d) return;
  const DType dtype = g.dtype();
  const Row row = HWY_DYNAMIC_DISPATCH(pick_binary_bwd)(kind, which, compute_dtype(dtype));
  check(row != nullptr, name, ": dtype must be floating, got ", dtype);
  Loop(d.tensor).add_tensor(g).add_operand(a, dtype).add_operand(b, dtype).run_as(
      dtype, row, {0, 0, d.add}, kGrain);
}

}  // namespace
}  // namespace cpu

static void cpu_add_scaled_fwd(Out y, const Operand& a, const Operand& b, double scale) {
  using namespace cpu;
  const Row row = HWY_DYNAMIC_DISPATCH(pick_add_scaled)(y.dtype());
  Loop(y).add_operand(a, y.dtype()).add_operand(b, y.dtype()).run(row, {scale, 0, false}, kGrain);
}
Slot<void(Out, const Operand&, const Operand&, double)> add_scaled_fwd{"add_scaled_fwd",
                                                                       cpu_add_scaled_fwd};

#define CAIRN_SLOTS(name, Functor)                                              \
  static void cpu_##name##_fwd(Out y, const Operand& a, const Operand& b) {     \
    cpu::binary_fwd(cpu::BinaryKind::name, #name, y, a, b);                     \
  }                                                                             \
  static void cpu_##name##_bwd(const Dst& d, int which, In g, const Operand& a, \
                               const Operand& b) {                              \
    cpu::binary_bwd(cpu::BinaryKind::name, #name, d, which, g, a, b);           \
  }                                                                             \
  BinaryFwd name##_fwd{#name "_fwd", cpu_##name##_fwd};                         \
  BinaryBwd name##_bwd{#name "_bwd", cpu_##name##_bwd};
CAIRN_BINARY(CAIRN_SLOTS)
#undef CAIRN_SLOTS

}  // namespace cairn::kernels
#endif  // HWY_ONCE
