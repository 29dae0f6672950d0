// softmax, log_softmax and logsumexp, forward and backward.
// Invariant: one line is handled by one thread in one order; bf16 and f16 lines are computed in
// f32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/softmax.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <limits>

#include "cairn/kernels/cpu/rows.h"
#include "cairn/kernels/reduce.h"
#include "cairn/tensor/parallel.h"

#ifndef CAIRN_SOFTMAX_TYPES
#define CAIRN_SOFTMAX_TYPES
namespace cairn::kernels::cpu {

// Lines of n elements, `inner` apart; `inner` lines lie side by side.
struct Lines {
  int64_t outer, n, inner;
};

// Side-by-side lines handled together, so that loops run over neighbours.
constexpr int64_t kBeside = 64;

// The two entry points of a line kernel for [lo, hi) of outer * tiles units.
using ForwardLines = void (*)(void* y, const void* x, const Lines& lines, int64_t lo, int64_t hi,
                              int mode);
using BackwardLines = void (*)(void* dx, const void* g, const void* y, const Lines& lines,
                               int64_t lo, int64_t hi);
enum SoftmaxMode { kSoftmax, kLogSoftmax, kLogSumExp };

}  // namespace cairn::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

// Independent partial results let loops over one contiguous line vectorise without reordering sums
// differently on each machine.
constexpr int kLanes = 16;

template <class C>
CAIRN_INLINE C fold_sum(C* lanes) {
  for (int w = kLanes / 2; w > 0; w /= 2)
    for (int k = 0; k < w; ++k) lanes[k] += lanes[k + w];
  return lanes[0];
}

template <class T, class C>
HWY_ATTR C line_max(const T* x, int64_t n) {
  C lanes[kLanes];
  std::fill_n(lanes, kLanes, -std::numeric_limits<C>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) {
      const C v = static_cast<C>(x[i + k]);
      lanes[k] = lanes[k] > v ? lanes[k] : v;  // a NaN in v wins for now; sums find it anyway
    }
  C top = lanes[0];
  for (int k = 1; k < kLanes; ++k) top = top > lanes[k] ? top : lanes[k];
  for (; i < n; ++i) top = top > static_cast<C>(x[i]) ? top : static_cast<C>(x[i]);
  return top;
}

// Sum of exp(x - top); stores the terms where `store`.
template <class T, class C, bool kStore>
HWY_ATTR C line_exp_sum(T* y, const T* x, int64_t n, C top) {
  C lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) {
      const C e = fast::exp(static_cast<C>(x[i + k]) - top);
      if constexpr (kStore) y[i + k] = static_cast<T>(e);
      lanes[k] += e;
    }
  C sum = fold_sum(lanes);
  for (; i < n; ++i) {
    const C e = fast::exp(static_cast<C>(x[i]) - top);
    if constexpr (kStore) y[i] = static_cast<T>(e);
    sum += e;
  }
  return sum;
}

// What logsumexp subtracts: not an infinity, so that exp and log carry infinities and NaN through.
template <class C>
CAIRN_INLINE C finite_or_zero(C top) {
  return top - top == C(0) ? top : C(0);
}

template <class T>
HWY_ATTR void forward_line(T* y, const T* x, int64_t n, int mode) {
  using C = Compute<T>;
  C top = line_max<T, C>(x, n);
  if (mode == kLogSumExp) top = finite_or_zero(top);
  if (mode == kSoftmax && !kIsHalf<T>) {
    const C scale = C(1) / line_exp_sum<T, C, true>(y, x, n, top);
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(static_cast<C>(y[i]) * scale);
    return;
  }
  const C sum = line_exp_sum<T, C, false>(y, x, n, top);
  if (mode == kSoftmax) {  // halves: terms are not rounded before they are scaled
    const C scale = C(1) / sum;
    for (int64_t i = 0; i < n; ++i)
      y[i] = static_cast<T>(fast::exp(static_cast<C>(x[i]) - top) * scale);
  } else if (mode == kLogSoftmax) {
    const C log_sum = std::log(sum);
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<T>((static_cast<C>(x[i]) - top) - log_sum);
  } else {
    y[0] = static_cast<T>(top + std::log(sum));
  }
}

