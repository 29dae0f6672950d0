// Running sums along one dimension.
// Invariant: sums are kept in f64 (u64 for integers), in an order that the line's length decides.
#include <algorithm>

#include "cairn/kernels/cuda/reduce.cuh"
#include "cairn/kernels/reduce.h"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::global_thread;
using cairn::cuda::grid_for;
using cairn::cuda::kAllLanes;
using cairn::cuda::kWarp;
using cairn::cuda::launch;
using cairn::cuda::narrow;
using cairn::cuda::widen;

template <class T>
using ResultOf = std::conditional_t<std::is_integral_v<T>, int64_t, T>;
template <class T>
using RunningSum = std::conditional_t<std::is_integral_v<T>, uint64_t, double>;

template <class T>
__device__ __forceinline__ RunningSum<T> load(T x) {
  return static_cast<RunningSum<T>>(widen(x));
}
template <class T>
__device__ __forceinline__ ResultOf<T> store(RunningSum<T> sum) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<int64_t>(sum);
  else
    return narrow<T>(static_cast<Compute<T>>(sum));
}

// Lines in x and y; element i of a line is the i-th to be summed.
struct Lines {
  Axes<2> starts;  // of x and y
  int64_t n;
  int64_t x_step, y_step;  // negative from the end
  int segments;            // blocks that share a line
  int64_t segment;         // their elements
};

// A thread for each line: short ones, or many side by side.
template <class T>
__global__ void cumsum_lines(ResultOf<T>* y, const T* x, Lines lines) {
  const int64_t line = global_thread();
  if (line >= lines.starts.count) return;
  const auto at = lines.starts.offsets(line);
  RunningSum<T> sum = 0;
#pragma unroll 4
  for (int64_t i = 0; i < lines.n; ++i) {
    sum += load(x[at.at[0] + i * lines.x_step]);
    y[at.at[1] + i * lines.y_step] = store<T>(sum);
  }
}

constexpr int kThreads = 256;
constexpr int kEach = 4;  // elements of a thread in one go

// The sum of the threads before this one, and the block's in `total`. All threads must call it.
template <class S>
__device__ __forceinline__ S sum_before(S value, S& total) {
  __shared__ S warps[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  S through = value;  // of the warp's lanes up to this one
  for (int step = 1; step < kWarp; step *= 2) {
    const S other = __shfl_up_sync(kAllLanes, through, static_cast<unsigned>(step));
    if (lane >= step) through += other;
  }
  __syncthreads();  // the last call's readers are done
  if (lane == kWarp - 1) warps[warp] = through;
  __syncthreads();
  S before = 0;
  total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  return before + (through - value);
}

// Sums of the segments of each line.
template <class T>
__global__ void cumsum_totals(RunningSum<T>* totals, const T* x, Lines lines) {
  const int64_t line = blockIdx.x;
  const T* const from = x + lines.starts.offsets(line).at[0];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * lines.segment;
  const int64_t last = std::min(first + lines.segment, lines.n);
  RunningSum<T> sum = 0;
#pragma unroll 4
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads)
    sum += load(from[i * lines.x_step]);
  sum = cairn::cuda::block_reduce(sum, RunningSum<T>(0), cairn::cuda::Plus{});
  if (threadIdx.x == 0) totals[line * lines.segments + blockIdx.y] = sum;
}

// A block for each segment of a line; `totals` is null where that is a whole line.
template <class T>
__global__ void cumsum_segments(ResultOf<T>* y, const T* x, Lines lines,
                                const RunningSum<T>* totals) {
  using S = RunningSum<T>;
  const int64_t line = blockIdx.x;
  const auto at = lines.starts.offsets(line);
  const T* const from = x + at.at[0];
  ResultOf<T>* const to = y + at.at[1];
  S carry = 0;
  for (int s = static_cast<int>(threadIdx.x); s < static_cast<int>(blockIdx.y); s += kThreads)
    carry += totals[line * lines.segments + s];
  if (totals != nullptr) carry = cairn::cuda::block_reduce(carry, S(0), cairn::cuda::Plus{});
  const int64_t first = static_cast<int64_t>(blockIdx.y) * lines.segment;
  const int64_t last = std::min(first + lines.segment, lines.n);
  for (int64_t tile = first; tile < last; tile += kThreads * kEach) {
    const int64_t mine = tile + static_cast<int64_t>(threadIdx.x) * kEach;
    S value[kEach];
    S sum = 0;
#pragma unroll
    for (int k = 0; k < kEach; ++k)
      value[k] = mine + k < last ? load(from[(mine + k) * lines.x_step]) : S(0);
#pragma unroll
    for (int k = 0; k < kEach; ++k) sum += value[k];
    S total = 0;
    S running = carry + sum_before(sum, total);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      running += value[k];
      if (mine + k < last) to[(mine + k) * lines.y_step] = store<T>(running);
    }
    carry += total;
  }
}

template <class T>
void cumsum_as(Out y, In x, Lines lines) {
  const Device device = x.device();
  const int64_t back = lines.n - 1;  // a line from its end starts at its last element
  const T* const from =
      static_cast<const T*>(x.raw_data()) + (lines.x_step < 0 ? -lines.x_step * back : 0);
  auto* const to = y.data<ResultOf<T>>() + (lines.y_step < 0 ? -lines.y_step * back : 0);
  const bool beside = lines.starts.rank > 0 && lines.starts.stride[0][0] == 1;
  if (lines.n <= 64 || (beside && lines.starts.count >= 8192)) {
    launch(device, "cumsum_lines", cumsum_lines<T>, grid_for(lines.starts.count, 128), to, from,
           lines);
    return;
  }
  constexpr int64_t kBlocks = 528;                  // four for each multiprocessor of a large card
  constexpr int64_t kLeast = 4 * kThreads * kEach;  // elements worth a block
  const int64_t segments =
      std::clamp<int64_t>(lines.n / kLeast, 1, std::max<int64_t>(1, kBlocks / lines.starts.count));
  lines.segment = (lines.n + segments - 1) / segments;
  lines.segments = static_cast<int>((lines.n + lines.segment - 1) / lines.segment);
  const cairn::cuda::Grid grid{
      dim3(static_cast<unsigned>(lines.starts.count), static_cast<unsigned>(lines.segments)),
      dim3(kThreads)};
  Tensor memory;
  RunningSum<T>* totals = nullptr;
  if (lines.segments > 1) {
    memory = empty({lines.starts.count * lines.segments}, {DType::f64, device});
    totals = static_cast<RunningSum<T>*>(memory.raw_data());
    launch(device, "cumsum_totals", cumsum_totals<T>, grid, totals, from, lines);
  }
  launch(device, "cumsum_segments", cumsum_segments<T>, grid, to, from, lines, totals);
}

void cumsum(Out y, In x, int64_t dim, bool reverse) {
  if (x.numel() == 0) return;
  const bool point = x.dim() == 0;
  const auto d = static_cast<size_t>(dim);
  const int64_t sign = reverse ? -1 : 1;
  const Lines lines{row_major<2>(x.shape(), {&x.strides(), &y.strides()}, point ? -1 : dim),
                    point ? 1 : x.shape()[d],
                    point ? 1 : sign * x.strides()[d],
                    point ? 1 : sign * y.strides()[d],
                    1,
                    0};
  dispatch_bytes(x.dtype(), [&]<class T>() { cumsum_as<T>(y, x, lines); });
}

}  // namespace

void fill_scan() { cumsum_fwd.fill(DeviceType::cuda, cumsum); }

}  // namespace cairn::kernels::cuda
