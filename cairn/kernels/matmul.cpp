// What the devices' products compute in.
#include "cairn/kernels/matmul.h"

namespace cairn::kernels {

DType product_dtype(Device device, DType dtype) {
  return device.type == DeviceType::cpu ? compute_dtype(dtype) : dtype;
}

int64_t relu_mask_bytes(Device device, DType dtype, int64_t n) {
  // cuBLASLt's rows of bits are whole multiples of 128; in f64 it has no epilogues.
  if (device.type == DeviceType::cpu || dtype == DType::f64) return 0;
  return (n + 127) / 128 * 16;
}

}  // namespace cairn::kernels
