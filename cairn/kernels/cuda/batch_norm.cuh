// Batch normalisation of a matrix [R, C], what both directions share: one launch where a block can
// take all rows of its channels, else partial sums in one and their sum, finish and result in
// another.
// Invariant: forward and backward compute the output by the same operations, so that they agree on
// where relu cut; partial sums are f64 and added in order.
#pragma once

#include <cmath>

#include "cairn/kernels/cuda/columns.cuh"
#include "cairn/kernels/cuda/norm.h"

namespace cairn::kernels::cuda::norm {

using namespace cairn::cuda;

// Rows that one block still takes alone: 64 KiB of each operand, less than a second launch costs.
constexpr int64_t kWholeRows = kNormRowsOfOneLaunch;
constexpr int kMostParts = kWarp;  // row blocks of partial sums; a lane of a warp reads each
static_assert(kMostParts >= 32, "NormBlocks may be as many");

// y = (x - mean) factor + offset; dx = factor dy - slope (x - mean) - shift.
enum Coef { kMean, kFactor, kOffset, kSlope, kShift, kCoefs };

// What both directions know of the matrix. Partial sums: [parts][2][C] in f64.
struct Matrix {
  int64_t rows = 0, channels = 0;
  int64_t rows_of_block = 0;  // of this launch
  int parts = 0;              // partial sums there are
  double* partial = nullptr;
  double* mean = nullptr;
  double* rstd = nullptr;
  ChannelVector w, b;
  bool relu = false;
};

template <int kEach, class Acc>
using Coefs = Acc[kCoefs][Slab<kEach>::kChannels];

// The coefficients of y. The mean is kept as the compute type holds it; what is cut off goes into
// the offset.
template <int kEach, class Acc>
__device__ __forceinline__ void set_output_coefs(const Matrix& m, Coefs<kEach, Acc>& coef, int i,
                                                 int64_t c, double mean, double rstd) {
  const Acc high = static_cast<Acc>(mean);
  const double low = mean - static_cast<double>(high);
  const double factor = m.w.get(c, 1) * rstd;
  coef[kMean][i] = high;
  coef[kFactor][i] = static_cast<Acc>(factor);
  coef[kOffset][i] = static_cast<Acc>(m.b.get(c, 0) - low * factor);
}

// This thread's coefficients, from shared memory.
template <int kEach, class Acc>
struct ThreadCoefs {
  Acc value[kCoefs][kEach];
  __device__ __forceinline__ explicit ThreadCoefs(const Coefs<kEach, Acc>& coef, int count) {
    const int first = SlabThread<kEach>::in_slab();
#pragma unroll
    for (int i = 0; i < kCoefs; ++i)
      if (i < count) {
#pragma unroll
        for (int k = 0; k < kEach; ++k) value[i][k] = coef[i][first + k];
      }
  }
  __device__ __forceinline__ Acc output(int k, Acc centered) const {
    return std::fma(centered, value[kFactor][k], value[kOffset][k]);
  }
};

// --- partial sums --------------------------------------------------------------------------------

// Adds up the partial sums of the slab's channels: sums[0] and sums[1]. A lane takes one part.
template <int kEach>
__device__ __forceinline__ void join_parts(const Matrix& m,
                                           double (&sums)[2][Slab<kEach>::kChannels]) {
  using S = Slab<kEach>;
  const int lane = SlabThread<kEach>::lane();
  const int64_t first = int64_t{blockIdx.x} * S::kChannels;
  for (int v = SlabThread<kEach>::warp(); v < 2 * S::kChannels; v += S::kWarps) {
    const int which = v / S::kChannels, i = v % S::kChannels;
    double sum = 0;
    if (lane < m.parts && first + i < m.channels)
      sum = m.partial[(2 * int64_t{lane} + which) * m.channels + first + i];
    sum = warp_reduce(sum, Plus());
    if (lane == 0) sums[which][i] = sum;
  }
}

__device__ __forceinline__ void keep_part(const Matrix& m, int64_t c, double a, double b) {
  double* const out = m.partial + 2 * int64_t{blockIdx.y} * m.channels;
  out[c] = a;
  out[m.channels + c] = b;
}

// --- launches ------------------------------------------------------------------------------------

// Whether this thread finishes a channel, and which: i in the slab, c of the matrix.
template <int kEach>
__device__ __forceinline__ bool finishes(const Matrix& m, int& i, int64_t& c) {
  i = static_cast<int>(threadIdx.x);
  c = int64_t{blockIdx.x} * Slab<kEach>::kChannels + i;
  return i < Slab<kEach>::kChannels && c < m.channels;
}

enum class Pass { whole, sums, result };

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.raw_data()) : nullptr;
}
template <class T>
T* data_of(const Dst& dst) {
  if (dst.zeros != nullptr) dst.zeros->clear();
  return data_or_null<T>(dst.tensor);
}

