// Batch normalisation forward, in training and in evaluation.
// Invariant: what a warp sums in the compute type is taken relative to one of its own values and
// combined in f64, so that a large mean costs no digits of the variance.
#include "cairn/kernels/cuda/batch_norm.cuh"

namespace cairn::kernels::cuda {

using namespace norm;

namespace {

template <class T>
struct Forward : Matrix {
  const T* x = nullptr;
  const T* residual = nullptr;
  T* y = nullptr;
  ChannelVector running_mean, running_var;
  double momentum = 0, eps = 0;
};

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

}  // namespace

void own_batch_norm_fwd(const NormForward& n) {
  dispatch_floating(n.x.dtype(), "batch_norm", [&]<class T>() {
    Forward<T> f = forward_of<T>(n.y, n.mean, n.rstd, n.running_mean, n.running_var, n.x,
                                 n.residual, n.w, n.b, n.eps, n.relu);
    f.momentum = n.momentum;
    with_vectors<T>(f.channels, {f.x, f.y, f.residual}, [&]<int kEach>() {
      launch_passes<kEach>(
          n.x.device(), "batch_norm_fwd", f, n.work, forward_kernel<T, kEach, Pass::whole>,
          forward_kernel<T, kEach, Pass::sums>, forward_kernel<T, kEach, Pass::result>);
    });
  });
}

void fill_batch_norm_eval() { batch_norm_eval.fill(DeviceType::cuda, cuda_batch_norm_eval); }

}  // namespace cairn::kernels::cuda
