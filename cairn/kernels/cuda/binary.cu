// Binary ops, and add_scaled.
// Invariant: operands and output are of one dtype; numbers stay in its compute type.
#include "cairn/kernels/cuda/loops.cuh"

namespace cairn::kernels::cuda {
namespace {

template <class F, class C>
struct BinaryForward {
  __device__ __forceinline__ C operator()(C a, C b) const { return static_cast<C>(F::f(a, b)); }
};

template <class F>
void binary_forward(const char* name, Out y, const Operand& a, const Operand& b) {
  dispatch(y.dtype(), [&]<class T>() {
    if constexpr (kFloating<T> || !std::is_same_v<F, functors::Div>)
      run_loop<T, false>(name, y, false, BinaryForward<F, Compute<T>>{}, Source<T>(a),
                         Source<T>(b));
    else
      fail(name, ": dtype must be one the op computes in, got ", y.dtype());
  });
}

template <class C>
struct AddScaled {
  C scale;

  __device__ __forceinline__ C operator()(C a, C b) const {
    return functors::Add::f(a, functors::Mul::f(b, scale));
  }
};

void add_scaled(Out y, const Operand& a, const Operand& b, double scale) {
  dispatch(y.dtype(), [&]<class T>() {
    using C = Compute<T>;
    run_loop<T, false>("add_scaled_fwd", y, false, AddScaled<C>{static_cast<C>(scale)},
                       Source<T>(a), Source<T>(b));
  });
}

}  // namespace

void fill_binary() {
#define CAIRN_FILL(name, Functor)                                                   \
  name##_fwd.fill(DeviceType::cuda, [](Out y, const Operand& a, const Operand& b) { \
    binary_forward<functors::Functor>(#name, y, a, b);                              \
  });
  CAIRN_BINARY(CAIRN_FILL)
#undef CAIRN_FILL
  add_scaled_fwd.fill(DeviceType::cuda, add_scaled);
}

}  // namespace cairn::kernels::cuda
