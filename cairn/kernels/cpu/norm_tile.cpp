// The passes of batch normalisation, compiled once for each CPU target and chosen at run time.
// Invariant: a channel's sums run over the rows in order, kNormRows at a time in the vectors' own
// type and from there on in f64.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/norm_tile.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>

#include "cairn/kernels/cpu/float_tables.h"
#include "cairn/kernels/cpu/lanes-inl.h"
#include "cairn/kernels/cpu/norm_tile.h"

// Register arrays only stay in registers when every loop over them is unrolled, at any -O level.
#ifndef CAIRN_UNROLL
#if defined(__clang__)
#define CAIRN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CAIRN_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

// sum[0], sum[1] = mean and sum of squared deviations of each channel. Each run of kNormRows rows
// is read twice: for its mean, then for deviations from it (which also repair the mean's rounding).
template <int K, class T, class D>
HWY_INLINE void stats_tile(D d, const NormPiece<T>& p, int64_t c0) {
  using Acc = hn::TFromD<D>;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  constexpr int64_t kWidth = K * kLanes;
  HWY_ALIGN Acc shift[kWidth], first[kWidth], second[kWidth];
  double* mean = p.sum[0] + c0;
  double* m2 = p.sum[1] + c0;
  for (int64_t c = 0; c < kWidth; ++c) mean[c] = m2[c] = 0;
  for (int64_t r0 = 0; r0 < p.rows; r0 += kNormRows) {
    const int64_t n = std::min(kNormRows, p.rows - r0);
    const T* x = p.x + r0 * p.ld + c0;
    hn::Vec<D> m[K], s1[K], s2[K];
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) m[k] = s1[k] = s2[k] = hn::Zero(d);
    for (int64_t r = 0; r < n; ++r) {
      CAIRN_UNROLL
      for (int k = 0; k < K; ++k) m[k] = hn::Add(m[k], load(d, x + r * p.ld + k * kLanes));
    }
    const auto inverse = hn::Set(d, Acc(1) / static_cast<Acc>(n));
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) m[k] = hn::Mul(m[k], inverse);
    for (int64_t r = 0; r < n; ++r) {
      CAIRN_UNROLL
      for (int k = 0; k < K; ++k) {
        const auto v = hn::Sub(load(d, x + r * p.ld + k * kLanes), m[k]);
        s1[k] = hn::Add(s1[k], v);
        s2[k] = hn::MulAdd(v, v, s2[k]);
      }
    }
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) {
      hn::StoreU(m[k], d, shift + k * kLanes);
      hn::StoreU(s1[k], d, first + k * kLanes);
      hn::StoreU(s2[k], d, second + k * kLanes);
    }
    // Chan, Golub, LeVeque: joining the moments of two sets.
    const double count = static_cast<double>(n), before = static_cast<double>(r0);
    const double share = count / (before + count), cross = before * share;
    for (int64_t c = 0; c < kWidth; ++c) {
      const double off = static_cast<double>(first[c]) / count;
      const double delta = static_cast<double>(shift[c]) + off - mean[c];
      mean[c] += delta * share;
      m2[c] += static_cast<double>(second[c]) - off * off * count + delta * delta * cross;
    }
  }
}

template <int K, bool kRelu, bool kResidual, class T, class D>
HWY_INLINE void apply_tile(D d, const NormPiece<T>& p, int64_t c0) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> mean[K], factor[K], offset[K];
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) {
    mean[k] = hn::LoadU(d, p.coef[kMean] + c0 + k * kLanes);
    factor[k] = hn::LoadU(d, p.coef[kFactor] + c0 + k * kLanes);
    offset[k] = hn::LoadU(d, p.coef[kOffset] + c0 + k * kLanes);
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) {
      const int64_t i = r * p.ld + c0 + k * kLanes;
      auto v = hn::MulAdd(hn::Sub(load(d, p.x + i), mean[k]), factor[k], offset[k]);
      if constexpr (kResidual) v = hn::Add(v, load(d, p.residual + i));
      if constexpr (kRelu) v = relu_of(d, v);
      store(d, v, p.out + i);
    }
  }
}

