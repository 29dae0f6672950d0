// softmax, log_softmax and logsumexp, forward and backward.
// Invariant: one line is handled by the threads of one block, in an order that its length decides.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "cairn/kernels/cuda/axes.h"
#include "cairn/kernels/reduce.h"
#include "cairn/tensor/cuda/device.cuh"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::Grid;
using cairn::cuda::kAllLanes;
using cairn::cuda::kWarp;
using cairn::cuda::launch;
using cairn::cuda::narrow;
using cairn::cuda::Plus;
using cairn::cuda::widen;

enum class Mode { softmax, log_softmax, logsumexp };

// Lines of n elements, `inner` apart; `count` of them, `inner` side by side.
struct Lines {
  int64_t count, n;
  Split inner;
  int lanes;  // threads of a line

  // First element of a line in a tensor with `length` elements along the lines.
  __device__ int64_t start(int64_t line, int64_t length) const {
    const int64_t outer = inner.quotient(line);
    return outer * length * inner.value + (line - outer * inner.value);
  }
};

// --- a line in registers: neighbouring threads read neighbouring elements -----------------------

constexpr int kHeld = 8;          // elements a thread holds
constexpr int kMostLanes = 1024;  // so lines of up to 8192 elements
constexpr int kBlock = 256;       // threads of a block of shorter lines

// combine over the `lanes` threads of a line; every one gets the result. All threads must call it.
template <class V, class Combine>
__device__ __forceinline__ V over_lanes(V value, V identity, int lanes, Combine combine) {
  if (lanes > kWarp) return cairn::cuda::block_reduce(value, identity, combine);
  for (int step = lanes / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

struct Larger {
  template <class V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

// What logsumexp subtracts: not an infinity, so that exp and log carry infinities and NaN through.
template <class C>
__device__ __forceinline__ C finite_or_zero(C top) {
  return top - top == C(0) ? top : C(0);
}

template <class C>
__device__ __forceinline__ C lowest() {
  return -std::numeric_limits<C>::infinity();
}

// The bound keeps f64's registers within a block of that many threads.
template <class T>
__global__ void __launch_bounds__(kMostLanes)
    softmax_held(T* y, const T* x, Lines lines, Mode mode) {
  using C = Compute<T>;
  const int lane = static_cast<int>(threadIdx.x) % lines.lanes;
  const int64_t line = static_cast<int64_t>(blockIdx.x) * (blockDim.x / lines.lanes) +
                       static_cast<int>(threadIdx.x) / lines.lanes;
  const int64_t n = line < lines.count ? lines.n : 0;
  C v[kHeld];
  C top = lowest<C>();
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = lane + static_cast<int64_t>(k) * lines.lanes;
    v[k] = i < n ? widen(x[line * n + i]) : lowest<C>();
    top = top > v[k] ? top : v[k];
  }
  top = over_lanes(top, lowest<C>(), lines.lanes, Larger{});
  if (mode == Mode::logsumexp) top = finite_or_zero(top);
  C sum = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const C e = std::exp(v[k] - top);
    // Places behind the line's end would be NaN where the line holds infinities only.
    if (lane + static_cast<int64_t>(k) * lines.lanes < n) sum += e;
    if (mode == Mode::softmax) v[k] = e;
  }
  sum = over_lanes(sum, C(0), lines.lanes, Plus{});
  if (mode == Mode::logsumexp) {
    if (lane == 0 && line < lines.count) y[line] = narrow<T>(top + std::log(sum));
    return;
  }
  const C scale = mode == Mode::softmax ? C(1) / sum : std::log(sum);
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = lane + static_cast<int64_t>(k) * lines.lanes;
    if (i < n)
      y[line * n + i] = narrow<T>(mode == Mode::softmax ? v[k] * scale : (v[k] - top) - scale);
  }
}

template <class C>
__device__ __forceinline__ C gradient(C g, C y, C sum, bool log) {
  return log ? g - std::exp(y) * sum : y * (g - sum);
}

template <class T>
__global__ void __launch_bounds__(kMostLanes)
    softmax_gradient_held(T* dx, const T* g, const T* y, Lines lines, bool log, bool add) {
  using C = Compute<T>;
  const int lane = static_cast<int>(threadIdx.x) % lines.lanes;
  const int64_t line = static_cast<int64_t>(blockIdx.x) * (blockDim.x / lines.lanes) +
                       static_cast<int>(threadIdx.x) / lines.lanes;
  const int64_t n = line < lines.count ? lines.n : 0;
  C gs[kHeld];
  C ys[kHeld];
  C sum = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = lane + static_cast<int64_t>(k) * lines.lanes;
    gs[k] = i < n ? widen(g[line * n + i]) : C(0);
    ys[k] = i < n ? widen(y[line * n + i]) : C(0);
  }
