// How a convolution's weight lies in memory.
// Invariant: this is the one place that decides it; parameters are made, moved and computed with
// so.
#include "cairn/kernels/conv.h"

namespace cairn::kernels {

Shape conv_weight_strides(Device device, const Shape& weight) {
  if (device.type != DeviceType::cpu) return channels_last_strides(weight);
  const int64_t out = weight[0], depth = weight[1];
  return {1, out, weight[3] * depth * out, depth * out};
}

bool is_conv_weight(const Tensor& weight, Device device) {
  const Shape wanted = conv_weight_strides(device, weight.shape());
  for (size_t d = 0; d < 4; ++d)
    if (weight.shape()[d] > 1 && weight.strides()[d] != wanted[d]) return false;
  return true;
}

}  // namespace cairn::kernels
