// Loads and stores between memory of any floating type and the vectors sums are kept in, for files
// that Highway compiles once per CPU target.
// Invariant: bf16 and f16 widen exactly and narrow to nearest even, with the bits of bfloat16 and
// float16 on every target.
#if defined(CAIRN_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)  // NOLINT
#ifdef CAIRN_LANES_INL_H_
#undef CAIRN_LANES_INL_H_
#else
#define CAIRN_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "cairn/tensor/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> load(D d, const T* p) {
  return hn::LoadU(d, p);
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const bfloat16* p) {
  const hn::Rebind<uint16_t, D> half;
  const hn::Rebind<uint32_t, D> word;
  const auto bits = hn::LoadU(half, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(word, bits)));
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float16* p) {
  const hn::Rebind<uint16_t, D> half;
  const hn::Rebind<uint32_t, D> word;
  const hn::Rebind<int32_t, D> integer;
  const auto bits = hn::PromoteTo(word, hn::LoadU(half, reinterpret_cast<const uint16_t*>(p)));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(word, 0x8000u)));
  const auto m = hn::And(bits, hn::Set(word, 0x7fffu));
  const auto finite = hn::Lt(hn::BitCast(integer, m), hn::Set(integer, 0x7c00));
  const auto tiny = hn::Lt(hn::BitCast(integer, m), hn::Set(integer, 0x400));
  const auto bias = hn::IfThenElse(hn::RebindMask(word, finite), hn::Set(word, 112u << 23),
                                   hn::Set(word, 224u << 23));
  const auto normal = hn::Add(hn::ShiftLeft<13>(m), bias);
  const auto scaled = hn::Mul(hn::ConvertTo(d, hn::BitCast(integer, m)), hn::Set(d, 0x1p-24f));
  const auto wide = hn::IfThenElse(hn::RebindMask(word, tiny), hn::BitCast(word, scaled), normal);
  return hn::BitCast(d, hn::Or(sign, wide));
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE void store(D d, hn::Vec<D> v, T* p) {
  hn::StoreU(v, d, p);
}

template <class D>
HWY_INLINE void store([[maybe_unused]] D d, hn::Vec<D> v, bfloat16* p) {
  const hn::Rebind<uint16_t, D> half;
  const hn::Rebind<uint32_t, D> word;
  const auto bits = hn::BitCast(word, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(word, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(word, 0x7fff))));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(word, 0x40));
  const auto nan = hn::RebindMask(word, hn::IsNaN(v));
  const auto narrow = hn::TruncateTo(half, hn::IfThenElse(nan, quiet, rounded));
  hn::StoreU(narrow, half, reinterpret_cast<uint16_t*>(p));
}

// The cases of float16's narrowing, chosen by masks.
template <class D>
HWY_INLINE void store(D d, hn::Vec<D> v, float16* p) {
  const hn::Rebind<uint16_t, D> half;
  const hn::Rebind<uint32_t, D> word;
  const hn::Rebind<int32_t, D> integer;
  const auto bits = hn::BitCast(word, v);
  const auto m = hn::And(bits, hn::Set(word, 0x7fffffffu));
  const auto at_least = [&](uint32_t bound) HWY_ATTR {
    const auto low = hn::Set(integer, static_cast<int32_t>(bound) - 1);
    return hn::RebindMask(word, hn::Gt(hn::BitCast(integer, m), low));
  };
  const auto odd = hn::And(hn::ShiftRight<13>(m), hn::Set(word, 1));
  const auto rounded = hn::Add(m, hn::Add(odd, hn::Set(word, 0xfffu - (112u << 23))));
  const auto tiny = hn::BitCast(word, hn::Add(hn::BitCast(d, m), hn::Set(d, 0.5f)));
  auto out = hn::IfThenElse(at_least(113u << 23), hn::ShiftRight<13>(rounded),
                            hn::Sub(tiny, hn::Set(word, 126u << 23)));
  out = hn::IfThenElse(at_least(143u << 23), hn::Set(word, 0x7c00u), out);
  const auto payload = hn::And(hn::ShiftRight<13>(m), hn::Set(word, 0x3ffu));
  out = hn::IfThenElse(at_least(0x7f800001u), hn::Or(payload, hn::Set(word, 0x7e00u)), out);
  out = hn::Or(out, hn::And(hn::ShiftRight<16>(bits), hn::Set(word, 0x8000u)));
  hn::StoreU(hn::TruncateTo(half, out), half, reinterpret_cast<uint16_t*>(p));
}

// v where it is above zero or NaN, else zero.
template <class D>
HWY_INLINE hn::Vec<D> relu_of(D d, hn::Vec<D> v) {
  return hn::IfThenZeroElse(hn::Le(v, hn::Zero(d)), v);
}

// One lane: the rest of a row that fills no vector goes element by element, with the same code.
template <class Acc>
using OneLane = hn::CappedTag<Acc, 1>;

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // CAIRN_LANES_INL_H_
