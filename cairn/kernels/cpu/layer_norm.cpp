// Layer normalisation: rows of contiguous elements.
// Invariant: a row's result depends on that row alone, and column sums are taken over row blocks of
// fixed size in order, so every thread count gives the same bits.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/layer_norm.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "cairn/kernels/cpu/float_tables.h"
#include "cairn/kernels/cpu/lanes-inl.h"
#include "cairn/kernels/norm.h"
#include "cairn/tensor/parallel.h"

#ifndef CAIRN_KERNELS_CPU_LAYER_NORM_ONCE
#define CAIRN_KERNELS_CPU_LAYER_NORM_ONCE
namespace cairn::kernels::cpu {

template <class T>
struct LayerNormRow {
  using Acc = Accumulate<T>;
  int64_t width;
  const T* x;
  const T* dy;  // backward
  const T* w;   // may be null
  const T* b;   // may be null; forward
  T* out;       // y or dx; null in a backward without dx
  Acc* dw;      // backward: column sums so far; may be null
  Acc* db;
  Acc mean, rstd;
  double eps;
  bool add;
};

template <class T>
struct LayerNormFns {
  void (*forward)(LayerNormRow<T>&);  // sets mean and rstd
  void (*backward)(const LayerNormRow<T>&);
};

}  // namespace cairn::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

// The sum over a row of term(tag, position): whole vectors in two chains, then single lanes.
template <class Acc, class Term>
HWY_INLINE Acc row_sum(int64_t width, const Term& term) {
  const hn::ScalableTag<Acc> d;
  const OneLane<Acc> one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= width; i += 2 * lanes) {
    s0 = hn::Add(s0, term(d, i));
    s1 = hn::Add(s1, term(d, i + lanes));
  }
  for (; i + lanes <= width; i += lanes) s0 = hn::Add(s0, term(d, i));
  auto rest = hn::Zero(one);
  for (; i < width; ++i) rest = hn::Add(rest, term(one, i));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1))) + hn::GetLane(rest);
}

// body(tag, position) over a row: whole vectors, then single lanes.
template <class Acc, class Body>
HWY_INLINE void over_row(int64_t width, const Body& body) {
  const hn::ScalableTag<Acc> d;
  const OneLane<Acc> one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) body(d, i);
  for (; i < width; ++i) body(one, i);
}

template <class T>
void layer_norm_forward(LayerNormRow<T>& row) {
  using Acc = Accumulate<T>;
  const T* x = row.x;
  const Acc n = static_cast<Acc>(row.width);
  const Acc guess =
      row_sum<Acc>(row.width, [x](auto d, int64_t i) HWY_ATTR { return load(d, x + i); }) / n;
  // Deviations from the guess: their mean repairs its rounding, their squares give the variance.
  const Acc off =
      row_sum<Acc>(row.width, [x, guess](auto d, int64_t i)
                                  HWY_ATTR { return hn::Sub(load(d, x + i), hn::Set(d, guess)); }) /
      n;
  const Acc mean = guess + off;
  const Acc variance = row_sum<Acc>(row.width,
                                    [x, mean](auto d, int64_t i) HWY_ATTR {
                                      const auto v = hn::Sub(load(d, x + i), hn::Set(d, mean));
                                      return hn::Mul(v, v);
                                    }) /
                       n;
  row.mean = mean;
  row.rstd = static_cast<Acc>(1 / std::sqrt(static_cast<double>(variance) + row.eps));
  const Acc rstd = row.rstd;
  const T* w = row.w;
  const T* b = row.b;
  T* out = row.out;
  over_row<Acc>(row.width, [=](auto d, int64_t i) HWY_ATTR {
    auto v = hn::Mul(hn::Sub(load(d, x + i), hn::Set(d, mean)), hn::Set(d, rstd));
    if (w) v = hn::Mul(v, load(d, w + i));
    if (b) v = hn::Add(v, load(d, b + i));
    store(d, v, out + i);
  });
}

template <class T>
void layer_norm_backward(const LayerNormRow<T>& row) {
  using Acc = Accumulate<T>;
  const T* x = row.x;
  const T* dy = row.dy;
  const T* w = row.w;
  const Acc mean = row.mean, rstd = row.rstd;
  const auto xhat = [=](auto d, int64_t i) HWY_ATTR {
    return hn::Mul(hn::Sub(load(d, x + i), hn::Set(d, mean)), hn::Set(d, rstd));
  };
  const auto gradient = [=](auto d, int64_t i) HWY_ATTR {
    const auto g = load(d, dy + i);
    return w ? hn::Mul(g, load(d, w + i)) : g;
  };
  if (Acc* dw = row.dw)
    over_row<Acc>(row.width, [=](auto d, int64_t i) HWY_ATTR {
      hn::StoreU(hn::MulAdd(load(d, dy + i), xhat(d, i), hn::LoadU(d, dw + i)), d, dw + i);
    });
  if (Acc* db = row.db)
    over_row<Acc>(row.width, [=](auto d, int64_t i) HWY_ATTR {
      hn::StoreU(hn::Add(load(d, dy + i), hn::LoadU(d, db + i)), d, db + i);
    });
  if (!row.out) return;
  const Acc n = static_cast<Acc>(row.width);
  const Acc along_one = row_sum<Acc>(row.width, gradient) / n;
  const Acc along_x =
      row_sum<Acc>(row.width, [=](auto d, int64_t i)
                                  HWY_ATTR { return hn::Mul(gradient(d, i), xhat(d, i)); }) /
      n;
  T* out = row.out;
  const bool add = row.add;
  over_row<Acc>(row.width, [=](auto d, int64_t i) HWY_ATTR {
    auto v = hn::Sub(gradient(d, i), hn::Set(d, along_one));
    v = hn::NegMulAdd(xhat(d, i), hn::Set(d, along_x), v);
    v = hn::Mul(v, hn::Set(d, rstd));
    if (add) v = hn::Add(v, load(d, out + i));
    store(d, v, out + i);
  });
}