#pragma unroll
  for (int k = 0; k < kHeld; ++k) sum += log ? gs[k] : gs[k] * ys[k];
  sum = over_lanes(sum, C(0), lines.lanes, Plus{});
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = lane + static_cast<int64_t>(k) * lines.lanes;
    if (i >= n) continue;
    const C d = gradient(gs[k], ys[k], sum, log);
    T& out = dx[line * n + i];
    out = narrow<T>(add ? widen(out) + d : d);
  }
}

// --- longer lines, and lines side by side: read twice -------------------------------------------
// Threads are [lanes][columns]: neighbours have neighbouring lines where there are any.

constexpr int kStreamed = 512;  // threads of a block

// The sum of exp(x - base), where base is the largest x so far (0 for an infinity).
template <class C>
struct ExpSum {
  C top, sum;
};
template <class C>
__device__ __forceinline__ C rescaled(const ExpSum<C>& a, C top) {
  const C infinity = std::numeric_limits<C>::infinity();
  return a.top == top || a.top == -infinity ? a.sum : a.sum * std::exp(a.top - top);
}
template <class C>
__device__ __forceinline__ ExpSum<C> merged(const ExpSum<C>& a, const ExpSum<C>& b) {
  const C top = a.top > b.top ? a.top : b.top;
  return {top, rescaled(a, top) + rescaled(b, top)};
}

// Combines over the lanes of each column; every thread gets its column's. All threads must call it.
template <class V, class Combine>
__device__ __forceinline__ V over_column(V value, int columns, Combine combine) {
  __shared__ V shared[kStreamed];
  const int t = static_cast<int>(threadIdx.x);
  const int lane = t / columns;
  __syncthreads();  // the last call's readers are done
  shared[t] = value;
  for (int step = kStreamed / columns / 2; step > 0; step /= 2) {
    __syncthreads();
    if (lane < step) shared[t] = combine(shared[t], shared[t + step * columns]);
  }
  __syncthreads();
  return shared[t % columns];
}

constexpr int kChunk = 4;  // elements under way at a time

template <class T>
__device__ __forceinline__ ExpSum<Compute<T>> exp_sum_share(const T* x, int64_t n, int64_t inner,
                                                            int lane, int lanes) {
  using C = Compute<T>;
  ExpSum<C> total{lowest<C>(), 0};
  for (int64_t i = lane; i < n; i += int64_t{kChunk} * lanes) {
    C v[kChunk];
    C top = total.top;
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const int64_t at = i + static_cast<int64_t>(k) * lanes;
      v[k] = at < n ? widen(x[at * inner]) : lowest<C>();
    }
#pragma unroll
    for (int k = 0; k < kChunk; ++k) top = top > v[k] ? top : v[k];
    C sum = rescaled(total, top);
    const C base = finite_or_zero(top);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) sum += std::exp(v[k] - base);
    total = {top, sum};
  }
  return total;
}

template <class T>
__global__ void softmax_streamed(T* y, const T* x, Lines lines, Mode mode) {
  using C = Compute<T>;
  const int columns = kStreamed / lines.lanes;
  const int t = static_cast<int>(threadIdx.x);
  const int lane = t / columns;
  const int64_t line = static_cast<int64_t>(blockIdx.x) * columns + t % columns;
  const bool mine = line < lines.count;
  const int64_t n = mine ? lines.n : 0;
  const int64_t inner = lines.inner.value;
  const T* const from = x + (mine ? lines.start(line, n) : 0);
  const ExpSum<C> total =
      over_column(exp_sum_share(from, n, inner, lane, lines.lanes), columns,
                  [](const ExpSum<C>& a, const ExpSum<C>& b) { return merged(a, b); });
  if (!mine) return;
  if (mode == Mode::logsumexp) {
    if (lane == 0)
      y[lines.start(line, 1)] = narrow<T>(finite_or_zero(total.top) + std::log(total.sum));
    return;
  }
  // An infinity as the largest makes every difference NaN.
  const C nan = std::numeric_limits<C>::quiet_NaN();
  const C sum = total.top - total.top == C(0) ? total.sum : nan;
  const C scale = mode == Mode::softmax ? C(1) / sum : std::log(sum);
  T* const to = y + lines.start(line, n);
#pragma unroll 4
  for (int64_t i = lane; i < n; i += lines.lanes) {
    const C v = widen(from[i * inner]) - total.top;
    to[i * inner] = narrow<T>(mode == Mode::softmax ? std::exp(v) * scale : v - scale);
  }
}

