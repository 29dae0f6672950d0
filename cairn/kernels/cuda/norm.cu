// Batch normalisation of a matrix [R, C]: one launch where a block can take all rows of its
// channels, else partial sums in one and their sum, finish and result in another.
// Invariant: what a warp sums in the compute type is taken relative to one of its own values and
// combined in f64, so that a large mean costs no digits of the variance; forward and backward
// compute the output by the same operations, so that they agree on where relu cut.
#include "cairn/kernels/norm.h"

#include <cmath>

#include "cairn/kernels/cuda/columns.cuh"

namespace cairn::kernels::cuda {

using namespace cairn::cuda;

namespace {

// Rows that one block still takes alone: 64 KiB of each operand, less than a second launch costs.
constexpr int64_t kWholeRows = 2048;
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

template <class T>
struct Forward : Matrix {
  const T* x = nullptr;
  const T* residual = nullptr;
  T* y = nullptr;
  ChannelVector running_mean, running_var;
  double momentum = 0, eps = 0;
};

template <class T>
struct Backward : Matrix {
  const T* dy = nullptr;
  const T* x = nullptr;
  const T* y = nullptr;  // null: computed again where relu needs it
  T* dx = nullptr;
  T* dresidual = nullptr;
  bool dx_add = false, dresidual_add = false, training = false;
  ChannelVector dw, db;
};

// --- what happens per channel, by one thread of the block each -----------------------------------

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

// From the sums of x - shift and their squares over all rows; `first`: this block's results are the
// ones that are kept.
template <int kEach, class T, class Acc>
__device__ __forceinline__ void finish_forward(const Forward<T>& f, Coefs<kEach, Acc>& coef, int i,
                                               int64_t c, double shift, double sum, double squares,
                                               bool first) {
  const double rows = static_cast<double>(f.rows);
  const double off = sum / rows;
  const double mean = shift + off;
  double m2 = squares - off * sum;
  m2 = m2 < 0 ? 0 : m2;  // NaN stays
  const double rstd = 1 / std::sqrt(m2 / rows + f.eps);
  set_output_coefs<kEach>(f, coef, i, c, mean, rstd);
  if (!first) return;
  f.mean[c] = mean;
  f.rstd[c] = rstd;
  if (f.running_mean.data == nullptr) return;
  const double keep = 1 - f.momentum;
  f.running_mean.set(c, keep * f.running_mean.get(c, 0) + f.momentum * mean);
  f.running_var.set(c, keep * f.running_var.get(c, 0) + f.momentum * (m2 / (rows - 1)));
}

// From the sums of dy and dy (x - mean), the mean as the coefficients hold it.
template <int kEach, class T, class Acc>
__device__ __forceinline__ void finish_backward(const Backward<T>& g, Coefs<kEach, Acc>& coef,
                                                int i, int64_t c, double sum_dy, double sum_dy_x,
                                                bool first) {
  const double rstd = g.rstd[c];
  const double low = g.mean[c] - static_cast<double>(coef[kMean][i]);
  const double covariance = sum_dy_x - low * sum_dy;
  double slope = 0, shift = 0;
  if (g.training) {
    const double rows = static_cast<double>(g.rows);
    const double factor = g.w.get(c, 1) * rstd;
    slope = factor * rstd * rstd * covariance / rows;
    shift = factor * sum_dy / rows - low * slope;
  }
  coef[kSlope][i] = static_cast<Acc>(slope);
  coef[kShift][i] = static_cast<Acc>(shift);
  if (!first) return;
  g.dw.accumulate(c, covariance * rstd);
  g.db.accumulate(c, sum_dy);
}

// --- passes over the rows ------------------------------------------------------------------------

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

// Each warp's sums of x - shift and their squares; the shift is the warp's first value.
template <int kEach, class Acc>
struct Moments {
  WarpSums<kEach, Acc> shift, sum, squares;
};
template <int kEach, class T, class Acc>
__device__ __forceinline__ void sum_moments(const SlabThread<kEach>& at, const T* x,
                                            Moments<kEach, Acc>& out) {
  Acc shift[kEach] = {}, sum[kEach] = {}, squares[kEach] = {};
  const int64_t first = at.begin + at.warp() * Slab<kEach>::kWarpRows;
  if (at.inside && first < at.end) {
    const auto v = *reinterpret_cast<const Vector<T, kEach>*>(x + first * at.channels + at.channel);
#pragma unroll
    for (int k = 0; k < kEach; ++k) shift[k] = widen(v.value[k]);
  }
  over_rows<4>(at, {x}, [&](int64_t, const Vector<T, kEach>(&in)[1]) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const Acc v = widen(in[0].value[k]) - shift[k];
      sum[k] += v;
      squares[k] = std::fma(v, v, squares[k]);
    }
  });
  if (at.lane() < Slab<kEach>::kColumns) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) out.shift[at.warp()][at.in_slab() + k] = shift[k];
  }
  keep_warp_sums<kEach>(sum, out.sum);
  keep_warp_sums<kEach>(squares, out.squares);
}

