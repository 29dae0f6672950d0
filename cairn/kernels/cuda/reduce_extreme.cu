// Largest and smallest elements, where they are, and the gradient of products.
// Invariant: the order (NaN first, then the value, then the index) is total, so where the first
// extreme lies does not depend on how a line was cut.
#include <limits>

#include "cairn/kernels/cuda/reduce.cuh"
#include "cairn/kernels/reduce.h"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::global_thread;
using cairn::cuda::grid_for;
using cairn::cuda::launch;
using cairn::cuda::narrow;
using cairn::cuda::widen;

// No element is worse than this: -infinity or infinity, or the end of an integer's range.
template <class V>
__device__ __forceinline__ V worst(bool largest) {
  using Limits = std::numeric_limits<V>;
  if constexpr (std::is_floating_point_v<V>)
    return largest ? -Limits::infinity() : Limits::infinity();
  else
    return largest ? Limits::lowest() : Limits::max();
}

// Whether a replaces b.
template <class V>
__device__ __forceinline__ bool beats(V a, V b, bool largest) {
  if (b != b) return false;
  return a != a || (largest ? a > b : a < b);
}

template <class T>
struct ExtremeOp {
  using Element = T;
  using Acc = Compute<T>;
  T* out;
  bool largest;

  __device__ Acc identity() const { return worst<Acc>(largest); }
  __device__ void add(Acc& a, T x, int64_t) const { combine(a, widen(x)); }
  __device__ void combine(Acc& a, Acc b) const {
    if (beats(b, a, largest)) a = b;
  }
  __device__ void write(int64_t at, int64_t, Acc a) const { out[at] = narrow<T>(a); }
};

template <class V>
struct Found {
  V value;
  int64_t index;  // -1: nothing yet
};

template <class T>
struct ArgExtremeOp {
  using Element = T;
  using Acc = Found<Compute<T>>;
  int64_t* indices;
  T* values;  // or null
  bool largest;

  __device__ Acc identity() const { return {worst<Compute<T>>(largest), -1}; }
  // A thread's indices ascend, so that of equal values the one it has stays.
  __device__ void add(Acc& a, T x, int64_t i) const {
    const Compute<T> v = widen(x);
    if (a.index < 0 || beats(v, a.value, largest)) a = {v, i};
  }
  __device__ void combine(Acc& a, const Acc& b) const {
    if (b.index < 0) return;
    const bool same = a.value == b.value || (a.value != a.value && b.value != b.value);
    if (a.index < 0 || beats(b.value, a.value, largest) || (same && b.index < a.index)) a = b;
  }
  __device__ void write(int64_t at, int64_t value_at, const Acc& a) const {
    indices[at] = a.index;
    if (values != nullptr) values[value_at] = narrow<T>(a.value);
  }
};

void extreme(Out y, In x, bool largest) {
  dispatch_bytes(x.dtype(), [&]<class T>() {
    reduce("extreme", ExtremeOp<T>{static_cast<T*>(y.raw_data()), largest}, y, {}, x);
  });
}

void arg_extreme(const Tensor& values, Out indices, In x, int64_t, bool largest) {
  dispatch_bytes(x.dtype(), [&]<class T>() {
    T* const out = values.defined() ? static_cast<T*>(values.raw_data()) : nullptr;
    reduce("arg_extreme", ArgExtremeOp<T>{indices.data<int64_t>(), out, largest}, indices, values,
           x);
  });
}

// --- the gradient of a product
// ------------------------------------------------------------------

// A line's zeros, and the product of what is not zero.
template <class V>
struct Factors {
  V others;
  int64_t zeros;
};

template <class T>
struct FactorsOp {
  using Element = T;
  using Acc = Factors<Accumulate<T>>;
  Acc* out;

  __device__ Acc identity() const { return {1, 0}; }
  __device__ void add(Acc& a, T x, int64_t) const {
    const auto v = static_cast<Accumulate<T>>(widen(x));
    if (v == 0)
      ++a.zeros;
    else
      a.others *= v;
  }
  __device__ void combine(Acc& a, const Acc& b) const {
    a.others *= b.others;
    a.zeros += b.zeros;
  }
  __device__ void write(int64_t at, int64_t, const Acc& a) const { out[at] = a; }
};

// axes: dx, x, g and the line's factors.
template <class T>
__global__ void prod_gradient(T* dx, const T* x, const T* g, const Factors<Accumulate<T>>* lines,
                              Axes<4> axes, bool add) {
  using C = Accumulate<T>;
  const int64_t i = global_thread();
  if (i >= axes.count) return;
  const auto at = axes.offsets(i);
  const auto line = lines[at.at[3]];
  const C v = widen(x[at.at[1]]);
  const C slope = widen(g[at.at[2]]);
  // With one zero only its own gradient is not zero; with two none is.
  C d = 0;
  if (line.zeros == 0)
    d = slope * (line.others / v);
  else if (line.zeros == 1 && v == 0)
    d = slope * line.others;
  T& out = dx[at.at[0]];
  out = narrow<T>(add ? widen(out) + d : d);
}

void prod_backward(const Dst& dx, In g, In x, int64_t dim) {
  if (!dx) return;
  if (dx.zeros != nullptr) dx.zeros->clear();
  if (x.numel() == 0) return;
  Shape kept = x.shape();
  if (x.dim() > 0) kept[static_cast<size_t>(dim)] = 1;
  Shape g_strides = g.strides();
  Shape line_strides = contiguous_strides(kept);
  if (x.dim() > 0) {
    g_strides[static_cast<size_t>(dim)] = 0;
    line_strides[static_cast<size_t>(dim)] = 0;
  }
  const Axes<4> axes =
      row_major<4>(x.shape(), {&dx.tensor.strides(), &x.strides(), &g_strides, &line_strides});
  dispatch_floating(x.dtype(), "prod", [&]<class T>() {
    using Acc = typename FactorsOp<T>::Acc;
    constexpr DType kWide = DType::f64;  // two for each line's factors, which it only stands for
    static_assert(sizeof(Acc) == 2 * sizeof(double));
    const Tensor memory = empty({numel_of(kept), 2}, {kWide, x.device()});
    // Counts lines: offsets are in units of Factors.
    const Tensor lines = Tensor(memory.storage(), kWide, kept, contiguous_strides(kept), 0);
    Acc* const factors = static_cast<Acc*>(memory.raw_data());
    reduce("prod_factors", FactorsOp<T>{factors}, lines, {}, x);
    launch(x.device(), "prod_gradient", prod_gradient<T>, grid_for(axes.count), dx.tensor.data<T>(),
           x.data<T>(), g.data<T>(), factors, axes, dx.add);
  });
}

}  // namespace

void fill_reduce_extreme() {
  extreme_fwd.fill(DeviceType::cuda, extreme);
  arg_extreme_fwd.fill(DeviceType::cuda, arg_extreme);
  prod_bwd.fill(DeviceType::cuda, prod_backward);
}

}  // namespace cairn::kernels::cuda
