// Layer normalisation: rows of contiguous elements, a warp or a block each.
// Invariant: a row's result depends on that row alone; column sums are taken over the row blocks of
// NormBlocks, in order.
#include <cmath>

#include "cairn/kernels/cuda/rows.cuh"
#include "cairn/kernels/norm.h"

namespace cairn::kernels::cuda {

using namespace cairn::cuda;

namespace {

template <class T>
struct LayerForward {
  using Acc = Compute<T>;
  int64_t rows, width;
  const T* x;
  const T* w;  // may be null
  const T* b;
  T* y;
  Acc* mean;
  Acc* rstd;
  double eps;
};

template <class T, int kEach>
__device__ __forceinline__ Vector<T, kEach> read_or_nothing(const T* p, int64_t i) {
  if (p == nullptr) return {};
  return *reinterpret_cast<const Vector<T, kEach>*>(p + i);
}

template <class T, int kSize, int kEach>
__global__ void __launch_bounds__(kRowThreads) forward_kernel(LayerForward<T> f) {
  using Acc = Compute<T>;
  using G = Group<kSize>;
  const Acc n = static_cast<Acc>(f.width);
  for (int64_t r = G::number(); r < f.rows; r += G::count()) {
    const T* const x = f.x + r * f.width;
    Acc sum = 0;
    over_row<kSize, kEach>(x, f.width, [&](int64_t, const Vector<T, kEach>& v) {
#pragma unroll
      for (int k = 0; k < kEach; ++k) sum += widen(v.value[k]);
    });
    const Acc guess = G::reduce(sum, Acc(0), Plus()) / n;
    // Deviations from the guess: their mean repairs its rounding, their squares give the variance.
    Acc first = 0, second = 0;
    over_row<kSize, kEach>(x, f.width, [&](int64_t, const Vector<T, kEach>& v) {
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        const Acc d = widen(v.value[k]) - guess;
        first += d;
        second = std::fma(d, d, second);
      }
    });
    const Acc off = G::reduce(first, Acc(0), Plus()) / n;
    const Acc variance = G::reduce(second, Acc(0), Plus()) / n - off * off;
    const Acc mean = guess + off;
    const Acc rstd = static_cast<Acc>(
        1 / std::sqrt(static_cast<double>(variance < 0 ? Acc(0) : variance) + f.eps));
    if (G::thread() == 0) {
      f.mean[r] = mean;
      f.rstd[r] = rstd;
    }
    T* const y = f.y + r * f.width;
    over_row<kSize, kEach>(x, f.width, [&](int64_t i, const Vector<T, kEach>& in) {
      const auto w = read_or_nothing<T, kEach>(f.w, i), b = read_or_nothing<T, kEach>(f.b, i);
      Vector<T, kEach> out;
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        Acc v = (widen(in.value[k]) - mean) * rstd;
        if (f.w != nullptr) v *= widen(w.value[k]);
        if (f.b != nullptr) v += widen(b.value[k]);
        out.value[k] = narrow<T>(v);
      }
      *reinterpret_cast<Vector<T, kEach>*>(y + i) = out;
    });
  }
}

template <class T>
struct LayerBackward {
  using Acc = Compute<T>;
  int64_t rows, width;
  const T* dy;
  const T* x;
  const T* w;  // may be null
  const Acc* mean;
  const Acc* rstd;
  T* dx;  // may be null
  bool dx_add;
  Acc* partial;        // [row blocks][2][width]: of dw, of db; null: nobody wants them
  int64_t block;       // rows of a row block
  int64_t row_groups;  // blocks of the grid that make dx
  int64_t columns;     // blocks of the grid along a row, for the partial sums
};

template <class T, int kSize, int kEach>
__device__ __forceinline__ void row_gradient(const LayerBackward<T>& g, int64_t r) {
  using Acc = Compute<T>;
  using G = Group<kSize>;
  const T* const x = g.x + r * g.width;
  const T* const dy = g.dy + r * g.width;
  T* const dx = g.dx + r * g.width;
  const Acc mean = g.mean[r], rstd = g.rstd[r], n = static_cast<Acc>(g.width);
  // The gradient of xhat, and xhat.
  const auto terms = [&](int64_t i, const Vector<T, kEach>& in, auto&& use) {
    const auto dy_here = *reinterpret_cast<const Vector<T, kEach>*>(dy + i);
    const auto w = read_or_nothing<T, kEach>(g.w, i);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      Acc d = widen(dy_here.value[k]);
      if (g.w != nullptr) d *= widen(w.value[k]);
      use(k, d, (widen(in.value[k]) - mean) * rstd);
    }
  };
  Acc one = 0, along = 0;
  over_row<kSize, kEach>(x, g.width, [&](int64_t i, const Vector<T, kEach>& in) {
    terms(i, in, [&](int, Acc d, Acc xhat) {
      one += d;
      along = std::fma(d, xhat, along);
    });
  });
  const Acc along_one = G::reduce(one, Acc(0), Plus()) / n;
  const Acc along_x = G::reduce(along, Acc(0), Plus()) / n;
  over_row<kSize, kEach>(x, g.width, [&](int64_t i, const Vector<T, kEach>& in) {
    auto* const place = reinterpret_cast<Vector<T, kEach>*>(dx + i);
    Vector<T, kEach> out;
    if (g.dx_add) out = *place;
    terms(i, in, [&](int k, Acc d, Acc xhat) {
      Acc v = std::fma(-xhat, along_x, d - along_one) * rstd;
      if (g.dx_add) v += widen(out.value[k]);
      out.value[k] = narrow<T>(v);
    });
    *place = out;
  });
}

