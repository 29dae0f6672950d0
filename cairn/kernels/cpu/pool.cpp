// Pooling over channels-last images, vectorised over channels.
// Invariant: forward and backward both gather — each result pixel is written once, from its own
// list of sources in row-major order — so nothing depends on the thread count.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/pool.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "cairn/kernels/cpu/float_tables.h"
#include "cairn/kernels/cpu/lanes-inl.h"
#include "cairn/kernels/pool.h"
#include "cairn/tensor/parallel.h"

#ifndef CAIRN_KERNELS_CPU_POOL_ONCE
#define CAIRN_KERNELS_CPU_POOL_ONCE
namespace cairn::kernels::cpu {

// Sources of one result pixel are listed in runs of this many: longer lists are taken piece by
// piece.
constexpr int kSources = 64;

// Sizes of a channels-last image.
struct Image {
  explicit Image(In t) : n(t.size(0)), c(t.size(1)), h(t.size(2)), w(t.size(3)) {}
  int64_t n, c, h, w;
  int64_t at(int64_t image, int64_t y, int64_t x) const { return ((image * h + y) * w + x) * c; }
};

// One source pixel of a result pixel: its channels, and how it takes part.
template <class T, class I>
struct PoolSource {
  const T* value;
  const I* index;       // max backward: the taps chosen at that output
  uint32_t tap;         // max: this source's tap
  Accumulate<T> scale;  // average: 1 / divisor
};

template <class T, class I>
struct PoolPixel {
  const PoolSource<T, I>* sources;
  int64_t count;
  int64_t channels;
  T* out;
  I* index;  // max forward; may be null
  bool add;  // to what `out` holds; not in max forward
};

// A row of result pixels of max pooling.
template <class T, class I>
struct MaxPoolRow {
  const Image& x;
  const Image& y;
  const MaxPoolParams& params;
  const T* value;  // x forward, dy backward
  I* index;        // may be null forward
  T* out;          // y forward, dx backward
  bool add;        // backward
  int64_t image, row;
};

template <class T>
struct PoolFns {
  void (*max_forward)(const MaxPoolRow<T, uint8_t>&);
  void (*max_backward)(const MaxPoolRow<T, uint8_t>&);
  void (*max_forward_wide)(const MaxPoolRow<T, int32_t>&);
  void (*max_backward_wide)(const MaxPoolRow<T, int32_t>&);
  void (*average)(const PoolPixel<T, uint8_t>&);
};

// Taps of one axis that meet the image at an output that starts at `start`: [first, last).
struct TapRange {
  TapRange(int64_t start, int64_t dilation, int64_t taps, int64_t size)
      : first(start >= 0 ? 0 : (-start + dilation - 1) / dilation),
        last(start >= size ? 0 : std::min(taps, (size - 1 - start) / dilation + 1)) {}
  int64_t first, last;
};

// Calls fn(tap, output) for the outputs of one axis that read input i, in order of the outputs.
template <class Fn>
inline __attribute__((always_inline)) void for_each_window(int64_t i, int64_t kernel,
                                                           int64_t stride, int64_t pad,
                                                           int64_t dilation, int64_t outputs,
                                                           const Fn& fn) {
  if (dilation == 1) {
    // Output o reads i as tap i + pad - o stride; one division finds the last o.
    const auto place = static_cast<uint32_t>(i + pad), step = static_cast<uint32_t>(stride);
    const int64_t last = std::min<int64_t>(place / step, outputs - 1);
    int64_t tap = i + pad - last * stride;
    int64_t o = last;
    while (o > 0 && tap + stride < kernel) --o, tap += stride;
    for (; o <= last; ++o, tap -= stride)
      if (tap < kernel) fn(tap, o);
  } else {
    for (int64_t tap = kernel; tap-- > 0;) {
      const int64_t place = i + pad - tap * dilation;
      if (place >= 0 && place % stride == 0 && place / stride < outputs) fn(tap, place / stride);
    }
  }
}

}  // namespace cairn::kernels::cpu
#endif

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

// Taps ride in unsigned lanes as wide as the values.
template <class D>
using TapTag = hn::Rebind<hwy::MakeUnsigned<hn::TFromD<D>>, D>;

