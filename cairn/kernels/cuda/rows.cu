// Bias, activation and column sums of a matrix in rows.
#include "cairn/kernels/cuda/rows.h"

#include <algorithm>

#include "cairn/kernels/functors.h"
#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::Grid;
using cairn::cuda::launch;
using cairn::cuda::narrow;
using cairn::cuda::widen;

// A block's columns and the rows it looks at side by side.
constexpr int kColumns = 32;
constexpr int kLanes = 8;
constexpr int64_t kMostChunks = 256;

struct Identity {
  template <class T>
  static __device__ __forceinline__ T f(T x) {
    return x;
  }
  template <class T>
  static __device__ __forceinline__ T df(T g, T) {
    return g;
  }
};

template <class Fn>
void with_activation(Activation activation, Fn&& fn) {
  switch (activation) {
    case Activation::none:
      return fn.template operator()<Identity>();
    case Activation::relu:
      return fn.template operator()<functors::Relu>();
    case Activation::gelu:
      return fn.template operator()<functors::GeluTanh>();
  }
}

template <class T, class F>
__global__ void finish(T* y, T* pre, const T* bias, int64_t numel, cairn::cuda::Divisor columns,
                       int64_t base) {
  for (int64_t i = cairn::cuda::global_thread(); i < numel; i += cairn::cuda::global_threads()) {
    const auto index = static_cast<uint32_t>(i);
    const uint32_t column = index - columns.quotient(index) * columns.value;
    Compute<T> value = widen(y[base + i]);
    if (bias != nullptr) value += widen(bias[column]);
    if (pre != nullptr) pre[base + i] = narrow<T>(value);
    y[base + i] = narrow<T>(F::f(value));
  }
}

// One block: kColumns columns of the rows of one chunk. out is [chunks, n]; it may be added to.
template <class Out, class T, class F, bool kWrites>
__global__ void sum_chunk(Out* out, bool add, T* dpre, const T* dy, const T* saved, int64_t rows,
                          int64_t n, int64_t chunk) {
  using Sum = Compute<T>;
  __shared__ Sum partial[kLanes][kColumns];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * chunk;
  const int64_t last = first + chunk < rows ? first + chunk : rows;
  Sum sum = 0;
  if (column < n) {
#pragma unroll 4
    for (int64_t row = first + threadIdx.y; row < last; row += kLanes) {
      const int64_t at = row * n + column;
      Sum value = widen(dy[at]);
      if constexpr (kWrites) {
        const T result = narrow<T>(F::df(value, widen(saved[at])));
        dpre[at] = result;
        value = widen(result);  // the sums are those of what was written
      }
      sum += value;
    }
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= n) return;
  Sum total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += partial[lane][threadIdx.x];
  Out* const place = out + static_cast<int64_t>(blockIdx.y) * n + column;
  if (add) total += widen(*place);
  *place = narrow<Out>(total);
}

// Chunks that fill the device without leaving a block fewer than a few rows.
int64_t chunks_of(int64_t rows, int64_t n) {
  constexpr int64_t kRowsPerLane = 8, kBlocks = 1024;
  const int64_t tiles = (n + kColumns - 1) / kColumns;
  const int64_t most = std::min(kMostChunks, std::max<int64_t>(1, kBlocks / tiles));
  return std::clamp<int64_t>(rows / (kLanes * kRowsPerLane), 1, most);
}

// Sums of columns, of dy itself or of what the activation makes of it: in one launch, or of chunks
// and then of their sums.
template <class T, class F, bool kWrites>
void sum_columns(const Dst& sums, T* dpre, const Tensor& dy, const T* saved) {
  using Sum = Compute<T>;
  const int64_t rows = dy.size(0), n = dy.size(1);
  const int64_t wanted = chunks_of(rows, n);
  const int64_t chunk = std::max<int64_t>(1, (rows + wanted - 1) / wanted);
  const int64_t chunks = std::max<int64_t>(1, (rows + chunk - 1) / chunk);
  const Device device = dy.device();
  const auto grid = [&](int64_t parts) {
    return Grid{
        dim3(static_cast<unsigned>((n + kColumns - 1) / kColumns), static_cast<unsigned>(parts)),
        dim3(kColumns, kLanes)};
  };
  T* const out = sums.tensor.template data<T>();
  const T* const in = dy.template data<T>();
  if (chunks == 1)
    return launch(device, "column_sums", sum_chunk<T, T, F, kWrites>, grid(1), out, sums.add, dpre,
                  in, saved, rows, n, chunk);
  // Scratch of the caching allocator: a device has none of a thread's own.
  const Tensor partial = empty({chunks, n}, {dtype_of<Sum>(), device});
  Sum* const parts = partial.template data<Sum>();
  launch(device, "column_sums", sum_chunk<Sum, T, F, kWrites>, grid(chunks), parts, false, dpre, in,
         saved, rows, n, chunk);
  launch(device, "column_sums", sum_chunk<T, Sum, Identity, false>, grid(1), out, sums.add, nullptr,
         parts, nullptr, chunks, n, chunks);
}

template <class T, class F>
__global__ void undo(T* dpre, const T* dy, const T* saved, int64_t numel) {
  for (int64_t i = cairn::cuda::global_thread(); i < numel; i += cairn::cuda::global_threads())
    dpre[i] = narrow<T>(F::df(widen(dy[i]), widen(saved[i])));
}

}  // namespace

void finish_rows(const Tensor& y, const Tensor& pre, const Tensor& bias, Activation activation) {
  if (y.numel() == 0) return;
  const int64_t n = y.size(1);
  // Whole rows at a time, so that an index has 31 bits.
  const int64_t rows = std::max<int64_t>(1, ((int64_t{1} << 31) - 1) / n);
  dispatch_floating(y.dtype(), "linear", [&]<class T>() {
    with_activation(activation, [&]<class F>() {
      for (int64_t row = 0; row < y.size(0); row += rows) {
        const int64_t numel = std::min(rows, y.size(0) - row) * n;
        launch(y.device(), "finish_rows", finish<T, F>, cairn::cuda::grid_for(numel, 256, 4, 4096),
               y.data<T>(), pre.defined() ? pre.data<T>() : nullptr,
               bias.defined() ? bias.data<T>() : nullptr, numel, cairn::cuda::Divisor(n), row * n);
      }
    });
  });
}

void column_sums(const Dst& sums, const Tensor& rows) {
  if (rows.size(1) == 0) return;
  dispatch_floating(rows.dtype(), "sum_rows", [&]<class T>() {
    sum_columns<T, Identity, false>(sums, nullptr, rows, nullptr);
  });
}

void undo_activation(const Tensor& dpre, const Dst& db, const Tensor& dy, const Tensor& saved,
                     Activation activation) {
  if (dy.size(1) == 0) return;
  dispatch_floating(dy.dtype(), "linear", [&]<class T>() {
    with_activation(activation, [&]<class F>() {
      if (db) return sum_columns<T, F, true>(db, dpre.data<T>(), dy, saved.data<T>());
      if (dy.numel() > 0)
        launch(dy.device(), "undo_activation", undo<T, F>,
               cairn::cuda::grid_for(dy.numel(), 256, 4, 4096), dpre.data<T>(), dy.data<T>(),
               saved.data<T>(), dy.numel());
    });
  });
}

}  // namespace cairn::kernels::cuda
