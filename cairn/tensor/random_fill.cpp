// Philox on one counter per 64-bit lane, and what is made of its words.
// Invariant: a stretch's end is computed as a whole vector and cut, so that an element's bits do
// not depend on where its stretch ends.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/tensor/random_fill.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cstring>

#include "cairn/tensor/random.h"
#include "cairn/tensor/random_fill.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::detail {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::RebindToUnsigned<F32>;
using I32 = hn::RebindToSigned<F32>;
using VF = hn::Vec<F32>;
using VU = hn::Vec<U32>;

// The words of one vector of blocks; lane 2l of `even` and `odd` has words 0 and 1 of block l, lane
// 2l + 1 has its words 2 and 3.
struct Words {
  VU even, odd;
};

#if HWY_TARGET == HWY_SCALAR
// One lane: half a block at a time, `half` says which.
constexpr int64_t kHalves = 2;
HWY_INLINE Words words_of(uint64_t seed, uint64_t block, int64_t half) {
  const U32 d;
  const auto w = philox(seed, block);
  return {hn::Set(d, w[static_cast<size_t>(2 * half)]),
          hn::Set(d, w[static_cast<size_t>(2 * half + 1)])};
}
#else
constexpr int64_t kHalves = 1;
// The rounds of `philox` in random.h; upper halves of lanes hold rubbish that no product reads.
HWY_INLINE Words words_of(uint64_t seed, uint64_t block, int64_t) {
  const U32 d;
  const hn::Repartition<uint64_t, U32> d64;
  const auto m0 = hn::Set(d, 0xD2511F53u);
  const auto m1 = hn::Set(d, 0xCD9E8D57u);
  const auto counter = hn::Add(hn::Set(d64, block), hn::Iota(d64, 0));
  auto c0 = counter;
  auto c1 = hn::ShiftRight<32>(counter);
  auto c2 = hn::Zero(d64);
  auto c3 = hn::Zero(d64);
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const auto p0 = hn::MulEven(hn::BitCast(d, c0), m0);
    const auto p1 = hn::MulEven(hn::BitCast(d, c2), m1);
    c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), hn::Set(d64, k0));
    c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), hn::Set(d64, k1));
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(c2)), hn::BitCast(d, c0)),
          hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(c3)), hn::BitCast(d, c1))};
}
#endif

HWY_INLINE VF to_float(VU bits) { return hn::ConvertTo(F32(), hn::BitCast(I32(), bits)); }

struct Pair {
  VF even, odd;
};

HWY_INLINE Pair uniforms(const Words& w) {
  const auto scale = hn::Set(F32(), 0x1p-24f);
  return {hn::Mul(to_float(hn::ShiftRight<8>(w.even)), scale),
          hn::Mul(to_float(hn::ShiftRight<8>(w.odd)), scale)};
}

HWY_INLINE Pair normals(const Words& w) {
  const F32 d;
  const auto u = hn::Mul(to_float(hn::ShiftRight<1>(w.even)), hn::Set(d, 0x1p-31f));
  const auto log = hn::Log(d, hn::Max(u, hn::Set(d, 0x1p-32f)));
  const auto radius = hn::Sqrt(hn::Mul(hn::Set(d, -2.0f), log));
  // The angle is the nearest whole quarter of a turn, exactly, from the word's top bits, and the
  // rest x in [-pi/4, pi/4], where Taylor's polynomials of these degrees are within 3e-8.
  const auto eighth = hn::Set(U32(), 0x20000000u);
  const auto shifted = hn::Add(w.odd, eighth);
  const auto rest = hn::Sub(hn::And(shifted, hn::Set(U32(), 0x3fffffffu)), eighth);
  const auto x = hn::Mul(to_float(rest), hn::Set(d, 0x1p-30f * 1.57079632679489662f));
  const auto x2 = hn::Mul(x, x);
  auto sin = hn::MulAdd(x2, hn::Set(d, 2.7557319e-6f), hn::Set(d, -1.9841270e-4f));
  sin = hn::MulAdd(x2, sin, hn::Set(d, 8.3333333e-3f));
  sin = hn::MulAdd(x2, sin, hn::Set(d, -1.6666667e-1f));
  sin = hn::MulAdd(hn::Mul(x2, x), sin, x);
  auto cos = hn::MulAdd(x2, hn::Set(d, 2.4801587e-5f), hn::Set(d, -1.3888889e-3f));
  cos = hn::MulAdd(x2, cos, hn::Set(d, 4.1666667e-2f));
  cos = hn::MulAdd(x2, cos, hn::Set(d, -0.5f));
  cos = hn::MulAdd(x2, cos, hn::Set(d, 1.0f));
  // An odd quarter swaps the two, quarters 1 and 2 turn the cosine's sign, 2 and 3 the sine's.
  const auto swap = hn::MaskFromVec(
      hn::BitCast(d, hn::BroadcastSignBit(hn::BitCast(I32(), hn::ShiftLeft<1>(shifted)))));
  const auto high = hn::And(shifted, hn::Set(U32(), 0x80000000u));
  const auto differ =
      hn::And(hn::Xor(shifted, hn::ShiftLeft<1>(shifted)), hn::Set(U32(), 0x80000000u));
  const auto c = hn::Xor(hn::IfThenElse(swap, sin, cos), hn::BitCast(d, differ));
  const auto s = hn::Xor(hn::IfThenElse(swap, cos, sin), hn::BitCast(d, high));
  return {hn::Mul(radius, c), hn::Mul(radius, s)};
}

template <class Make>
HWY_INLINE void fill(float* out, int64_t begin, int64_t end, uint64_t seed, uint64_t offset,
                     const Make& make) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = begin; i < end; i += 2 * lanes) {
    const uint64_t block = offset + static_cast<uint64_t>(i) / 4;
    const Pair pair = make(words_of(seed, block, i / 2 % kHalves));
    if (i + 2 * lanes <= end) {
      hn::StoreInterleaved2(pair.even, pair.odd, d, out + (i - begin));
    } else {
      HWY_ALIGN float last[2 * hn::MaxLanes(d)];
      hn::StoreInterleaved2(pair.even, pair.odd, d, last);
      std::copy_n(last, end - i, out + (i - begin));
    }
  }
}

void fill_uniform(float* out, int64_t begin, int64_t end, uint64_t seed, uint64_t offset) {
  fill(out, begin, end, seed, offset, [](const Words& w) HWY_ATTR { return uniforms(w); });
}

void fill_normal(float* out, int64_t begin, int64_t end, uint64_t seed, uint64_t offset, float mean,
                 float std) {
  fill(out, begin, end, seed, offset, [mean, std](const Words& w) HWY_ATTR {
    const auto m = hn::Set(F32(), mean);
    const auto s = hn::Set(F32(), std);
    const Pair z = normals(w);
    return Pair{hn::MulAdd(s, z.even, m), hn::MulAdd(s, z.odd, m)};
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::detail
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::detail {

HWY_EXPORT(fill_uniform);
HWY_EXPORT(fill_normal);

void fill_uniform(float* out, int64_t begin, int64_t end, uint64_t seed, uint64_t offset) {
  HWY_DYNAMIC_DISPATCH(fill_uniform)(out, begin, end, seed, offset);
}
void fill_normal(float* out, int64_t begin, int64_t end, uint64_t seed, uint64_t offset, float mean,
                 float std) {
  HWY_DYNAMIC_DISPATCH(fill_normal)(out, begin, end, seed, offset, mean, std);
}

}  // namespace cairn::detail
#endif  // HWY_ONCE