inline void set_matrix(Matrix& m, In x, In w, In b, In mean, In rstd, bool relu) {
  m.channels = x.size(1);
  m.rows = m.channels == 0 ? 0 : x.numel() / m.channels;
  m.w = ChannelVector(w);
  m.b = ChannelVector(b);
  m.mean = static_cast<double*>(mean.raw_data());
  m.rstd = static_cast<double*>(rstd.raw_data());
  m.relu = relu;
}

// Calls body.operator()<kEach>() for vectors of channels, or single ones where these do not lie so.
template <class T, class Body>
void with_vectors(int64_t channels, std::initializer_list<const void*> pointers, Body&& body) {
  bool aligned = channels % kVector<T> == 0;
  for (const void* p : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  if constexpr (sizeof(T) < sizeof(double))
    if (aligned) return body.template operator()<kVector<T>>();
  body.template operator()<1>();
}

template <int kEach>
Grid slab_grid(const Matrix& m) {
  const auto slabs =
      static_cast<unsigned>((m.channels + Slab<kEach>::kChannels - 1) / Slab<kEach>::kChannels);
  const auto parts = static_cast<unsigned>((m.rows + m.rows_of_block - 1) / m.rows_of_block);
  return {dim3(slabs, parts), dim3(Slab<kEach>::kThreads)};
}

// Rows of a block that writes results: as many blocks as run at once, since each begins by adding
// up the partial sums. Registers allow one block of wide vectors on a multiprocessor, else two.
template <int kEach>
int64_t result_rows(Device device, const Matrix& m) {
  constexpr int64_t kAtOnce = kEach == 8 ? 1 : 2;
  const int64_t slabs = (m.channels + Slab<kEach>::kChannels - 1) / Slab<kEach>::kChannels;
  const int64_t blocks = std::max<int64_t>(1, kAtOnce * limits_of(device).multiprocessors / slabs);
  return std::max<int64_t>(Slab<kEach>::kRowLanes, (m.rows + blocks - 1) / blocks);
}

// `whole` alone, or `sums` and then `result`.
template <int kEach, class Arguments>
void launch_passes(Device device, const char* name, Arguments arguments, Out work,
                   void (*whole)(Arguments), void (*sums)(Arguments), void (*result)(Arguments)) {
  if (arguments.rows <= kWholeRows) {
    arguments.rows_of_block = std::max<int64_t>(1, arguments.rows);
    Grid grid = slab_grid<kEach>(arguments);
    grid.blocks.y = 1;
    return launch(device, name, whole, grid, arguments);
  }
  const NormBlocks blocks(arguments.rows);
  arguments.partial = work.data<double>();
  arguments.parts = static_cast<int>(blocks.count);
  arguments.rows_of_block = blocks.block;
  launch(device, name, sums, slab_grid<kEach>(arguments), arguments);
  arguments.rows_of_block = result_rows<kEach>(device, arguments);
  launch(device, name, result, slab_grid<kEach>(arguments), arguments);
}

}  // namespace cairn::kernels::cuda::norm
