// Gradients of binary ops.
// Invariant: operands that a derivative does not read are not loaded.
#include "cairn/kernels/cuda/loops.cuh"

namespace cairn::kernels::cuda {
namespace {

// The derivative by operand kWhich: of (g), (g, a), (g, b) or (g, a, b), as kReads says.
template <class F, class C, int kWhich>
struct BinaryBackward {
  static constexpr int kReads = kWhich == 0 ? F::kDaReads : F::kDbReads;

  __device__ __forceinline__ C of(C g, C a, C b) const {
    if constexpr (kWhich == 0)
      return F::da(g, a, b);
    else
      return F::db(g, a, b);
  }
  __device__ __forceinline__ C operator()(C g) const { return of(g, C{}, C{}); }
  __device__ __forceinline__ C operator()(C g, C x) const {
    return kReads == functors::kReadsA ? of(g, x, C{}) : of(g, C{}, x);
  }
  __device__ __forceinline__ C operator()(C g, C a, C b) const { return of(g, a, b); }
};

template <class F, int kWhich>
void backward_by(const char* name, const Dst& d, In g, const Operand& a, const Operand& b) {
  dispatch_floating(g.dtype(), name, [&]<class T>() {
    using Fn = BinaryBackward<F, Compute<T>, kWhich>;
    if constexpr (Fn::kReads == 0)
      run_gradient<T>(name, d, Fn{}, Source<T>(g));
    else if constexpr (Fn::kReads == functors::kReadsA)
      run_gradient<T>(name, d, Fn{}, Source<T>(g), Source<T>(a));
    else if constexpr (Fn::kReads == functors::kReadsB)
      run_gradient<T>(name, d, Fn{}, Source<T>(g), Source<T>(b));
    else
      run_gradient<T>(name, d, Fn{}, Source<T>(g), Source<T>(a), Source<T>(b));
  });
}

template <class F>
void binary_backward(const char* name, const Dst& d, int which, In g, const Operand& a,
                     const Operand& b) {
  if (!d) return;
  if (which == 0)
    backward_by<F, 0>(name, d, g, a, b);
  else
    backward_by<F, 1>(name, d, g, a, b);
}

}  // namespace

void fill_binary_bwd() {
#define CAIRN_FILL(name, Functor)                                                         \
  name##_bwd.fill(DeviceType::cuda,                                                       \
                  [](const Dst& d, int which, In g, const Operand& a, const Operand& b) { \
                    binary_backward<functors::Functor>(#name "_bwd", d, which, g, a, b);  \
                  });
  CAIRN_BINARY(CAIRN_FILL)
#undef CAIRN_FILL
}

}  // namespace cairn::kernels::cuda