// `cols` lines side by side.
template <class T>
HWY_ATTR void forward_beside(T* y, const T* x, int64_t n, int64_t inner, int64_t cols, int mode) {
  using C = Compute<T>;
  C top[kBeside];
  C sum[kBeside] = {};
  std::fill_n(top, kBeside, -std::numeric_limits<C>::infinity());
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < cols; ++c) {
      const C v = static_cast<C>(x[i * inner + c]);
      top[c] = top[c] > v ? top[c] : v;
    }
  if (mode == kLogSumExp)
    for (int64_t c = 0; c < cols; ++c) top[c] = finite_or_zero(top[c]);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < cols; ++c)
      sum[c] += fast::exp(static_cast<C>(x[i * inner + c]) - top[c]);
  if (mode == kLogSumExp) {
    for (int64_t c = 0; c < cols; ++c) y[c] = static_cast<T>(top[c] + std::log(sum[c]));
    return;
  }
  for (int64_t c = 0; c < cols; ++c) sum[c] = mode == kSoftmax ? C(1) / sum[c] : std::log(sum[c]);
  for (int64_t i = 0; i < n; ++i) {
    const T* from = x + i * inner;
    T* to = y + i * inner;
    if (mode == kSoftmax)
      for (int64_t c = 0; c < cols; ++c)
        to[c] = static_cast<T>(fast::exp(static_cast<C>(from[c]) - top[c]) * sum[c]);
    else
      for (int64_t c = 0; c < cols; ++c)
        to[c] = static_cast<T>((static_cast<C>(from[c]) - top[c]) - sum[c]);
  }
}

template <class T>
HWY_ATTR void forward_lines(void* yv, const void* xv, const Lines& lines, int64_t lo, int64_t hi,
                            int mode) {
  T* y = static_cast<T*>(yv);
  const T* x = static_cast<const T*>(xv);
  const int64_t out_n = mode == kLogSumExp ? 1 : lines.n;
  if (lines.inner == 1) {
    for (int64_t o = lo; o < hi; ++o) forward_line(y + o * out_n, x + o * lines.n, lines.n, mode);
    return;
  }
  const int64_t tiles = (lines.inner + kBeside - 1) / kBeside;
  for (int64_t unit = lo; unit < hi; ++unit) {
    const int64_t o = unit / tiles;
    const int64_t c = unit % tiles * kBeside;
    forward_beside(y + o * out_n * lines.inner + c, x + o * lines.n * lines.inner + c, lines.n,
                   lines.inner, std::min(kBeside, lines.inner - c), mode);
  }
}

// dx (+)= y (g - sum(g y)), or g - exp(y) sum(g). What is asked for is known to the compiler: a
// choice within the loops would keep them from being vectorised.
template <class T, bool kLog>
CAIRN_INLINE Compute<T> backward_term(T g, T y) {
  using C = Compute<T>;
  return kLog ? static_cast<C>(g) : static_cast<C>(g) * static_cast<C>(y);
}

template <class T, bool kLog, bool kAdd>
CAIRN_INLINE void backward_element(T& dx, T g, T y, Compute<T> sum) {
  using C = Compute<T>;
  C v = 0;
  if constexpr (kLog)
    v = static_cast<C>(g) - fast::exp(static_cast<C>(y)) * sum;
  else
    v = static_cast<C>(y) * (static_cast<C>(g) - sum);
  dx = static_cast<T>(kAdd ? static_cast<C>(dx) + v : v);
}

template <class T, bool kLog, bool kAdd>
HWY_ATTR void backward_line(T* dx, const T* g, const T* y, int64_t n) {
  using C = Compute<T>;
  C lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lanes[k] += backward_term<T, kLog>(g[i + k], y[i + k]);
  C sum = fold_sum(lanes);
  for (; i < n; ++i) sum += backward_term<T, kLog>(g[i], y[i]);
  CAIRN_INDEPENDENT
  for (i = 0; i < n; ++i) backward_element<T, kLog, kAdd>(dx[i], g[i], y[i], sum);
}

template <class T, bool kLog, bool kAdd>
HWY_ATTR void backward_beside(T* dx, const T* g, const T* y, int64_t n, int64_t inner,
                              int64_t cols) {
  Compute<T> sum[kBeside] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < cols; ++c)
      sum[c] += backward_term<T, kLog>(g[i * inner + c], y[i * inner + c]);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = i * inner;
    CAIRN_INDEPENDENT
    for (int64_t c = 0; c < cols; ++c)
      backward_element<T, kLog, kAdd>(dx[at + c], g[at + c], y[at + c], sum[c]);
  }
}