template <class T>
__global__ void softmax_gradient_streamed(T* dx, const T* g, const T* y, Lines lines, bool log,
                                          bool add) {
  using C = Compute<T>;
  const int columns = kStreamed / lines.lanes;
  const int t = static_cast<int>(threadIdx.x);
  const int lane = t / columns;
  const int64_t line = static_cast<int64_t>(blockIdx.x) * columns + t % columns;
  const int64_t n = line < lines.count ? lines.n : 0;
  const int64_t inner = lines.inner.value;
  const int64_t start = n > 0 ? lines.start(line, n) : 0;
  C sum = 0;
#pragma unroll 4
  for (int64_t i = lane; i < n; i += lines.lanes) {
    const C slope = widen(g[start + i * inner]);
    sum += log ? slope : slope * widen(y[start + i * inner]);
  }
  sum = over_column(sum, columns, Plus{});
#pragma unroll 4
  for (int64_t i = lane; i < n; i += lines.lanes) {
    const int64_t at = start + i * inner;
    const C d = gradient(widen(g[at]), widen(y[at]), sum, log);
    dx[at] = narrow<T>(add ? widen(dx[at]) + d : d);
  }
}

// --- the choice
// -----------------------------------------------------------------------------------

int power_of_two(int64_t n) { return static_cast<int>(std::bit_ceil(static_cast<uint64_t>(n))); }

struct Choice {
  bool held;
  Lines lines;
  Grid grid;
};

Choice choose(int64_t outer, int64_t n, int64_t inner) {
  Choice c{inner == 1 && n <= int64_t{kHeld} * kMostLanes, {outer * inner, n, Split(inner), 1}, {}};
  int block = kStreamed;
  if (c.held) {
    c.lines.lanes = power_of_two(std::max<int64_t>(1, (n + kHeld - 1) / kHeld));
    // Neighbours in a warp share the work of a short line rather than wait for its loads.
    if (n >= 4 && c.lines.lanes < 4) c.lines.lanes = 4;
    block = c.lines.lanes > kWarp ? c.lines.lanes : kBlock;
  } else {
    int columns = inner == 1 ? 1 : power_of_two(std::min<int64_t>(inner, kWarp));
    // Short lines: more of them rather than threads without an element.
    while (columns < kStreamed && columns < c.lines.count && kStreamed / columns > n / kChunk)
      columns *= 2;
    c.lines.lanes = kStreamed / columns;
  }
  const int64_t each = block / c.lines.lanes;
  c.grid = {dim3(static_cast<unsigned>((c.lines.count + each - 1) / each)),
            dim3(static_cast<unsigned>(block))};
  return c;
}

void forward(Out y, In x, int64_t outer, int64_t n, int64_t inner, Mode mode) {
  if (y.numel() == 0) return;
  const Choice c = choose(outer, n, inner);
  dispatch_floating(x.dtype(), "softmax", [&]<class T>() {
    launch(x.device(), "softmax", c.held ? softmax_held<T> : softmax_streamed<T>, c.grid,
           y.data<T>(), x.data<T>(), c.lines, mode);
  });
}

void softmax(Out y, In x, int64_t outer, int64_t n, int64_t inner, bool log) {
  forward(y, x, outer, n, inner, log ? Mode::log_softmax : Mode::softmax);
}

void logsumexp(Out y, In x, int64_t outer, int64_t n, int64_t inner) {
  forward(y, x, outer, n, inner, Mode::logsumexp);
}

void softmax_backward(const Dst& dx, In g, In y, int64_t outer, int64_t n, int64_t inner,
                      bool log) {
  if (!dx) return;
  if (dx.zeros != nullptr) dx.zeros->clear();
  if (y.numel() == 0) return;
  const Choice c = choose(outer, n, inner);
  dispatch_floating(y.dtype(), "softmax", [&]<class T>() {
    launch(y.device(), "softmax_gradient",
           c.held ? softmax_gradient_held<T> : softmax_gradient_streamed<T>, c.grid,
           dx.tensor.data<T>(), g.data<T>(), y.data<T>(), c.lines, log, dx.add);
  });
}

}  // namespace

void fill_softmax() {
  softmax_fwd.fill(DeviceType::cuda, softmax);
  softmax_bwd.fill(DeviceType::cuda, softmax_backward);
  logsumexp_fwd.fill(DeviceType::cuda, logsumexp);
}

}  // namespace cairn::kernels::cuda
