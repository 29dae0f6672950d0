// Gradients of unary ops.
#include "cairn/kernels/cuda/unary.cuh"

namespace cairn::kernels::cuda {
namespace {

template <class F, class C>
struct UnaryBackward {
  functors::Numbers<C> p;

  __device__ __forceinline__ C operator()(C g, C saved) const {
    if constexpr (requires { F::df(g, saved, p); })
      return F::df(g, saved, p);
    else
      return F::df(g, saved);
  }
};

// Steps have one derivative, hence one kernel.
template <class F>
using Derived = std::conditional_t<std::is_base_of_v<functors::Step, F>, functors::Step, F>;

template <class F>
void unary_backward(const char* name, const Dst& dx, In g, In saved, const Attributes& attributes) {
  if (!dx) return;
  dispatch_floating(g.dtype(), name, [&]<class T>() {
    using C = Compute<T>;
    // Nothing saved: the slot is handed g again, which need not be read twice.
    const Source<T> read = F::kSaves == functors::Saves::nothing ? Source<T>() : Source<T>(saved);
    run_gradient<T>(name, dx, UnaryBackward<F, C>{numbers_of<C>(attributes)}, Source<T>(g), read);
  });
}

}  // namespace

void fill_unary_bwd() {
#define CAIRN_FILL(name, Functor)                                                           \
  name##_bwd.fill(                                                                          \
      DeviceType::cuda, [](const Dst& dx, In g, In saved, const Attributes& attributes) {   \
        unary_backward<Derived<functors::Functor>>(#name "_bwd", dx, g, saved, attributes); \
      });
  CAIRN_UNARY(CAIRN_FILL)
#undef CAIRN_FILL
}

}  // namespace cairn::kernels::cuda
