// combine: buffers reduced in order, in registers, a few vectors of each at a time.
// Invariant: vectors and single lanes run the same code, so an element's result depends on the
// parts' order alone, not on where a caller cuts them.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/combine.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "cairn/kernels/combine.h"
#include "cairn/kernels/cpu/lanes-inl.h"

#ifndef CAIRN_COMBINE_H_
#define CAIRN_COMBINE_H_
namespace cairn::kernels::cpu {

// What one call does, for the functions of all targets.
struct Combination {
  std::span<void* const> outs;
  DType dtype;
  std::span<const Part> parts;
  int64_t n;
  double scale;
};
using Combine = void (*)(const Combination&);

// f32, bf16 and f16 beside each other.
struct Mixed {};

}  // namespace cairn::kernels::cpu
#endif  // CAIRN_COMBINE_H_

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

// Elements of buffer `data`, which are of T, or of `dtype` where T is Mixed.
template <class T, class D>
HWY_INLINE hn::Vec<D> load_of(D d, const void* data, [[maybe_unused]] DType dtype, int64_t i) {
  if constexpr (!std::is_same_v<T, Mixed>) {
    return load(d, static_cast<const T*>(data) + i);
  } else {
    if (dtype == DType::bf16) return load(d, static_cast<const bfloat16*>(data) + i);
    if (dtype == DType::f16) return load(d, static_cast<const float16*>(data) + i);
    return load(d, static_cast<const float*>(data) + i);
  }
}

template <class T, class D>
HWY_INLINE void store_as(D d, hn::Vec<D> v, void* data, [[maybe_unused]] DType dtype, int64_t i) {
  if constexpr (!std::is_same_v<T, Mixed>) {
    store(d, v, static_cast<T*>(data) + i);
  } else {
    if (dtype == DType::bf16) return store(d, v, static_cast<bfloat16*>(data) + i);
    if (dtype == DType::f16) return store(d, v, static_cast<float16*>(data) + i);
    store(d, v, static_cast<float*>(data) + i);
  }
}

template <ReduceOp kOp, class V>
HWY_INLINE V apply(V a, V b) {
  if constexpr (kOp == ReduceOp::sum) return hn::Add(a, b);
  if constexpr (kOp == ReduceOp::prod) return hn::Mul(a, b);
  if constexpr (kOp == ReduceOp::min)
    return hn::IfThenElse(hn::Or(hn::Lt(b, a), hn::IsNaN(b)), b, a);
  if constexpr (kOp == ReduceOp::max)
    return hn::IfThenElse(hn::Or(hn::Lt(a, b), hn::IsNaN(b)), b, a);
}

// v * scale as if computed in f64 and rounded once: the product of two f32 is exact there.
template <class D, class W = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> scaled(D d, hn::Vec<D> v, double scale) {
  if (std::is_same_v<W, double> || static_cast<double>(static_cast<W>(scale)) == scale)
    return hn::Mul(v, hn::Set(d, static_cast<W>(scale)));
  W lanes[hn::MaxLanes(D())];
  hn::StoreU(v, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = static_cast<W>(lanes[i] * scale);
  return hn::LoadU(d, lanes);
}

// kVectors vectors from element i on.
template <class T, ReduceOp kOp, int kVectors, class D>
HWY_INLINE void combine_vectors(D d, const Combination& c, int64_t i) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Part* const parts = c.parts.data();
  hn::Vec<D> v0 = load_of<T>(d, parts[0].data, parts[0].dtype, i);
  hn::Vec<D> v1 = v0, v2 = v0, v3 = v0;
  if constexpr (kVectors == 4) {
    v1 = load_of<T>(d, parts[0].data, parts[0].dtype, i + lanes);
    v2 = load_of<T>(d, parts[0].data, parts[0].dtype, i + 2 * lanes);
    v3 = load_of<T>(d, parts[0].data, parts[0].dtype, i + 3 * lanes);
  }
  for (size_t p = 1; p < c.parts.size(); ++p) {
    const auto [data, dtype] = parts[p];
    v0 = apply<kOp>(v0, load_of<T>(d, data, dtype, i));
    if constexpr (kVectors == 4) {
      v1 = apply<kOp>(v1, load_of<T>(d, data, dtype, i + lanes));
      v2 = apply<kOp>(v2, load_of<T>(d, data, dtype, i + 2 * lanes));
      v3 = apply<kOp>(v3, load_of<T>(d, data, dtype, i + 3 * lanes));
    }
  }
  if (c.scale != 1) {
    v0 = scaled(d, v0, c.scale);
    if constexpr (kVectors == 4) {
      v1 = scaled(d, v1, c.scale);
      v2 = scaled(d, v2, c.scale);
      v3 = scaled(d, v3, c.scale);
    }
  }
  for (void* out : c.outs) {
    store_as<T>(d, v0, out, c.dtype, i);
    if constexpr (kVectors == 4) {
      store_as<T>(d, v1, out, c.dtype, i + lanes);
      store_as<T>(d, v2, out, c.dtype, i + 2 * lanes);
      store_as<T>(d, v3, out, c.dtype, i + 3 * lanes);
    }
  }
}

