// Widening and narrowing of halves: vectors where the elements are neighbours.
// Invariant: vectors and single elements give the same bits.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/narrow.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "cairn/kernels/cpu/lanes-inl.h"
#include "cairn/kernels/cpu/narrow.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

template <class T>
void widen_as(const std::byte* from, int64_t step, int64_t n, float* out) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  if (step == sizeof(T))
    for (; i + lanes <= n; i += lanes)
      hn::StoreU(load(d, reinterpret_cast<const T*>(from) + i), d, out + i);
  for (; i < n; ++i) out[i] = *reinterpret_cast<const T*>(from + i * step);
}

template <class T>
void narrow_as(const float* in, int64_t n, std::byte* to, int64_t step) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  if (step == sizeof(T))
    for (; i + lanes <= n; i += lanes) store(d, hn::LoadU(d, in + i), reinterpret_cast<T*>(to) + i);
  for (; i < n; ++i) *reinterpret_cast<T*>(to + i * step) = static_cast<T>(in[i]);
}

void widen_half(DType half, const std::byte* from, int64_t step, int64_t n, float* out) {
  half == DType::bf16 ? widen_as<bfloat16>(from, step, n, out)
                      : widen_as<float16>(from, step, n, out);
}
void narrow_half(DType half, const float* in, int64_t n, std::byte* to, int64_t step) {
  half == DType::bf16 ? narrow_as<bfloat16>(in, n, to, step) : narrow_as<float16>(in, n, to, step);
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels::cpu {

HWY_EXPORT(widen_half);
HWY_EXPORT(narrow_half);

void widen(DType half, const std::byte* from, int64_t step, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_half)(half, from, step, n, out);
}
void narrow(DType half, const float* in, int64_t n, std::byte* to, int64_t step) {
  HWY_DYNAMIC_DISPATCH(narrow_half)(half, in, n, to, step);
}

}  // namespace cairn::kernels::cpu
#endif  // HWY_ONCE
