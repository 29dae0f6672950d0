// Batch normalisation of a rows x channels matrix.
// Invariant: rows are cut into blocks by their number alone, and block results are combined in f64
// and in order, so every thread count gives the same bits.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/norm.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "cairn/kernels/cpu/lanes-inl.h"
#include "cairn/kernels/norm.h"
#include "cairn/tensor/parallel.h"

#ifndef CAIRN_KERNELS_CPU_NORM_ONCE
#define CAIRN_KERNELS_CPU_NORM_ONCE
namespace cairn::kernels::cpu {

// Rows that stay in the first-level cache between two passes over them; also the longest sum kept
// in the vectors' own type.
constexpr int64_t kNormRows = 64;
// Channels handled together: four vectors of 16 floats.
constexpr int64_t kNormChannels = 64;

// One piece of the matrix: rows [0, rows) of the pointers, channels [0, channels) of them.
template <class T>
struct NormPiece {
  using Acc = Accumulate<T>;
  int64_t rows, channels, ld;
  const T* x = nullptr;
  const T* dy = nullptr;
  const T* y = nullptr;         // forward output, for the relu mask; null without relu
  const T* residual = nullptr;  // may be null
  T* out = nullptr;             // y or dx
  T* dresidual = nullptr;       // may be null
  bool add = false;             // to what `out` (or, in reduce, dresidual) writes
  bool relu = false;
  const Acc* coef[4] = {};      // per channel: mean, and the factors of the pass
  double* sum[2] = {};          // per channel: results of a reducing pass
};

template <class T>
struct NormFns {
  void (*stats)(const NormPiece<T>&);
  void (*apply)(const NormPiece<T>&);
  void (*reduce)(const NormPiece<T>&);
  void (*dx)(const NormPiece<T>&);
};

}  // namespace cairn::kernels::cpu
#endif

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

// coef: mean, factor, offset.
template <int K, bool kRelu, bool kResidual, class T, class D>
HWY_INLINE void apply_tile(D d, const NormPiece<T>& p, int64_t c0) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> mean[K], factor[K], offset[K];
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) {
    mean[k] = hn::LoadU(d, p.coef[0] + c0 + k * kLanes);
    factor[k] = hn::LoadU(d, p.coef[1] + c0 + k * kLanes);
    offset[k] = hn::LoadU(d, p.coef[2] + c0 + k * kLanes);
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

// dy where the forward's output was above zero (or NaN).
template <bool kMask, class T, class D>
HWY_INLINE hn::Vec<D> masked_gradient(D d, const NormPiece<T>& p, int64_t i) {
  auto v = load(d, p.dy + i);
  if constexpr (kMask) v = hn::IfThenZeroElse(hn::Le(load(d, p.y + i), hn::Zero(d)), v);
  return v;
}

// sum[0] = sum of dy, sum[1] = sum of dy (x - mean); dresidual (+)= dy on the way. coef: mean.
template <int K, bool kMask, bool kResidual, class T, class D>
HWY_INLINE void reduce_tile(D d, const NormPiece<T>& p, int64_t c0) {
  using Acc = hn::TFromD<D>;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  constexpr int64_t kWidth = K * kLanes;
  HWY_ALIGN Acc first[kWidth], second[kWidth];
  double* sum0 = p.sum[0] + c0;
  double* sum1 = p.sum[1] + c0;
  for (int64_t c = 0; c < kWidth; ++c) sum0[c] = sum1[c] = 0;
  hn::Vec<D> mean[K];
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) mean[k] = hn::LoadU(d, p.coef[0] + c0 + k * kLanes);
  for (int64_t r0 = 0; r0 < p.rows; r0 += kNormRows) {
    const int64_t r1 = std::min(r0 + kNormRows, p.rows);
    hn::Vec<D> s1[K], s2[K];
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) s1[k] = s2[k] = hn::Zero(d);
    for (int64_t r = r0; r < r1; ++r) {
      CAIRN_UNROLL
      for (int k = 0; k < K; ++k) {
        const int64_t i = r * p.ld + c0 + k * kLanes;
        const auto g = masked_gradient<kMask>(d, p, i);
        s1[k] = hn::Add(s1[k], g);
        s2[k] = hn::MulAdd(g, hn::Sub(load(d, p.x + i), mean[k]), s2[k]);
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

// out (+)= factor dy - slope (x - mean) - offset. coef: mean, factor, slope, offset.
template <int K, bool kMask, bool kAdd, class T, class D>
HWY_INLINE void dx_tile(D d, const NormPiece<T>& p, int64_t c0) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> mean[K], factor[K], slope[K], offset[K];
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) {
    mean[k] = hn::LoadU(d, p.coef[0] + c0 + k * kLanes);
    factor[k] = hn::LoadU(d, p.coef[1] + c0 + k * kLanes);
    slope[k] = hn::LoadU(d, p.coef[2] + c0 + k * kLanes);
    offset[k] = hn::LoadU(d, p.coef[3] + c0 + k * kLanes);
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) {
      const int64_t i = r * p.ld + c0 + k * kLanes;
      const auto g = masked_gradient<kMask>(d, p, i);
      auto v = hn::MulSub(g, factor[k], offset[k]);
      v = hn::NegMulAdd(hn::Sub(load(d, p.x + i), mean[k]), slope[k], v);
      if constexpr (kAdd) v = hn::Add(v, load(d, p.out + i));
      store(d, v, p.out + i);
    }
  }
}

