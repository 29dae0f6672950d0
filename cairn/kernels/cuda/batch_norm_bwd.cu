// Batch normalisation backward: the gradient through relu, its sums, and dx.
// Invariant: a thread writes the residual's gradient before it reads dx's memory, which may be the
// same.
#include "cairn/kernels/cuda/batch_norm.cuh"

namespace cairn::kernels::cuda {

using namespace norm;

namespace {

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

}  // namespace

void own_batch_norm_bwd(const NormBackward& n) {
  dispatch_floating(n.x.dtype(), "batch_norm", [&]<class T>() {
    Backward<T> g;
    set_matrix(g, n.x, n.w, n.b, n.mean, n.rstd, n.relu);
    if (g.channels == 0) return;
    g.dy = n.dy.data<T>();
    g.x = n.x.data<T>();
    g.y = data_or_null<T>(n.y);
    g.dx = data_of<T>(n.dx);
    g.dresidual = data_of<T>(n.dresidual);
    g.dx_add = n.dx.add;
    g.dresidual_add = g.dresidual != nullptr && n.dresidual.add;
    g.training = n.training;
    g.dw = ChannelVector(n.dw.tensor, n.dw.add);
    g.db = ChannelVector(n.db.tensor, n.db.add);
    for (const Dst* dst : {&n.dw, &n.db}) data_of<T>(*dst);
    with_vectors<T>(g.channels, {g.dy, g.x, g.y, g.dx, g.dresidual}, [&]<int kEach>() {
      launch_passes<kEach>(
          n.x.device(), "batch_norm_bwd", g, n.work, backward_kernel<T, kEach, Pass::whole>,
          backward_kernel<T, kEach, Pass::sums>, backward_kernel<T, kEach, Pass::result>);
    });
  });
}

}  // namespace cairn::kernels::cuda