// Channel i's moments of all warps, relative to `shift`.
template <int kEach, class Acc>
__device__ __forceinline__ void join_moments(const SlabThread<kEach>& at,
                                             const Moments<kEach, Acc>& moments, int i,
                                             double shift, double& sum, double& squares) {
  sum = squares = 0;
  for (int warp = 0; warp < Slab<kEach>::kWarps; ++warp) {
    const double count = static_cast<double>(at.rows_of_warp(warp));
    if (count == 0) break;
    const double s = static_cast<double>(moments.sum[warp][i]);
    const double d = static_cast<double>(moments.shift[warp][i]) - shift;
    sum += s + count * d;
    squares += static_cast<double>(moments.squares[warp][i]) + d * (2 * s + count * d);
  }
}

template <int kEach, class T>
__device__ __forceinline__ void write_output(const SlabThread<kEach>& at, const Forward<T>& f,
                                             const Coefs<kEach, Compute<T>>& shared) {
  using Acc = Compute<T>;
  const ThreadCoefs<kEach, Acc> coef(shared, kSlope);
  const T* const residual = f.residual;
  over_rows<4>(at, {f.x, residual}, [&](int64_t i, const Vector<T, kEach>(&in)[2]) {
    Vector<T, kEach> out;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      Acc v = coef.output(k, widen(in[0].value[k]) - coef.value[kMean][k]);
      if (residual != nullptr) v += widen(in[1].value[k]);
      if (f.relu && v <= 0) v = 0;  // NaN stays
      out.value[k] = narrow<T>(v);
    }
    *reinterpret_cast<Vector<T, kEach>*>(f.y + i) = out;
  });
}

// How a backward pass knows where relu cut: not at all, from the output, or from the input.
enum class Mask { none, output, input };
template <class T>
__device__ __forceinline__ Mask mask_of(const Backward<T>& g) {
  return !g.relu ? Mask::none : g.y != nullptr ? Mask::output : Mask::input;
}

// What relu lets through of dy.
template <int kEach, class T, class Acc = Compute<T>>
__device__ __forceinline__ Acc masked(Mask mask, const ThreadCoefs<kEach, Acc>& coef, int k, T dy,
                                      T y, Acc centered) {
  const Acc g = widen(dy);
  if (mask == Mask::none) return g;
  const Acc output = mask == Mask::output ? widen(y) : coef.output(k, centered);
  return output <= 0 ? Acc(0) : g;
}

