// What the files of unary kernels share; two files, so that they build side by side.
// Invariant: a functor's arithmetic is done in the compute type of the tensor.
#pragma once

#include "cairn/kernels/cuda/loops.cuh"

namespace cairn::kernels::cuda {

template <class F, class C>
struct UnaryForward {
  functors::Numbers<C> p;

  __device__ __forceinline__ C operator()(C x) const {
    if constexpr (requires { F::f(x, p); })
      return static_cast<C>(F::f(x, p));
    else
      return static_cast<C>(F::f(x));
  }
};

template <class C>
functors::Numbers<C> numbers_of(const Attributes& attributes) {
  return {static_cast<C>(attributes.a), static_cast<C>(attributes.b)};
}

// kIntegers: whether integers are computed with too; bool never is.
template <class F, bool kIntegers>
void unary_forward(const char* name, Out y, In x, const Attributes& attributes) {
  dispatch(x.dtype(), [&]<class T>() {
    if constexpr (kFloating<T> || (kIntegers && !std::is_same_v<T, bool>)) {
      using C = Compute<T>;
      run_loop<T, false>(name, y, false, UnaryForward<F, C>{numbers_of<C>(attributes)},
                         Source<T>(x));
    } else {
      fail(name, ": dtype must be one the op computes in, got ", x.dtype());
    }
  });
}

}  // namespace cairn::kernels::cuda