template <class T>
LayerNormFns<T> layer_norm_fns() {
  return {layer_norm_forward<T>, layer_norm_backward<T>};
}
CAIRN_FLOAT_TABLES(LayerNormFns, layer_norm_fns)

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {
namespace {

CAIRN_BEST_FLOAT_TABLES(LayerNormFns, layer_norm_fns)

constexpr int64_t kGrain = 1 << 13;  // elements worth another thread

template <class T>
const T* data_or_null(In t) {
  return t.defined() ? t.data<T>() : nullptr;
}

void cpu_layer_norm_fwd(Out y, Out mean, Out rstd, In x, In w, In b, double eps) {
  dispatch_floating(x.dtype(), "layer_norm", [&]<class T>() {
    using Acc = Accumulate<T>;
    const int64_t rows = x.size(0), width = x.size(1);
    Acc* m = mean.data<Acc>();
    Acc* s = rstd.data<Acc>();
    LayerNormRow<T> whole{};
    whole.width = width;
    whole.x = x.data<T>();
    whole.w = data_or_null<T>(w);
    whole.b = data_or_null<T>(b);
    whole.out = y.data<T>();
    whole.eps = eps;
    const LayerNormFns<T> fns = best_layer_norm_fns<T>();
    parallel_for(0, rows, kGrain / std::max<int64_t>(1, width) + 1, [&](int64_t lo, int64_t hi) {
      for (int64_t r = lo; r < hi; ++r) {
        LayerNormRow<T> row = whole;
        row.x += r * width;
        row.out += r * width;
        fns.forward(row);
        m[r] = row.mean;
        s[r] = row.rstd;
      }
    });
  });
}

// dst (+)= the sum of the blocks' partial columns.
template <class T>
void finish_columns(const Dst& dst, const Accumulate<T>* partial, int64_t blocks, int64_t width) {
  if (!dst) return;
  T* out = dst.tensor.data<T>();
  parallel_for(0, width, kGrain, [&](int64_t lo, int64_t hi) {
    for (int64_t c = lo; c < hi; ++c) {
      double sum = dst.add ? static_cast<double>(out[c]) : 0.0;
      for (int64_t block = 0; block < blocks; ++block)
        sum += static_cast<double>(partial[2 * block * width + c]);
      out[c] = static_cast<T>(sum);
    }
  });
}

void cpu_layer_norm_bwd(const Dst& dx, const Dst& dw, const Dst& db, Out work, In dy, In x, In w,
                        In mean, In rstd) {
  dispatch_floating(x.dtype(), "layer_norm", [&]<class T>() {
    using Acc = Accumulate<T>;
    const int64_t rows = x.size(0), width = x.size(1);
    const NormBlocks blocks(rows);
    Acc* partial = work.data<Acc>();
    LayerNormRow<T> whole{};
    whole.width = width;
    whole.x = x.data<T>();
    whole.dy = dy.data<T>();
    whole.w = data_or_null<T>(w);
    whole.out = dx ? dx.tensor.data<T>() : nullptr;
    whole.add = dx.add;
    const Acc* m = mean.data<Acc>();
    const Acc* s = rstd.data<Acc>();
    const LayerNormFns<T> fns = best_layer_norm_fns<T>();
    parallel_for(0, blocks.count, 1 + kGrain / std::max<int64_t>(1, width * blocks.block),
                 [&](int64_t lo, int64_t hi) {
                   for (int64_t block = lo; block < hi; ++block) {
                     Acc* sums = partial + 2 * block * width;
                     std::fill_n(sums, 2 * width, Acc(0));
                     const int64_t end = std::min(rows, (block + 1) * blocks.block);
                     for (int64_t r = block * blocks.block; r < end; ++r) {
                       LayerNormRow<T> row = whole;
                       row.x += r * width;
                       row.dy += r * width;
                       if (row.out) row.out += r * width;
                       row.mean = m[r];
                       row.rstd = s[r];
                       row.dw = dw ? sums : nullptr;
                       row.db = db ? sums + width : nullptr;
                       fns.backward(row);
                     }
                   }
                 });
    finish_columns<T>(dw, partial, blocks.count, width);
    finish_columns<T>(db, partial + width, blocks.count, width);
  });
}

}  // namespace
}  // namespace cpu

Slot<void(Out, Out, Out, In, In, In, double)> layer_norm_fwd{"layer_norm_fwd",
                                                             cpu::cpu_layer_norm_fwd};
Slot<void(const Dst&, const Dst&, const Dst&, Out, In, In, In, In, In)> layer_norm_bwd{
    "layer_norm_bwd", cpu::cpu_layer_norm_bwd};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