template <int kEach, class Acc>
struct GradientSums {
  WarpSums<kEach, Acc> dy, dy_x;
};
// Each warp's sums of dy and dy (x - mean); dresidual (+)= dy on the way.
template <int kEach, class T>
__device__ __forceinline__ void sum_gradients(const SlabThread<kEach>& at, const Backward<T>& g,
                                              const Coefs<kEach, Compute<T>>& shared,
                                              GradientSums<kEach, Compute<T>>& out) {
  using Acc = Compute<T>;
  const ThreadCoefs<kEach, Acc> coef(shared, kSlope);
  const Mask mask = mask_of(g);
  const T* const before = g.dresidual_add ? g.dresidual : nullptr;
  Acc sum[kEach] = {}, sum_x[kEach] = {};
  over_rows<2>(at, {g.x, g.dy, mask == Mask::output ? g.y : nullptr, before},
               [&](int64_t i, const Vector<T, kEach>(&in)[4]) {
                 Vector<T, kEach> residual;
#pragma unroll
                 for (int k = 0; k < kEach; ++k) {
                   const Acc centered = widen(in[0].value[k]) - coef.value[kMean][k];
                   const Acc v =
                       masked<kEach>(mask, coef, k, in[1].value[k], in[2].value[k], centered);
                   sum[k] += v;
                   sum_x[k] = std::fma(v, centered, sum_x[k]);
                   residual.value[k] = narrow<T>(before != nullptr ? v + widen(in[3].value[k]) : v);
                 }
                 if (g.dresidual != nullptr)
                   *reinterpret_cast<Vector<T, kEach>*>(g.dresidual + i) = residual;
               });
  keep_warp_sums<kEach>(sum, out.dy);
  keep_warp_sums<kEach>(sum_x, out.dy_x);
}

template <int kEach, class Acc>
__device__ __forceinline__ void join_gradients(const GradientSums<kEach, Acc>& sums, int i,
                                               double& sum_dy, double& sum_dy_x) {
  sum_dy = sum_dy_x = 0;
  for (int warp = 0; warp < Slab<kEach>::kWarps; ++warp) {
    sum_dy += static_cast<double>(sums.dy[warp][i]);
    sum_dy_x += static_cast<double>(sums.dy_x[warp][i]);
  }
}

template <int kEach, class T>
__device__ __forceinline__ void write_gradient(const SlabThread<kEach>& at, const Backward<T>& g,
                                               const Coefs<kEach, Compute<T>>& shared) {
  using Acc = Compute<T>;
  const ThreadCoefs<kEach, Acc> coef(shared, kCoefs);
  // The residual's gradient, when it is fresh, is dy with the mask applied: one array less to read.
  const bool fresh = g.dresidual != nullptr && !g.dresidual_add;
  const Mask mask = fresh ? Mask::none : mask_of(g);
  const T* const dy = fresh ? g.dresidual : g.dy;
  const T* const before = g.dx_add ? g.dx : nullptr;
  over_rows<2>(at, {g.x, dy, mask == Mask::output ? g.y : nullptr, before},
               [&](int64_t i, const Vector<T, kEach>(&in)[4]) {
                 Vector<T, kEach> out;
#pragma unroll
                 for (int k = 0; k < kEach; ++k) {
                   const Acc centered = widen(in[0].value[k]) - coef.value[kMean][k];
                   Acc v = masked<kEach>(mask, coef, k, in[1].value[k], in[2].value[k], centered);
                   v = std::fma(v, coef.value[kFactor][k], -coef.value[kShift][k]);
                   v = std::fma(-centered, coef.value[kSlope][k], v);
                   if (before != nullptr) v += widen(in[3].value[k]);
                   out.value[k] = narrow<T>(v);
                 }
                 *reinterpret_cast<Vector<T, kEach>*>(g.dx + i) = out;
               });
}

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

// --- kernels -------------------------------------------------------------------------------------

// Whether this thread finishes a channel, and which: i in the slab, c of the matrix.
template <int kEach>
__device__ __forceinline__ bool finishes(const Matrix& m, int& i, int64_t& c) {
  i = static_cast<int>(threadIdx.x);
  c = int64_t{blockIdx.x} * Slab<kEach>::kChannels + i;
  return i < Slab<kEach>::kChannels && c < m.channels;
}

enum class Pass { whole, sums, result };

