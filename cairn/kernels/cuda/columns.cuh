// What kernels over a matrix [R, C] share that take one slab of channels a block.
// Invariant: a thread has the same channels and rows in every pass of a kernel; sums over the rows
// are taken in an order that depends on the matrix's shape alone.
#pragma once

#include "cairn/tensor/cuda/device.cuh"

namespace cairn::kernels::cuda {

using cairn::cuda::kAllLanes;
using cairn::cuda::kWarp;
using cairn::cuda::narrow;
using cairn::cuda::Vector;
using cairn::cuda::widen;

// kEach channels a thread, 32 bytes of a row (a sector of memory) a slab; kEach = 1 where the
// channels do not come in aligned vectors.
template <int kEach>
struct Slab {
  static constexpr int kThreads = 512;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kColumns = kEach == 1 ? 8 : 2;  // threads along a row
  static constexpr int kChannels = kColumns * kEach;
  static constexpr int kRowLanes = kThreads / kColumns;  // rows at a time
  static constexpr int kWarpRows = kWarp / kColumns;
};

// Rows [begin, end) of the matrix and this thread's place in them.
template <int kEach>
struct SlabThread {
  int64_t channels;
  int64_t begin, end;
  int64_t channel;  // its first
  int64_t row;      // its first
  bool inside;      // it has channels

  // Block x takes slab x of the channels, block y rows of its own.
  __device__ __forceinline__ SlabThread(int64_t rows, int64_t width, int64_t rows_of_block)
      : channels(width) {
    using S = Slab<kEach>;
    const int thread = static_cast<int>(threadIdx.x);
    begin = blockIdx.y * rows_of_block;
    end = begin + rows_of_block < rows ? begin + rows_of_block : rows;
    channel = int64_t{blockIdx.x} * S::kChannels + thread % S::kColumns * kEach;
    row = begin + thread / S::kColumns;
    inside = channel < channels;
  }
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  // The first channel's number in the slab.
  __device__ __forceinline__ static int in_slab() {
    return static_cast<int>(threadIdx.x) % Slab<kEach>::kColumns * kEach;
  }
  // Rows that this thread's warp has: groups of kWarpRows go round the warps.
  __device__ __forceinline__ int64_t rows_of_warp(int warp) const {
    using S = Slab<kEach>;
    const int64_t rows = end - begin;
    const int64_t rest = rows % S::kRowLanes - warp * S::kWarpRows;
    return rows / S::kRowLanes * S::kWarpRows + (rest < 0              ? 0
                                                 : rest > S::kWarpRows ? S::kWarpRows
                                                                       : rest);
  }
};

// body(offset, values) for the thread's rows: values[i] is what in[i] holds there; null inputs are
// left out. Several rows are loaded before the first is used.
template <int kBatch, int kInputs, int kEach, class T, class Body>
__device__ __forceinline__ void over_rows(const SlabThread<kEach>& at,
                                          const T* const (&in)[kInputs], const Body& body) {
  constexpr int64_t kStep = Slab<kEach>::kRowLanes;
  if (!at.inside) return;
  for (int64_t row = at.row; row < at.end; row += kBatch * kStep) {
    Vector<T, kEach> batch[kBatch][kInputs];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      if (in[i] == nullptr) continue;
#pragma unroll
      for (int u = 0; u < kBatch; ++u)
        if (row + u * kStep < at.end)
          batch[u][i] = *reinterpret_cast<const Vector<T, kEach>*>(
              in[i] + (row + u * kStep) * at.channels + at.channel);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (row + u * kStep < at.end) body((row + u * kStep) * at.channels + at.channel, batch[u]);
  }
}

// Adds up the warp's values of each channel; this lane then holds the sum of channel `offset` of
// its column. Each step halves what a lane still has to do, where there is more than one channel.
template <int kEach, class Acc>
__device__ __forceinline__ Acc warp_columns(Acc (&v)[kEach], int& offset) {
  constexpr int kColumns = Slab<kEach>::kColumns;
  const int lane = SlabThread<kEach>::lane();
  offset = 0;
  int step = kWarp / 2;
#pragma unroll
  for (int half = kEach / 2; half >= 1; half /= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const Acc keep = upper ? v[i + half] : v[i];
      const Acc give = upper ? v[i] : v[i + half];
      v[i] = keep + __shfl_xor_sync(kAllLanes, give, step);
    }
    offset += upper ? half : 0;
    step /= 2;
  }
#pragma unroll
  for (; step >= kColumns; step /= 2) v[0] += __shfl_xor_sync(kAllLanes, v[0], step);
  return v[0];
}

// What each warp of the block found for each channel of the slab.
template <int kEach, class Acc>
using WarpSums = Acc[Slab<kEach>::kWarps][Slab<kEach>::kChannels];

template <int kEach, class Acc>
__device__ __forceinline__ void keep_warp_sums(Acc (&v)[kEach], WarpSums<kEach, Acc>& sums) {
  int offset;
  const Acc sum = warp_columns<kEach>(v, offset);
  sums[SlabThread<kEach>::warp()][SlabThread<kEach>::in_slab() + offset] = sum;
}

// A [C] vector of any floating dtype, read and written as f64; an absent one reads as `fallback`.
struct ChannelVector {
  void* data = nullptr;
  int64_t stride = 1;
  DType dtype = DType::f64;
  bool add = false;  // what accumulate() does to what is there

  ChannelVector() = default;
  explicit ChannelVector(const Tensor& t, bool adds = false) : add(adds) {
    if (!t.defined()) return;
    data = t.raw_data();
    stride = t.strides().empty() ? 1 : t.strides().back();
    dtype = t.dtype();
  }
  __device__ __forceinline__ double get(int64_t c, double fallback) const {
    if (data == nullptr) return fallback;
    c *= stride;
    switch (dtype) {
      case DType::f64:
        return static_cast<const double*>(data)[c];
      case DType::f32:
        return double{static_cast<const float*>(data)[c]};
      case DType::f16:
        return double{widen(static_cast<const float16*>(data)[c])};
      default:
        return double{widen(static_cast<const bfloat16*>(data)[c])};
    }
  }
  __device__ __forceinline__ void set(int64_t c, double value) const {
    c *= stride;
    switch (dtype) {
      case DType::f64:
        static_cast<double*>(data)[c] = value;
        break;
      case DType::f32:
        static_cast<float*>(data)[c] = static_cast<float>(value);
        break;
      case DType::f16:
        static_cast<float16*>(data)[c] = narrow<float16>(static_cast<float>(value));
        break;
      default:
        static_cast<bfloat16*>(data)[c] = narrow<bfloat16>(static_cast<float>(value));
    }
  }
  __device__ __forceinline__ void accumulate(int64_t c, double value) const {
    if (data != nullptr) set(c, add ? get(c, 0) + value : value);
  }
};

}  // namespace cairn::kernels::cuda