// What relu lets through of a gradient: where the forward's output was above zero (or NaN). The
// output is read, or computed again by the forward's own operations; `centered` is x - mean.
template <NormMask kMask, class T, class D>
HWY_INLINE hn::Vec<D> masked_gradient(D d, const NormPiece<T>& p, int64_t i,
                                      [[maybe_unused]] hn::Vec<D> centered,
                                      [[maybe_unused]] hn::Vec<D> factor,
                                      [[maybe_unused]] hn::Vec<D> offset) {
  const auto g = load(d, p.dy + i);
  if constexpr (kMask == NormMask::output)
    return hn::IfThenZeroElse(hn::Le(load(d, p.y + i), hn::Zero(d)), g);
  else if constexpr (kMask == NormMask::input)
    return hn::IfThenZeroElse(hn::Le(hn::MulAdd(centered, factor, offset), hn::Zero(d)), g);
  else
    return g;
}

// sum[0] = sum of dy, sum[1] = sum of dy (x - mean); dresidual (+)= dy on the way.
template <int K, NormMask kMask, bool kResidual, class T, class D>
HWY_INLINE void reduce_tile(D d, const NormPiece<T>& p, int64_t c0) {
  using Acc = hn::TFromD<D>;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  constexpr int64_t kWidth = K * kLanes;
  HWY_ALIGN Acc first[kWidth], second[kWidth];
  double* sum0 = p.sum[0] + c0;
  double* sum1 = p.sum[1] + c0;
  for (int64_t c = 0; c < kWidth; ++c) sum0[c] = sum1[c] = 0;
  hn::Vec<D> mean[K], factor[K], offset[K];
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) {
    mean[k] = hn::LoadU(d, p.coef[kMean] + c0 + k * kLanes);
    factor[k] = hn::LoadU(d, p.coef[kFactor] + c0 + k * kLanes);
    offset[k] = hn::LoadU(d, p.coef[kOffset] + c0 + k * kLanes);
  }
  for (int64_t r0 = 0; r0 < p.rows; r0 += kNormRows) {
    const int64_t r1 = std::min(r0 + kNormRows, p.rows);
    hn::Vec<D> s1[K], s2[K];
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) s1[k] = s2[k] = hn::Zero(d);
    for (int64_t r = r0; r < r1; ++r) {
      CAIRN_UNROLL
      for (int k = 0; k < K; ++k) {
        const int64_t i = r * p.ld + c0 + k * kLanes;
        const auto centered = hn::Sub(load(d, p.x + i), mean[k]);
        const auto g = masked_gradient<kMask>(d, p, i, centered, factor[k], offset[k]);
        s1[k] = hn::Add(s1[k], g);
        s2[k] = hn::MulAdd(g, centered, s2[k]);
        if constexpr (kResidual)
          store(d, p.add ? hn::Add(g, load(d, p.dresidual + i)) : g, p.dresidual + i);
      }
    }
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) {
      hn::StoreU(s1[k], d, first + k * kLanes);
      hn::StoreU(s2[k], d, second + k * kLanes);
    }
    for (int64_t c = 0; c < kWidth; ++c) {
      sum0[c] += static_cast<double>(first[c]);
      sum1[c] += static_cast<double>(second[c]);
    }
  }
}

// out (+)= factor dy - slope (x - mean) - shift.
template <int K, NormMask kMask, bool kAdd, class T, class D>
HWY_INLINE void dx_tile(D d, const NormPiece<T>& p, int64_t c0) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> mean[K], factor[K], offset[K], slope[K], shift[K];
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) {
    mean[k] = hn::LoadU(d, p.coef[kMean] + c0 + k * kLanes);
    factor[k] = hn::LoadU(d, p.coef[kFactor] + c0 + k * kLanes);
    offset[k] = hn::LoadU(d, p.coef[kOffset] + c0 + k * kLanes);
    slope[k] = hn::LoadU(d, p.coef[kSlope] + c0 + k * kLanes);
    shift[k] = hn::LoadU(d, p.coef[kShift] + c0 + k * kLanes);
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) {
      const int64_t i = r * p.ld + c0 + k * kLanes;
      const auto centered = hn::Sub(load(d, p.x + i), mean[k]);
      const auto g = masked_gradient<kMask>(d, p, i, centered, factor[k], offset[k]);
      auto v = hn::NegMulAdd(centered, slope[k], hn::MulSub(g, factor[k], shift[k]));
      if constexpr (kAdd) v = hn::Add(v, load(d, p.out + i));
      store(d, v, p.out + i);
    }
  }
}