template <class T, bool kLog, bool kAdd>
HWY_ATTR void backward_lines(void* dxv, const void* gv, const void* yv, const Lines& lines,
                             int64_t lo, int64_t hi) {
  T* dx = static_cast<T*>(dxv);
  const T* g = static_cast<const T*>(gv);
  const T* y = static_cast<const T*>(yv);
  if (lines.inner == 1) {
    for (int64_t o = lo; o < hi; ++o) {
      const int64_t at = o * lines.n;
      backward_line<T, kLog, kAdd>(dx + at, g + at, y + at, lines.n);
    }
    return;
  }
  const int64_t tiles = (lines.inner + kBeside - 1) / kBeside;
  for (int64_t unit = lo; unit < hi; ++unit) {
    const int64_t c = unit % tiles * kBeside;
    const int64_t at = unit / tiles * lines.n * lines.inner + c;
    backward_beside<T, kLog, kAdd>(dx + at, g + at, y + at, lines.n, lines.inner,
                                   std::min(kBeside, lines.inner - c));
  }
}

ForwardLines pick_forward(DType dtype) {
  return dispatch_floating(dtype, "softmax",
                           []<class T>() -> ForwardLines { return forward_lines<T>; });
}
BackwardLines pick_backward(DType dtype, bool log, bool add) {
  return dispatch_floating(dtype, "softmax", [&]<class T>() -> BackwardLines {
    if (log) return add ? backward_lines<T, true, true> : backward_lines<T, true, false>;
    return add ? backward_lines<T, false, true> : backward_lines<T, false, false>;
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {

HWY_EXPORT(pick_forward);
HWY_EXPORT(pick_backward);

namespace {

constexpr int64_t kGrain = 8192;  // elements worth a thread: exp costs more than memory

template <class Body>
void for_units(const Lines& lines, Body&& body) {
  const int64_t tiles = lines.inner == 1 ? 1 : (lines.inner + kBeside - 1) / kBeside;
  const int64_t elements = lines.n * std::min(lines.inner, kBeside);
  parallel_for(0, lines.outer * tiles,
               std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements)), body);
}

void forward(Out y, In x, const Lines& lines, int mode) {
  if (y.numel() == 0) return;
  const ForwardLines run = HWY_DYNAMIC_DISPATCH(pick_forward)(x.dtype());
  void* to = y.raw_data();
  const void* from = x.raw_data();
  for_units(lines, [&](int64_t lo, int64_t hi) { run(to, from, lines, lo, hi, mode); });
}

}  // namespace
}  // namespace cpu

static void cpu_softmax_fwd(Out y, In x, int64_t outer, int64_t n, int64_t inner, bool log) {
  cpu::forward(y, x, {outer, n, inner}, log ? cpu::kLogSoftmax : cpu::kSoftmax);
}
static void cpu_logsumexp_fwd(Out y, In x, int64_t outer, int64_t n, int64_t inner) {
  cpu::forward(y, x, {outer, n, inner}, cpu::kLogSumExp);
}
static void cpu_softmax_bwd(const Dst& dx, In g, In y, int64_t outer, int64_t n, int64_t inner,
                            bool log) {
  using namespace cpu;
  if (!dx || y.numel() == 0) return;
  const BackwardLines run = HWY_DYNAMIC_DISPATCH(pick_backward)(y.dtype(), log, dx.add);
  const Lines lines{outer, n, inner};
  void* to = dx.tensor.raw_data();
  const void* from = g.raw_data();
  const void* out = y.raw_data();
  for_units(lines, [&](int64_t lo, int64_t hi) { run(to, from, out, lines, lo, hi); });
}

Slot<void(Out, In, int64_t, int64_t, int64_t, bool)> softmax_fwd{"softmax_fwd", cpu_softmax_fwd};
Slot<void(Out, In, int64_t, int64_t, int64_t)> logsumexp_fwd{"logsumexp_fwd", cpu_logsumexp_fwd};
Slot<void(const Dst&, In, In, int64_t, int64_t, int64_t, bool)> softmax_bwd{"softmax_bwd",
                                                                            cpu_softmax_bwd};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
