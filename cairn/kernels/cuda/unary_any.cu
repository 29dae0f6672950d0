// Unary ops of floating and integer tensors.
#include "cairn/kernels/cuda/unary.cuh"

namespace cairn::kernels::cuda {

void fill_unary_any() {
#define CAIRN_FILL(name, Functor)                                                   \
  name##_fwd.fill(DeviceType::cuda, [](Out y, In x, const Attributes& attributes) { \
    unary_forward<functors::Functor, true>(#name, y, x, attributes);                \
  });
  CAIRN_UNARY_ANY(CAIRN_FILL)
  CAIRN_UNARY_ANY_CUSTOM(CAIRN_FILL)
#undef CAIRN_FILL
}

}  // namespace cairn::kernels::cuda