template <class D>
HWY_INLINE void store_taps(D d, hn::Vec<D> taps, uint8_t* p) {
  const hn::Rebind<uint8_t, D> narrow;
  hn::StoreU(hn::TruncateTo(narrow, taps), narrow, p);
  (void)d;
}

// Loaded a lane at a time where no widening load exists.
template <class D>
HWY_INLINE hn::Vec<D> load_taps(D d, const uint8_t* p) {
  const hn::Rebind<uint8_t, D> narrow;
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    return hn::PromoteTo(d, hn::LoadU(narrow, p));
  } else {
    HWY_ALIGN hn::TFromD<D> lanes[hn::MaxLanes(D())];
    for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = p[i];
    return hn::Load(d, lanes);
  }
}

template <int K, class T, class D>
HWY_INLINE void max_forward_tile(D d, const PoolPixel<T, uint8_t>& p, int64_t c) {
  const TapTag<D> dt;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> best[K];
  hn::Vec<TapTag<D>> tap[K];
  const auto tap0 = hn::Set(dt, p.sources[0].tap);
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) {
    best[k] = load(d, p.sources[0].value + c + k * kLanes);
    tap[k] = tap0;
  }
  for (int64_t s = 1; s < p.count; ++s) {
    const T* value = p.sources[s].value + c;
    const auto this_tap = hn::Set(dt, p.sources[s].tap);
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) {
      const auto v = load(d, value + k * kLanes);
      const auto wins = hn::Or(hn::Gt(v, best[k]), hn::IsNaN(v));
      best[k] = hn::IfThenElse(wins, v, best[k]);
      tap[k] = hn::IfThenElse(hn::RebindMask(dt, wins), this_tap, tap[k]);
    }
  }
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) {
    store(d, best[k], p.out + c + k * kLanes);
    if (p.index) store_taps(dt, tap[k], p.index + c + k * kLanes);
  }
}

template <int K, class T, class D>
HWY_INLINE void max_backward_tile(D d, const PoolPixel<T, uint8_t>& p, int64_t c) {
  const TapTag<D> dt;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> sum[K];
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) sum[k] = p.add ? load(d, p.out + c + k * kLanes) : hn::Zero(d);
  for (int64_t s = 0; s < p.count; ++s) {
    const auto this_tap = hn::Set(dt, p.sources[s].tap);
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k) {
      const int64_t i = c + k * kLanes;
      const auto chosen = hn::Eq(load_taps(dt, p.sources[s].index + i), this_tap);
      const auto v = hn::IfThenElseZero(hn::RebindMask(d, chosen), load(d, p.sources[s].value + i));
      sum[k] = hn::Add(sum[k], v);
    }
  }
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) store(d, sum[k], p.out + c + k * kLanes);
}

template <int K, class T, class D>
HWY_INLINE void average_tile(D d, const PoolPixel<T, uint8_t>& p, int64_t c) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> sum[K];
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) sum[k] = p.add ? load(d, p.out + c + k * kLanes) : hn::Zero(d);
  for (int64_t s = 0; s < p.count; ++s) {
    const auto scale = hn::Set(d, p.sources[s].scale);
    CAIRN_UNROLL
    for (int k = 0; k < K; ++k)
      sum[k] = hn::MulAdd(load(d, p.sources[s].value + c + k * kLanes), scale, sum[k]);
  }
  CAIRN_UNROLL
  for (int k = 0; k < K; ++k) store(d, sum[k], p.out + c + k * kLanes);
}

// Four vectors of channels at a time, then one, then one lane.
template <class Tile, class T>
HWY_INLINE void over_channels(const PoolPixel<T, uint8_t>& p) {
  const hn::ScalableTag<Accumulate<T>> d;
  const OneLane<Accumulate<T>> one;
  constexpr int64_t kLanes = hn::MaxLanes(hn::ScalableTag<Accumulate<T>>());
  int64_t c = 0;
  for (; c + 4 * kLanes <= p.channels; c += 4 * kLanes) Tile::template run<4>(d, p, c);
  for (; c + kLanes <= p.channels; c += kLanes) Tile::template run<1>(d, p, c);
  for (; c < p.channels; ++c) Tile::template run<1>(one, p, c);
}

