// Sums, products, sums of squares and counts over any dimensions.
// Invariant: results are kept in Accumulate of the element's type (squares in f64) until written.
#include "cairn/kernels/cuda/reduce.cuh"
#include "cairn/kernels/indexing.h"
#include "cairn/kernels/reduce.h"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::narrow;
using cairn::cuda::widen;

// Integers wrap around.
template <class Acc>
__device__ __forceinline__ Acc plus(Acc a, Acc b) {
  if constexpr (std::is_integral_v<Acc>)
    return static_cast<Acc>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  else
    return a + b;
}
template <class Acc>
__device__ __forceinline__ Acc times(Acc a, Acc b) {
  if constexpr (std::is_integral_v<Acc>)
    return static_cast<Acc>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  else
    return a * b;
}

template <class T>
using ResultOf = std::conditional_t<std::is_integral_v<T>, int64_t, T>;

template <class T>
struct SumOp {
  using Element = T;
  using Acc = Accumulate<T>;
  ResultOf<T>* out;
  double divisor;

  __device__ Acc identity() const { return Acc(0); }
  __device__ void add(Acc& a, T x, int64_t) const { a = plus(a, static_cast<Acc>(widen(x))); }
  __device__ void combine(Acc& a, Acc b) const { a = plus(a, b); }
  __device__ void write(int64_t at, int64_t, Acc a) const {
    if constexpr (std::is_integral_v<T>)
      out[at] = a;
    else
      out[at] = narrow<T>(divisor == 1 ? a : a / static_cast<Acc>(divisor));
  }
};

template <class T>
struct ProdOp {
  using Element = T;
  using Acc = Accumulate<T>;
  ResultOf<T>* out;

  __device__ Acc identity() const { return Acc(1); }
  __device__ void add(Acc& a, T x, int64_t) const { a = times(a, static_cast<Acc>(widen(x))); }
  __device__ void combine(Acc& a, Acc b) const { a = times(a, b); }
  __device__ void write(int64_t at, int64_t, Acc a) const {
    if constexpr (std::is_integral_v<T>)
      out[at] = a;
    else
      out[at] = narrow<T>(a);
  }
};

template <class T>
struct SumSquaresOp {
  using Element = T;
  using Acc = double;
  double* out;

  __device__ Acc identity() const { return 0; }
  __device__ void add(Acc& a, T x, int64_t) const {
    const auto v = static_cast<double>(widen(x));
    a += v * v;
  }
  __device__ void combine(Acc& a, Acc b) const { a += b; }
  __device__ void write(int64_t at, int64_t, Acc a) const { out[at] = a; }
};

template <class T>
struct CountOp {
  using Element = T;
  using Acc = int64_t;
  int64_t* out;

  __device__ Acc identity() const { return 0; }
  __device__ void add(Acc& a, T x, int64_t) const { a += widen(x) != Compute<T>(0); }
  __device__ void combine(Acc& a, Acc b) const { a += b; }
  __device__ void write(int64_t at, int64_t, Acc a) const { out[at] = a; }
};

void sum(Out y, In x, double divisor) {
  dispatch_bytes(x.dtype(), [&]<class T>() {
    reduce("sum", SumOp<T>{y.data<ResultOf<T>>(), divisor}, y, {}, x);
  });
}

void prod(Out y, In x) {
  dispatch_bytes(x.dtype(),
                 [&]<class T>() { reduce("prod", ProdOp<T>{y.data<ResultOf<T>>()}, y, {}, x); });
}

void sum_squares(Out y, In x) {
  dispatch_floating(x.dtype(), "norm", [&]<class T>() {
    reduce("sum_squares", SumSquaresOp<T>{y.data<double>()}, y, {}, x);
  });
}

// The one kernel here that waits: the caller asks for a number.
void count(In x, int64_t& total) {
  const Tensor there = empty({}, {DType::i64, x.device()});
  dispatch_bytes(x.dtype(), [&]<class T>() {
    reduce("count_nonzero", CountOp<T>{there.data<int64_t>()}, there, {}, x);
  });
  total = there.item<int64_t>();
}

}  // namespace

void fill_reduce() {
  sum_fwd.fill(DeviceType::cuda, sum);
  prod_fwd.fill(DeviceType::cuda, prod);
  sum_squares_fwd.fill(DeviceType::cuda, sum_squares);
  count_nonzero.fill(DeviceType::cuda, count);
}

}  // namespace cairn::kernels::cuda