// Calls Tile::run<K>(tag, piece, first channel) over all channels: four vectors at a time, then one,
// then one lane.
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
template <bool kMask, bool kResidual>
struct ReduceTile {
  template <int K, class T, class D>
  static HWY_INLINE void run(D d, const NormPiece<T>& p, int64_t c) {
    reduce_tile<K, kMask, kResidual>(d, p, c);
  }
};
template <bool kMask, bool kAdd>
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

template <class T>
void norm_reduce(const NormPiece<T>& p) {
  if (p.dresidual == nullptr)
    p.y ? over_channels<ReduceTile<true, false>>(p) : over_channels<ReduceTile<false, false>>(p);
  else
    p.y ? over_channels<ReduceTile<true, true>>(p) : over_channels<ReduceTile<false, true>>(p);
}

template <class T>
void norm_dx(const NormPiece<T>& p) {
  if (p.add)
    p.y ? over_channels<DxTile<true, true>>(p) : over_channels<DxTile<false, true>>(p);
  else
    p.y ? over_channels<DxTile<true, false>>(p) : over_channels<DxTile<false, false>>(p);
}

template <class T>
NormFns<T> norm_fns() {
  return {norm_stats<T>, norm_apply<T>, norm_reduce<T>, norm_dx<T>};
}
NormFns<double> norm_fns_f64() { return norm_fns<double>(); }
NormFns<float> norm_fns_f32() { return norm_fns<float>(); }
NormFns<bfloat16> norm_fns_bf16() { return norm_fns<bfloat16>(); }

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {
namespace {

HWY_EXPORT(norm_fns_f64);
HWY_EXPORT(norm_fns_f32);
HWY_EXPORT(norm_fns_bf16);

template <class T>
const NormFns<T>& fns() {
  static const NormFns<T> chosen = [] {
    if constexpr (std::is_same_v<T, double>)
      return HWY_DYNAMIC_DISPATCH(norm_fns_f64)();
    else if constexpr (std::is_same_v<T, float>)
      return HWY_DYNAMIC_DISPATCH(norm_fns_f32)();
    else
      return HWY_DYNAMIC_DISPATCH(norm_fns_bf16)();
  }();
  return chosen;
}

// Elements below which a piece of work is not worth another thread.
constexpr int64_t kGrain = 1 << 14;

// A [C] vector of any floating dtype, read and written as f64; absent ones read as `fallback`.
class ChannelVector {
 public:
  ChannelVector(const Tensor& t, double fallback) : t_(t.defined() ? &t : nullptr), fallback_(fallback) {}
  double operator[](int64_t c) const {
    if (t_ == nullptr) return fallback_;
    return dispatch_floating(t_->dtype(), "batch_norm", [&]<class T>() {
      return static_cast<double>(static_cast<const T*>(t_->raw_data())[c * t_->strides()[0]]);
    });
  }
  void set(int64_t c, double value) const {
    dispatch_floating(t_->dtype(), "batch_norm", [&]<class T>() {
      static_cast<T*>(t_->raw_data())[c * t_->strides()[0]] = static_cast<T>(value);
    });
  }

 private:
  const Tensor* t_;
  double fallback_;
};

// Calls body(block, first row, rows, first channel, channels) on the grid of row blocks and channel
// groups.
template <class Body>
void over_grid(const NormBlocks& blocks, int64_t channels, Body&& body) {
  const int64_t groups = (channels + kNormChannels - 1) / kNormChannels;
  const int64_t unit = blocks.block * std::min(channels, kNormChannels);
  parallel_for(0, blocks.count * groups, std::max<int64_t>(1, kGrain / unit),
               [&](int64_t lo, int64_t hi) {
                 for (int64_t u = lo; u < hi; ++u) {
                   const int64_t block = u / groups, c = u % groups * kNormChannels;
                   const int64_t r = block * blocks.block;
                   body(block, r, std::min(blocks.block, blocks.rows - r), c,
                        std::min(kNormChannels, channels - c));
                 }
               });
}

// Calls body(piece) on runs of rows; pointers of the piece are moved to its first row.
template <class T, class Body>
void over_rows(NormPiece<T> whole, Body&& body) {
  const int64_t ld = whole.ld;
  parallel_for(0, whole.rows, std::max<int64_t>(1, kGrain / ld), [&](int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; r += kNormRows) {
      NormPiece<T> p = whole;
      p.rows = std::min(kNormRows, hi - r);
      for (const T** pointer : {&p.x, &p.dy, &p.y, &p.residual})
        if (*pointer) *pointer += r * ld;
      p.out += r * ld;
      body(p);
    }
  });
}

template <class T>
NormPiece<T> whole_piece(In x) {
  const int64_t channels = x.size(1);
  NormPiece<T> p{};
  p.channels = p.ld = channels;
  p.rows = channels == 0 ? 0 : x.numel() / channels;
  p.x = x.data<T>();
  return p;
}

void cpu_batch_norm_stats(Out mean, Out rstd, Out running_mean, Out running_var, Out work, In x,
                          double momentum, double eps) {
  const int64_t channels = x.size(1);
  const NormBlocks blocks(x.numel() / std::max<int64_t>(1, channels));
  double* partial = work.data<double>();
  dispatch_floating(x.dtype(), "batch_norm", [&]<class T>() {
    over_grid(blocks, channels,
              [&](int64_t block, int64_t r, int64_t rows, int64_t c, int64_t width) {
                NormPiece<T> p = whole_piece<T>(x);
                p.x += r * channels + c;
                p.rows = rows;
                p.channels = width;
                p.sum[0] = partial + 2 * block * channels + c;
                p.sum[1] = p.sum[0] + channels;
                fns<T>().stats(p);
              });
  });
  double* m = mean.data<double>();
  double* m2 = rstd.data<double>();
  std::copy_n(partial, channels, m);
  std::copy_n(partial + channels, channels, m2);
  for (int64_t block = 1; block < blocks.count; ++block) {
    const double before = static_cast<double>(block * blocks.block);
    const double count =
        static_cast<double>(std::min(blocks.block, blocks.rows - block * blocks.block));
    const double share = count / (before + count), cross = before * share;
    const double* block_mean = partial + 2 * block * channels;
    const double* block_m2 = block_mean + channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double delta = block_mean[c] - m[c];
      m[c] += delta * share;
      m2[c] += block_m2[c] + delta * delta * cross;
    }
  }
  const double rows = static_cast<double>(blocks.rows);
  if (running_mean.defined()) {
    const ChannelVector kept_mean(running_mean, 0), kept_var(running_var, 0);
    for (int64_t c = 0; c < channels; ++c) {
      kept_mean.set(c, (1 - momentum) * kept_mean[c] + momentum * m[c]);
      kept_var.set(c, (1 - momentum) * kept_var[c] + momentum * (m2[c] / (rows - 1)));
    }
  }
  for (int64_t c = 0; c < channels; ++c)
    m2[c] = 1 / std::sqrt(std::max(m2[c] / rows, 0.0) + eps);
}

