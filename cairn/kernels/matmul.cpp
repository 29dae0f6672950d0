// What the devices' products compute in.
#include "cairn/kernels/matmul.h"

namespace cairn::kernels {

DType product_dtype(Device device, DType dtype) {
  return device.type == DeviceType::cpu ? compute_dtype(dtype) : dtype;
}

}  // namespace cairn::kernels
