// Unary ops of floating tensors.
#include "cairn/kernels/cuda/unary.cuh"

namespace cairn::kernels::cuda {

void fill_unary_floating() {
#define CAIRN_FILL(name, Functor)                                                   \
  name##_fwd.fill(DeviceType::cuda, [](Out y, In x, const Attributes& attributes) { \
    unary_forward<functors::Functor, false>(#name, y, x, attributes);               \
  });
  CAIRN_UNARY_FLOATING(CAIRN_FILL)
  CAIRN_UNARY_FLOATING_CUSTOM(CAIRN_FILL)
#undef CAIRN_FILL
}

}  // namespace cairn::kernels::cuda