struct MaxForwardTile {
  template <int K, class T, class D>
  static HWY_INLINE void run(D d, const PoolPixel<T, uint8_t>& p, int64_t c) {
    max_forward_tile<K>(d, p, c);
  }
};
struct MaxBackwardTile {
  template <int K, class T, class D>
  static HWY_INLINE void run(D d, const PoolPixel<T, uint8_t>& p, int64_t c) {
    max_backward_tile<K>(d, p, c);
  }
};
struct AverageTile {
  template <int K, class T, class D>
  static HWY_INLINE void run(D d, const PoolPixel<T, uint8_t>& p, int64_t c) {
    average_tile<K>(d, p, c);
  }
};

template <class T>
HWY_INLINE void max_forward(const PoolPixel<T, uint8_t>& p) {
  over_channels<MaxForwardTile>(p);
}
template <class T>
HWY_INLINE void max_backward(const PoolPixel<T, uint8_t>& p) {
  over_channels<MaxBackwardTile>(p);
}
template <class T>
void average(const PoolPixel<T, uint8_t>& p) {
  over_channels<AverageTile>(p);
}

// Kernels of more than 256 taps are rare: plain loops.
template <class T>
void max_forward(const PoolPixel<T, int32_t>& p) {
  for (int64_t c = 0; c < p.channels; ++c) {
    T best = p.sources[0].value[c];
    uint32_t tap = p.sources[0].tap;
    for (int64_t s = 1; s < p.count; ++s) {
      const T v = p.sources[s].value[c];
      if (!(v > best || v != v)) continue;
      best = v;
      tap = p.sources[s].tap;
    }
    p.out[c] = best;
    if (p.index) p.index[c] = static_cast<int32_t>(tap);
  }
}
template <class T>
void max_backward(const PoolPixel<T, int32_t>& p) {
  for (int64_t c = 0; c < p.channels; ++c) {
    Accumulate<T> sum = p.add ? static_cast<Accumulate<T>>(p.out[c]) : 0;
    for (int64_t s = 0; s < p.count; ++s)
      if (p.sources[s].index[c] == static_cast<int32_t>(p.sources[s].tap))
        sum += static_cast<Accumulate<T>>(p.sources[s].value[c]);
    p.out[c] = static_cast<T>(sum);
  }
}

template <class T, class I>
void max_forward_row(const MaxPoolRow<T, I>& r) {
  const MaxPoolParams& p = r.params;
  PoolSource<T, I> local[kSources];
  std::unique_ptr<PoolSource<T, I>[]> large;
  const int64_t capacity = p.kernel_h * p.kernel_w;
  if (capacity > kSources) large.reset(new PoolSource<T, I>[static_cast<size_t>(capacity)]);
  PoolSource<T, I>* sources = large ? large.get() : local;
  const int64_t y0 = r.row * p.stride_h - p.pad_h;
  const TapRange rows(y0, p.dil_h, p.kernel_h, r.x.h);
  for (int64_t ox = 0; ox < r.y.w; ++ox) {
    const int64_t x0 = ox * p.stride_w - p.pad_w;
    const TapRange cols(x0, p.dil_w, p.kernel_w, r.x.w);
    int64_t count = 0;
    for (int64_t ty = rows.first; ty < rows.last; ++ty)
      for (int64_t tx = cols.first; tx < cols.last; ++tx) {
        PoolSource<T, I>& s = sources[count++];
        s.value = r.value + r.x.at(r.image, y0 + ty * p.dil_h, x0 + tx * p.dil_w);
        s.tap = static_cast<uint32_t>(ty * p.kernel_w + tx);
      }
    const int64_t o = r.y.at(r.image, r.row, ox);
    I* index = r.index ? r.index + o : nullptr;
    if (count > 0) {
      max_forward(PoolPixel<T, I>{sources, count, r.x.c, r.out + o, index, false});
    } else {  // dilation can step over a small image: nothing to choose from
      std::fill_n(r.out + o, r.x.c, static_cast<T>(-std::numeric_limits<double>::infinity()));
      if (index) std::fill_n(index, r.x.c, I(0));
    }
  }
}