void cpu_batch_norm_running(Out mean, Out rstd, In running_mean, In running_var, double eps) {
  const ChannelVector from_mean(running_mean, 0), from_var(running_var, 1);
  for (int64_t c = 0; c < mean.numel(); ++c) {
    mean.data<double>()[c] = from_mean[c];
    rstd.data<double>()[c] = 1 / std::sqrt(from_var[c] + eps);
  }
}

// The mean as the vectors' type holds it; what is cut off goes into the offsets, so that a small
// spread around a large mean stays exact.
template <class Acc>
double split_mean(double mean, Acc* high) {
  *high = static_cast<Acc>(mean);
  return mean - static_cast<double>(*high);
}

void cpu_batch_norm_apply(Out y, Out coef, In x, In residual, In w, In b, In mean, In rstd,
                          bool relu) {
  dispatch_floating(x.dtype(), "batch_norm", [&]<class T>() {
    using Acc = Accumulate<T>;
    NormPiece<T> p = whole_piece<T>(x);
    Acc* high = coef.data<Acc>();
    Acc* factor = high + p.channels;
    Acc* offset = factor + p.channels;
    const ChannelVector weight(w, 1), bias(b, 0);
    for (int64_t c = 0; c < p.channels; ++c) {
      const double low = split_mean(mean.data<double>()[c], high + c);
      const double scale = weight[c] * rstd.data<double>()[c];
      factor[c] = static_cast<Acc>(scale);
      offset[c] = static_cast<Acc>(bias[c] - low * scale);
    }
    p.coef[0] = high;
    p.coef[1] = factor;
    p.coef[2] = offset;
    p.out = y.data<T>();
    p.residual = residual.defined() ? residual.data<T>() : nullptr;
    p.relu = relu;
    over_rows(p, fns<T>().apply);
  });
}

