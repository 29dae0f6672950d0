// Loads and stores between memory of any floating type and the vectors sums are kept in, for files
// that Highway compiles once per CPU target.
// Invariant: bf16 widens exactly and narrows to nearest even, as bfloat16 does.
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