template <class T, int kEach, Pass kPass>
__global__ void __launch_bounds__(Slab<kEach>::kThreads) forward_kernel(Forward<T> f) {
  using Acc = Compute<T>;
  const SlabThread<kEach> at(f.rows, f.channels, f.rows_of_block);
  int i;
  int64_t c;
  const bool mine = finishes<kEach>(f, i, c);
  __shared__ Coefs<kEach, Acc> coef;
  if constexpr (kPass == Pass::result) {
    __shared__ double sums[2][Slab<kEach>::kChannels];
    join_parts<kEach>(f, sums);
    __syncthreads();
    if (mine)
      finish_forward<kEach>(f, coef, i, c, double{widen(f.x[c])}, sums[0][i], sums[1][i],
                            blockIdx.y == 0);
  } else {
    __shared__ Moments<kEach, Acc> moments;
    sum_moments<kEach>(at, f.x, moments);
    __syncthreads();
    if (mine) {
      double sum, squares;
      const double shift = double{widen(f.x[c])};
      join_moments<kEach>(at, moments, i, shift, sum, squares);
      if constexpr (kPass == Pass::sums)
        keep_part(f, c, sum, squares);
      else
        finish_forward<kEach>(f, coef, i, c, shift, sum, squares, true);
    }
  }
  if constexpr (kPass != Pass::sums) {
    __syncthreads();
    write_output<kEach>(at, f, coef);
  }
}

// With statistics that are there already: f.running_mean and f.running_var.
template <class T, int kEach>
__global__ void __launch_bounds__(Slab<kEach>::kThreads) evaluation_kernel(Forward<T> f) {
  const SlabThread<kEach> at(f.rows, f.channels, f.rows_of_block);
  int i;
  int64_t c;
  __shared__ Coefs<kEach, Compute<T>> coef;
  if (finishes<kEach>(f, i, c)) {
    const double mean = f.running_mean.get(c, 0);
    const double rstd = 1 / std::sqrt(f.running_var.get(c, 1) + f.eps);
    set_output_coefs<kEach>(f, coef, i, c, mean, rstd);
    if (blockIdx.y == 0) {
      f.mean[c] = mean;
      f.rstd[c] = rstd;
    }
  }
  __syncthreads();
  write_output<kEach>(at, f, coef);
}

template <class T, int kEach, Pass kPass>
__global__ void __launch_bounds__(Slab<kEach>::kThreads) backward_kernel(Backward<T> g) {
  using Acc = Compute<T>;
  const SlabThread<kEach> at(g.rows, g.channels, g.rows_of_block);
  int i;
  int64_t c;
  const bool mine = finishes<kEach>(g, i, c);
  __shared__ Coefs<kEach, Acc> coef;
  if (mine) set_output_coefs<kEach>(g, coef, i, c, g.mean[c], g.rstd[c]);
  if constexpr (kPass == Pass::result) {
    __shared__ double sums[2][Slab<kEach>::kChannels];
    join_parts<kEach>(g, sums);
    __syncthreads();
    if (mine) finish_backward<kEach>(g, coef, i, c, sums[0][i], sums[1][i], blockIdx.y == 0);
  } else {
    __shared__ GradientSums<kEach, Acc> sums;
    __syncthreads();
    sum_gradients<kEach>(at, g, coef, sums);
    __syncthreads();
    if (mine) {
      double sum_dy, sum_dy_x;
      join_gradients<kEach>(sums, i, sum_dy, sum_dy_x);
      if constexpr (kPass == Pass::sums)
        keep_part(g, c, sum_dy, sum_dy_x);
      else
        finish_backward<kEach>(g, coef, i, c, sum_dy, sum_dy_x, true);
    }
  }
  if constexpr (kPass != Pass::sums) {
    if (g.dx == nullptr) return;
    __syncthreads();
    write_gradient<kEach>(at, g, coef);
  }
}

// --- launches ------------------------------------------------------------------------------------

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.raw_data()) : nullptr;
}
template <class T>
T* data_of(const Dst& dst) {
  if (dst.zeros != nullptr) dst.zeros->clear();
  return data_or_null<T>(dst.tensor);
}