// The factors of dx from the sums (training) or alone.
template <class T>
void gradient_coefficients(const NormPiece<T>& p, Accumulate<T>* coef, const double* sum_dy,
                           const double* sum_dy_x, In w, In mean, In rstd, bool training) {
  using Acc = Accumulate<T>;
  const ChannelVector weight(w, 1);
  const double rows = static_cast<double>(p.rows);
  for (int64_t c = 0; c < p.channels; ++c) {
    const double r = rstd.data<double>()[c];
    const double scale = weight[c] * r;
    double slope = 0, offset = 0;
    if (training) {
      Acc high;
      const double low = split_mean(mean.data<double>()[c], &high);
      const double covariance = sum_dy_x[c] - low * sum_dy[c];
      slope = scale * r * r * covariance / rows;
      offset = scale * sum_dy[c] / rows - low * slope;
    }
    coef[p.channels + c] = static_cast<Acc>(scale);
    coef[2 * p.channels + c] = static_cast<Acc>(slope);
    coef[3 * p.channels + c] = static_cast<Acc>(offset);
  }
}

void add_to(const Dst& dst, int64_t c, double value) {
  const ChannelVector out(dst.tensor, 0);
  out.set(c, dst.add ? out[c] + value : value);
}

template <class T>
void batch_norm_bwd_as(const Dst& dx, const Dst& dresidual, const Dst& dw, const Dst& db, Out work,
                       Out coef_tensor, In dy, In x, In y, In w, In mean, In rstd, bool training) {
  using Acc = Accumulate<T>;
  NormPiece<T> whole = whole_piece<T>(x);
  whole.dy = dy.data<T>();
  whole.y = y.defined() ? y.data<T>() : nullptr;
  const int64_t channels = whole.channels;
  Acc* coef = coef_tensor.data<Acc>();
  for (int64_t c = 0; c < channels; ++c) split_mean(mean.data<double>()[c], coef + c);
  for (int i = 0; i < 4; ++i) whole.coef[i] = coef + i * channels;
  const NormBlocks blocks(whole.rows);
  double* partial = work.data<double>();
  T* residual = dresidual ? dresidual.tensor.data<T>() : nullptr;
  over_grid(blocks, channels, [&](int64_t block, int64_t r, int64_t rows, int64_t c, int64_t width) {
    NormPiece<T> p = whole;
    p.rows = rows;
    p.channels = width;
    p.x += r * channels + c;
    p.dy += r * channels + c;
    if (p.y) p.y += r * channels + c;
    if (residual) p.dresidual = residual + r * channels + c;
    p.add = dresidual.add;
    p.coef[0] += c;
    p.sum[0] = partial + 2 * block * channels + c;
    p.sum[1] = p.sum[0] + channels;
    fns<T>().reduce(p);
  });
  double* sum_dy = partial;
  double* sum_dy_x = partial + channels;
  for (int64_t block = 1; block < blocks.count; ++block)
    for (int64_t i = 0; i < 2 * channels; ++i) partial[i] += partial[2 * block * channels + i];
  if (blocks.count == 0) std::fill_n(partial, 2 * channels, 0.0);
  for (int64_t c = 0; c < channels; ++c) {
    const double low = mean.data<double>()[c] - static_cast<double>(coef[c]);
    if (dw) add_to(dw, c, (sum_dy_x[c] - low * sum_dy[c]) * rstd.data<double>()[c]);
    if (db) add_to(db, c, sum_dy[c]);
  }
  if (!dx) return;
  gradient_coefficients(whole, coef, sum_dy, sum_dy_x, w, mean, rstd, training);
  // The residual's gradient, when it is fresh, is dy with the mask applied: one array less to read.
  if (residual && !dresidual.add) {
    whole.dy = residual;
    whole.y = nullptr;
  }
  whole.out = dx.tensor.data<T>();
  whole.add = dx.add;
  over_rows(whole, fns<T>().dx);
}

void cpu_batch_norm_bwd(const Dst& dx, const Dst& dresidual, const Dst& dw, const Dst& db, Out work,
                        Out coef, In dy, In x, In y, In w, In mean, In rstd, bool training) {
  dispatch_floating(x.dtype(), "batch_norm", [&]<class T>() {
    batch_norm_bwd_as<T>(dx, dresidual, dw, db, work, coef, dy, x, y, w, mean, rstd, training);
  });
}

}  // namespace
}  // namespace cpu

Slot<void(Out, Out, Out, Out, Out, In, double, double)> batch_norm_stats{
    "batch_norm_stats", cpu::cpu_batch_norm_stats};
Slot<void(Out, Out, In, In, double)> batch_norm_running{"batch_norm_running",
                                                        cpu::cpu_batch_norm_running};
Slot<void(Out, Out, In, In, In, In, In, In, bool)> batch_norm_apply{"batch_norm_apply",
                                                                    cpu::cpu_batch_norm_apply};
Slot<void(const Dst&, const Dst&, const Dst&, const Dst&, Out, Out, In, In, In, In, In, In, bool)>
    batch_norm_bwd{"batch_norm_bwd", cpu::cpu_batch_norm_bwd};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