// Calls Tile::run<K>(tag, piece, first channel) over all channels: four vectors at a time, then
// one, then one lane.
template <class Tile, class T>
HWY_INLINE void over_channels(const NormPiece<T>& p) {
  const hn::ScalableTag<Accumulate<T>> d;
  const OneLane<Accumulate<T>> one;
  constexpr int64_t kLanes = hn::MaxLanes(hn::ScalableTag<Accumulate<T>>());
  int64_t c = 0;
  for (; c + 4 * kLanes <= p.channels; c += 4 * kLanes) Tile::template run<4>(d, p, c);
  for (; c + kLanes <= p.channels; c += kLanes) Tile::template run<1>(d, p, c);
  for (; c < p.channels; ++c) Tile::template run<1>(one, p, c);
}

struct StatsTile {
  template <int K, class T, class D>
  static HWY_INLINE void run(D d, const NormPiece<T>& p, int64_t c) {
    stats_tile<K>(d, p, c);
  }
};
template <bool kRelu, bool kResidual>
struct ApplyTile {
  template <int K, class T, class D>
  static HWY_INLINE void run(D d, const NormPiece<T>& p, int64_t c) {
    apply_tile<K, kRelu, kResidual>(d, p, c);
  }
};
template <NormMask kMask, bool kResidual>
struct ReduceTile {
  template <int K, class T, class D>
  static HWY_INLINE void run(D d, const NormPiece<T>& p, int64_t c) {
    reduce_tile<K, kMask, kResidual>(d, p, c);
  }
};
template <NormMask kMask, bool kAdd>
struct DxTile {
  template <int K, class T, class D>
  static HWY_INLINE void run(D d, const NormPiece<T>& p, int64_t c) {
    dx_tile<K, kMask, kAdd>(d, p, c);
  }
};

template <class T>
void norm_stats(const NormPiece<T>& p) {
  over_channels<StatsTile>(p);
}

template <class T>
void norm_apply(const NormPiece<T>& p) {
  if (p.residual == nullptr)
    p.relu ? over_channels<ApplyTile<true, false>>(p) : over_channels<ApplyTile<false, false>>(p);
  else
    p.relu ? over_channels<ApplyTile<true, true>>(p) : over_channels<ApplyTile<false, true>>(p);
}

// Calls fn.template operator()<mask>() for the mask that the piece asks for.
template <class T, class Fn>
HWY_INLINE void with_mask(const NormPiece<T>& p, const Fn& fn) {
  if (!p.relu)
    fn.template operator()<NormMask::none>();
  else if (p.y)
    fn.template operator()<NormMask::output>();
  else
    fn.template operator()<NormMask::input>();
}

template <class T>
void norm_reduce(const NormPiece<T>& p) {
  with_mask(p, [&p]<NormMask kMask>() HWY_ATTR {
    if (p.dresidual)
      over_channels<ReduceTile<kMask, true>>(p);
    else
      over_channels<ReduceTile<kMask, false>>(p);
  });
}

template <class T>
void norm_dx(const NormPiece<T>& p) {
  with_mask(p, [&p]<NormMask kMask>() HWY_ATTR {
    if (p.add)
      over_channels<DxTile<kMask, true>>(p);
    else
      over_channels<DxTile<kMask, false>>(p);
  });
}

template <class T>
NormFns<T> norm_fns() {
  return {norm_stats<T>, norm_apply<T>, norm_reduce<T>, norm_dx<T>};
}
CAIRN_FLOAT_TABLES(NormFns, norm_fns)

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels::cpu {

CAIRN_BEST_FLOAT_TABLES(NormFns, norm_fns)

template NormFns<double> best_norm_fns<double>();
template NormFns<float> best_norm_fns<float>();
template NormFns<bfloat16> best_norm_fns<bfloat16>();
template NormFns<float16> best_norm_fns<float16>();

}  // namespace cairn::kernels::cpu
#endif  // HWY_ONCE