template <class T, class I>
void max_backward_row(const MaxPoolRow<T, I>& r) {
  const MaxPoolParams& p = r.params;
  PoolSource<T, I> sources[kSources];
  for (int64_t ix = 0; ix < r.x.w; ++ix) {
    PoolPixel<T, I> pixel{sources, 0, r.x.c, r.out + r.x.at(r.image, r.row, ix), nullptr, r.add};
    for_each_window(
        r.row, p.kernel_h, p.stride_h, p.pad_h, p.dil_h, r.y.h, [&](int64_t ty, int64_t oy) {
          for_each_window(
              ix, p.kernel_w, p.stride_w, p.pad_w, p.dil_w, r.y.w, [&](int64_t tx, int64_t ox) {
                const int64_t from = r.y.at(r.image, oy, ox);
                if (pixel.count == kSources) {
                  max_backward(pixel);
                  pixel.count = 0;
                  pixel.add = true;
                }
                sources[pixel.count++] = {r.value + from, r.index + from,
                                          static_cast<uint32_t>(ty * p.kernel_w + tx), 0};
              });
        });
    max_backward(pixel);
  }
}

template <class T>
PoolFns<T> pool_fns() {
  return {max_forward_row<T, uint8_t>, max_backward_row<T, uint8_t>, max_forward_row<T, int32_t>,
          max_backward_row<T, int32_t>, average<T>};
}
CAIRN_FLOAT_TABLES(PoolFns, pool_fns)

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {
namespace {

CAIRN_BEST_FLOAT_TABLES(PoolFns, pool_fns)

constexpr int64_t kGrain = 1 << 14;  // source elements worth another thread

// Calls body(image, row) for every row of pixels, each of `cost` source elements.
template <class Body>
void over_image_rows(const Image& result, int64_t cost, Body&& body) {
  parallel_for(0, result.n * result.h, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cost)),
               [&](int64_t lo, int64_t hi) {
                 for (int64_t r = lo; r < hi; ++r) body(r / result.h, r % result.h);
               });
}

template <class T, class I>
void max_forward_as(Out y_tensor, Out index, In x_tensor, const MaxPoolParams& p,
                    void (*row_fn)(const MaxPoolRow<T, I>&)) {
  const Image x(x_tensor), y(y_tensor);
  I* taps = index.defined() ? index.data<I>() : nullptr;
  over_image_rows(y, y.w * y.c * p.kernel_h * p.kernel_w, [&](int64_t n, int64_t oy) {
    row_fn({x, y, p, x_tensor.data<T>(), taps, y_tensor.data<T>(), false, n, oy});
  });
}

void cpu_max_pool2d_fwd(Out y, Out index, In x, const MaxPoolParams& params) {
  dispatch_floating(x.dtype(), "max_pool2d", [&]<class T>() {
    if (params.kernel_h * params.kernel_w <= 256)
      max_forward_as<T, uint8_t>(y, index, x, params, best_pool_fns<T>().max_forward);
    else
      max_forward_as<T, int32_t>(y, index, x, params, best_pool_fns<T>().max_forward_wide);
  });
}

template <class T, class I>
void max_backward_as(const Dst& dx, In dy_tensor, In index, const MaxPoolParams& p,
                     void (*row_fn)(const MaxPoolRow<T, I>&)) {
  const Image x(dx.tensor), y(dy_tensor);
  const int64_t windows =
      ((p.kernel_h + p.stride_h - 1) / p.stride_h) * ((p.kernel_w + p.stride_w - 1) / p.stride_w);
  over_image_rows(x, x.w * x.c * windows, [&](int64_t n, int64_t iy) {
    row_fn({x, y, p, dy_tensor.data<T>(), index.data<I>(), dx.tensor.data<T>(), dx.add, n, iy});
  });
}

void cpu_max_pool2d_bwd(const Dst& dx, In dy, In index, const MaxPoolParams& params) {
  dispatch_floating(dy.dtype(), "max_pool2d", [&]<class T>() {
    if (index.dtype() == DType::u8)
      max_backward_as<T, uint8_t>(dx, dy, index, params, best_pool_fns<T>().max_backward);
    else
      max_backward_as<T, int32_t>(dx, dy, index, params, best_pool_fns<T>().max_backward_wide);
  });
}