// A warp's lanes lie along the row, the block's warps take every eighth row.
template <class T>
__device__ __forceinline__ void column_sums(const LayerBackward<T>& g, int64_t tile) {
  using Acc = Compute<T>;
  constexpr int kWarps = kRowThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t block = tile / g.columns;
  const int64_t column = tile % g.columns * kWarp + lane;
  const int64_t end = (block + 1) * g.block < g.rows ? (block + 1) * g.block : g.rows;
  Acc dw = 0, db = 0;
  if (column < g.width) {
#pragma unroll 4
    for (int64_t r = block * g.block + warp; r < end; r += kWarps) {
      const Acc dy = widen(g.dy[r * g.width + column]);
      const Acc xhat = (widen(g.x[r * g.width + column]) - g.mean[r]) * g.rstd[r];
      dw = std::fma(dy, xhat, dw);
      db += dy;
    }
  }
  __shared__ Acc sums[2][kWarps][kWarp];
  sums[0][warp][lane] = dw;
  sums[1][warp][lane] = db;
  __syncthreads();
  if (warp >= 2 || column >= g.width) return;
  Acc sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += sums[warp][i][lane];
  g.partial[(2 * block + warp) * g.width + column] = sum;
}

// The first blocks of the grid make dx, the others partial sums: one launch for both.
template <class T, int kSize, int kEach>
__global__ void __launch_bounds__(kRowThreads) backward_kernel(LayerBackward<T> g) {
  if (blockIdx.x >= g.row_groups) return column_sums(g, blockIdx.x - g.row_groups);
  const int64_t groups = g.row_groups * (kRowThreads / kSize);
  for (int64_t r = Group<kSize>::number(); r < g.rows; r += groups)
    row_gradient<T, kSize, kEach>(g, r);
}

// dw and db (+)= the sum of the row blocks' partial columns.
template <class T>
__global__ void finish_kernel(T* dw, bool dw_add, T* db, bool db_add, const Compute<T>* partial,
                              int64_t blocks, int64_t width) {
  using Acc = Compute<T>;
  const int64_t c = global_thread();
  if (c >= 2 * width) return;
  const int64_t column = c % width;
  T* const out = c < width ? dw : db;
  if (out == nullptr) return;
  const bool add = c < width ? dw_add : db_add;
  double sum = add ? static_cast<double>(widen(out[column])) : 0.0;
#pragma unroll 8
  for (int64_t block = 0; block < blocks; ++block)
    sum += static_cast<double>(partial[2 * block * width + c]);
  out[column] = narrow<T>(static_cast<Acc>(sum));
}

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.raw_data()) : nullptr;
}
template <class T>
T* data_of(const Dst& dst) {
  if (dst.zeros != nullptr) dst.zeros->clear();
  return data_or_null<T>(dst.tensor);
}

void cuda_layer_norm_fwd(Out y, Out mean, Out rstd, In x, In w, In b, double eps) {
  dispatch_floating(x.dtype(), "layer_norm", [&]<class T>() {
    using Acc = Compute<T>;
    const LayerForward<T> f{x.size(0),          x.size(1),          x.data<T>(),
                            data_or_null<T>(w), data_or_null<T>(b), y.data<T>(),
                            mean.data<Acc>(),   rstd.data<Acc>(),   eps};
    if (f.rows == 0 || f.width == 0) return;
    with_rows<T>(f.width, {f.x, f.w, f.b, f.y}, [&]<int kSize, int kEach>() {
      launch(x.device(), "layer_norm_fwd", forward_kernel<T, kSize, kEach>,
             grid_for(f.rows * kSize, kRowThreads, 1, 1 << 16), f);
    });
  });
}

void cuda_layer_norm_bwd(const Dst& dx, const Dst& dw, const Dst& db, Out work, In dy, In x, In w,
                         In mean, In rstd) {
  dispatch_floating(x.dtype(), "layer_norm", [&]<class T>() {
    using Acc = Compute<T>;
    LayerBackward<T> g{};
    g.rows = x.size(0);
    g.width = x.size(1);
    g.dy = dy.data<T>();
    g.x = x.data<T>();
    g.w = data_or_null<T>(w);
    g.mean = mean.data<Acc>();
    g.rstd = rstd.data<Acc>();
    g.dx = data_of<T>(dx);
    g.dx_add = dx.add;
    T* const dw_data = data_of<T>(dw);
    T* const db_data = data_of<T>(db);
    if (g.width == 0) return;
    const NormBlocks blocks(g.rows);
    g.block = blocks.block;
    g.columns = (g.width + kWarp - 1) / kWarp;
    const bool sums = dw_data != nullptr || db_data != nullptr;
    g.partial = sums ? work.data<Acc>() : nullptr;
    with_rows<T>(g.width, {g.x, g.dy, g.w, g.dx}, [&]<int kSize, int kEach>() {
      if (g.dx != nullptr && g.rows > 0)
        g.row_groups = grid_for(g.rows * kSize, kRowThreads, 1, 1 << 16).blocks.x;
      const int64_t tiles = sums ? blocks.count * g.columns : 0;
      if (g.row_groups + tiles == 0) return;
      launch(x.device(), "layer_norm_bwd", backward_kernel<T, kSize, kEach>,
             {static_cast<unsigned>(g.row_groups + tiles), kRowThreads}, g);
    });
    if (sums)
      launch(x.device(), "layer_norm_bwd", finish_kernel<T>, grid_for(2 * g.width), dw_data, dw.add,
             db_data, db.add, work.data<Acc>(), blocks.count, g.width);
  });
}

}  // namespace

void fill_layer_norm() {
  layer_norm_fwd.fill(DeviceType::cuda, cuda_layer_norm_fwd);
  layer_norm_bwd.fill(DeviceType::cuda, cuda_layer_norm_bwd);
}

}  // namespace cairn::kernels::cuda
