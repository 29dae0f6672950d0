// ResNet18 of the main job against PyTorch's on the CPU.
#include "tests/catch.h"
#include "tests/parity/resnet_check.h"

using namespace cairn;
using namespace cairn::parity;

TEST_CASE("parity: resnet18 evaluates as PyTorch's in f64") { check_eval(DType::f64, kCPU); }
TEST_CASE("parity: resnet18 evaluates as PyTorch's in f32") { check_eval(DType::f32, kCPU); }
TEST_CASE("parity: resnet18 has PyTorch's gradients in f64") {
  check_training_pass(DType::f64, kCPU);
}
TEST_CASE("parity: resnet18 has PyTorch's gradients in f32") {
  check_training_pass(DType::f32, kCPU);
}
TEST_CASE("parity: resnet18 learns as PyTorch's with Adam in f64") { check_adam(DType::f64, kCPU); }
TEST_CASE("parity: resnet18 learns as PyTorch's with Adam in f32") { check_adam(DType::f32, kCPU); }