// One result pixel of an average: the scaled sum of the pixels it takes.
template <class T>
class AveragePixel {
 public:
  AveragePixel(T* out, int64_t channels, bool add)
      : pixel_{sources_, 0, channels, out, nullptr, add} {}
  void take(const T* value, Accumulate<T> scale) {
    if (pixel_.count == kSources) flush();
    sources_[pixel_.count++] = {value, nullptr, 0, scale};
  }
  void finish() {
    if (pixel_.count > 0 || !written_) flush();
  }

 private:
  void flush() {
    best_pool_fns<T>().average(pixel_);
    pixel_.count = 0;
    pixel_.add = written_ = true;
  }
  PoolSource<T, uint8_t> sources_[kSources];
  PoolPixel<T, uint8_t> pixel_;
  bool written_ = false;
};

template <class T>
Accumulate<T> average_scale(const AveragePoolParams& p, int64_t oy, int64_t ox) {
  const int64_t inside = (p.h.end(oy) - p.h.begin(oy)) * (p.w.end(ox) - p.w.begin(ox));
  return Accumulate<T>(1) / static_cast<Accumulate<T>>(p.divisor != 0 ? p.divisor : inside);
}

void cpu_avg_pool2d_fwd(Out y_tensor, In x_tensor, const AveragePoolParams& p) {
  dispatch_floating(x_tensor.dtype(), "avg_pool2d", [&]<class T>() {
    const Image x(x_tensor), y(y_tensor);
    const T* in = x_tensor.data<T>();
    T* out = y_tensor.data<T>();
    const int64_t window = x.h * x.w * x.c / std::max<int64_t>(1, y.h);
    over_image_rows(y, window, [&](int64_t n, int64_t oy) {
      for (int64_t ox = 0; ox < y.w; ++ox) {
        const Accumulate<T> scale = average_scale<T>(p, oy, ox);
        AveragePixel<T> pixel(out + y.at(n, oy, ox), y.c, false);
        for (int64_t iy = p.h.begin(oy); iy < p.h.end(oy); ++iy)
          for (int64_t ix = p.w.begin(ox); ix < p.w.end(ox); ++ix)
            pixel.take(in + x.at(n, iy, ix), scale);
        pixel.finish();
      }
    });
  });
}

void cpu_avg_pool2d_bwd(const Dst& dx, In dy_tensor, const AveragePoolParams& p) {
  dispatch_floating(dy_tensor.dtype(), "avg_pool2d", [&]<class T>() {
    const Image x(dx.tensor), y(dy_tensor);
    const T* dy = dy_tensor.data<T>();
    T* out = dx.tensor.data<T>();
    over_image_rows(x, x.w * x.c, [&](int64_t n, int64_t iy) {
      for (int64_t ix = 0; ix < x.w; ++ix) {
        AveragePixel<T> pixel(out + x.at(n, iy, ix), x.c, dx.add);
        for (int64_t oy = p.h.first(iy); oy < p.h.last(iy); ++oy)
          for (int64_t ox = p.w.first(ix); ox < p.w.last(ix); ++ox)
            pixel.take(dy + y.at(n, oy, ox), average_scale<T>(p, oy, ox));
        pixel.finish();
      }
    });
  });
}

}  // namespace
}  // namespace cpu

Slot<void(Out, Out, In, const MaxPoolParams&)> max_pool2d_fwd{"max_pool2d_fwd",
                                                              cpu::cpu_max_pool2d_fwd};
Slot<void(const Dst&, In, In, const MaxPoolParams&)> max_pool2d_bwd{"max_pool2d_bwd",
                                                                    cpu::cpu_max_pool2d_bwd};
Slot<void(Out, In, const AveragePoolParams&)> avg_pool2d_fwd{"avg_pool2d_fwd",
                                                             cpu::cpu_avg_pool2d_fwd};
Slot<void(const Dst&, In, const AveragePoolParams&)> avg_pool2d_bwd{"avg_pool2d_bwd",
                                                                    cpu::cpu_avg_pool2d_bwd};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