void set_matrix(Matrix& m, In x, In w, In b, In mean, In rstd, bool relu) {
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

template <class T>
Forward<T> forward_of(Out y, Out mean, Out rstd, In running_mean, In running_var, In x, In residual,
                      In w, In b, double eps, bool relu) {
  Forward<T> f;
  set_matrix(f, x, w, b, mean, rstd, relu);
  f.x = x.data<T>();
  f.residual = data_or_null<T>(residual);
  f.y = y.data<T>();
  f.running_mean = ChannelVector(running_mean);
  f.running_var = ChannelVector(running_var);
  f.eps = eps;
  return f;
}

void cuda_batch_norm_fwd(Out y, Out mean, Out rstd, Out running_mean, Out running_var, Out work,
                         Out, In x, In residual, In w, In b, double momentum, double eps,
                         bool relu) {
  dispatch_floating(x.dtype(), "batch_norm", [&]<class T>() {
    Forward<T> f =
        forward_of<T>(y, mean, rstd, running_mean, running_var, x, residual, w, b, eps, relu);
    f.momentum = momentum;
    with_vectors<T>(f.channels, {f.x, f.y, f.residual}, [&]<int kEach>() {
      launch_passes<kEach>(
          x.device(), "batch_norm_fwd", f, work, forward_kernel<T, kEach, Pass::whole>,
          forward_kernel<T, kEach, Pass::sums>, forward_kernel<T, kEach, Pass::result>);
    });
  });
}

void cuda_batch_norm_eval(Out y, Out mean, Out rstd, Out, In x, In residual, In w, In b,
                          In running_mean, In running_var, double eps, bool relu) {
  dispatch_floating(x.dtype(), "batch_norm", [&]<class T>() {
    Forward<T> f =
        forward_of<T>(y, mean, rstd, running_mean, running_var, x, residual, w, b, eps, relu);
    with_vectors<T>(f.channels, {f.x, f.y, f.residual}, [&]<int kEach>() {
      f.rows_of_block = result_rows<kEach>(x.device(), f);
      launch(x.device(), "batch_norm_eval", evaluation_kernel<T, kEach>, slab_grid<kEach>(f), f);
    });
  });
}

void cuda_batch_norm_bwd(const Dst& dx, const Dst& dresidual, const Dst& dw, const Dst& db,
                         Out work, Out, In dy, In x, In y, In w, In b, In mean, In rstd, bool relu,
                         bool training) {
  dispatch_floating(x.dtype(), "batch_norm", [&]<class T>() {
    Backward<T> g;
    set_matrix(g, x, w, b, mean, rstd, relu);
    if (g.channels == 0) return;
    g.dy = dy.data<T>();
    g.x = x.data<T>();
    g.y = data_or_null<T>(y);
    g.dx = data_of<T>(dx);
    g.dresidual = data_of<T>(dresidual);
    g.dx_add = dx.add;
    g.dresidual_add = g.dresidual != nullptr && dresidual.add;
    g.training = training;
    g.dw = ChannelVector(dw.tensor, dw.add);
    g.db = ChannelVector(db.tensor, db.add);
    for (const Dst* dst : {&dw, &db}) data_of<T>(*dst);
    with_vectors<T>(g.channels, {g.dy, g.x, g.y, g.dx, g.dresidual}, [&]<int kEach>() {
      launch_passes<kEach>(
          x.device(), "batch_norm_bwd", g, work, backward_kernel<T, kEach, Pass::whole>,
          backward_kernel<T, kEach, Pass::sums>, backward_kernel<T, kEach, Pass::result>);
    });
  });
}

}  // namespace

void fill_batch_norm() {
  batch_norm_fwd.fill(DeviceType::cuda, cuda_batch_norm_fwd);
  batch_norm_eval.fill(DeviceType::cuda, cuda_batch_norm_eval);
  batch_norm_bwd.fill(DeviceType::cuda, cuda_batch_norm_bwd);
}

}  // namespace cairn::kernels::cuda