template <class T, ReduceOp kOp>
void combine_floats(const Combination& c) {
  using W = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const hn::ScalableTag<W> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + 4 * lanes <= c.n; i += 4 * lanes) combine_vectors<T, kOp, 4>(d, c, i);
  for (; i + lanes <= c.n; i += lanes) combine_vectors<T, kOp, 1>(d, c, i);
  for (; i < c.n; ++i) combine_vectors<T, kOp, 1>(OneLane<W>(), c, i);
}

// Arithmetic of integers is that of the unsigned type, so that it wraps around; order their own.
template <class T, ReduceOp kOp>
HWY_INLINE T apply_integer(T a, T b) {
  using U = std::conditional_t<sizeof(T) == 1, unsigned, std::make_unsigned_t<T>>;
  if constexpr (kOp == ReduceOp::sum) return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  if constexpr (kOp == ReduceOp::prod) return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
  if constexpr (kOp == ReduceOp::min) return b < a ? b : a;
  if constexpr (kOp == ReduceOp::max) return a < b ? b : a;
}

// Blocks that stay in the first cache; the compiler makes vectors of the loops.
template <class T, ReduceOp kOp>
void combine_integers(const Combination& c) {
  constexpr int64_t kBlock = 1024;
  T sum[kBlock];
  for (int64_t begin = 0; begin < c.n; begin += kBlock) {
    const int64_t n = std::min(kBlock, c.n - begin);
    std::copy_n(static_cast<const T*>(c.parts[0].data) + begin, n, sum);
    for (const Part& part : c.parts.subspan(1)) {
      const T* const in = static_cast<const T*>(part.data) + begin;
      for (int64_t i = 0; i < n; ++i) sum[i] = apply_integer<T, kOp>(sum[i], in[i]);
    }
    for (void* out : c.outs) std::copy_n(sum, n, static_cast<T*>(out) + begin);
  }
}

template <ReduceOp kOp>
Combine pick_typed(DType dtype, bool mixed) {
  if (mixed) return combine_floats<Mixed, kOp>;
  return dispatch(dtype, []<class T>() -> Combine {
    if constexpr (std::is_same_v<T, bool>)
      fail("combine: dtype must be a number's, got ", DType::boolean);
    else if constexpr (std::is_integral_v<T>)
      return combine_integers<T, kOp>;
    else
      return combine_floats<T, kOp>;
  });
}

Combine pick_combine(DType dtype, bool mixed, ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::avg:
      return pick_typed<ReduceOp::sum>(dtype, mixed);
    case ReduceOp::prod:
      return pick_typed<ReduceOp::prod>(dtype, mixed);
    case ReduceOp::min:
      return pick_typed<ReduceOp::min>(dtype, mixed);
    case ReduceOp::max:
      return pick_typed<ReduceOp::max>(dtype, mixed);
  }
  fail("combine: unknown reduction");
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {

HWY_EXPORT(pick_combine);

namespace {

void combine_all(std::span<void* const> outs, DType dtype, std::span<const Part> parts, int64_t n,
                 ReduceOp op, double scale) {
  const bool mixed =
      std::any_of(parts.begin(), parts.end(), [&](const Part& p) { return p.dtype != dtype; });
  HWY_DYNAMIC_DISPATCH(pick_combine)(dtype, mixed, op)({outs, dtype, parts, n, scale});
}

void combine_one(void* out, DType dtype, std::span<const Part> parts, int64_t n, ReduceOp op,
                 double scale) {
  combine_all({&out, 1}, dtype, parts, n, op, scale);
}

}  // namespace
}  // namespace cpu

std::string_view name_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return "sum";
    case ReduceOp::avg:
      return "avg";
    case ReduceOp::min:
      return "min";
    case ReduceOp::max:
      return "max";
    case ReduceOp::prod:
      return "prod";
  }
  return "unknown";
}

Slot<void(void*, DType, std::span<const Part>, int64_t, ReduceOp, double)> combine{
    "combine", cpu::combine_one};
Slot<void(std::span<void* const>, DType, std::span<const Part>, int64_t, ReduceOp, double)>
    combine_to_all{"combine_to_all", cpu::combine_all};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
