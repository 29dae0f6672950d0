// ResNet18 of the main job on the emulated GPU against PyTorch's numbers.
#include "cairn/tensor/cuda.h"
#include "tests/catch.h"
#include "tests/parity/resnet_check.h"

using namespace cairn;

TEST_CASE("cuda: ResNet18 gives PyTorch's logits, gradients, buffers and steps of Adam") {
  cuda::settings().conv_allow_tf32 = false;
  const Device gpu(DeviceType::cuda, 0);
  for (DType dtype : {DType::f64, DType::f32}) {
    INFO(name_of(dtype));
    parity::check_eval(dtype, gpu);
    parity::check_training_pass(dtype, gpu);
  }
  parity::check_adam(DType::f32, gpu);
  cuda::settings().conv_allow_tf32 = true;
}
