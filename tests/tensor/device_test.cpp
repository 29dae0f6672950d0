// What tensor/ does for a device whose memory the host cannot read.
#include "cairn/tensor/device.h"

#include "cairn/tensor/print.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "cairn/tensor/safetensors.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"
#include "tests/tensor/elements.h"
#include "tests/tensor/locked_device.h"

using namespace cairn;
using test::draws;
using test::elements;
using test::kLocked;
using test::LockedDevice;

namespace {

std::vector<double> values(const Tensor& t) { return elements(raw::to(t, t.dtype(), kCPU)); }

}  // namespace

TEST_CASE("tensor: factories build for a device that the host cannot read") {
  if (has_backend(DeviceType::cuda)) return;
  const LockedDevice device;
  CHECK(values(arange(0, 5, 1, {DType::i64, kLocked})) == elements(arange(0, 5)));
  CHECK(values(linspace(0, 1, 4, {DType::f32, kLocked})) == elements(linspace(0, 1, 4)));
  CHECK(values(eye(3, {DType::f32, kLocked})) == elements(eye(3)));
  CHECK(values(zeros({3}, {DType::f32, kLocked})) == elements(zeros({3})));
  CHECK(values(scalar_tensor(2, {DType::f32, kLocked})) == std::vector<double>{2});
  const std::vector<float> given{1, 2, 3};
  const Tensor t = from_values(given, {3}, kLocked);
  CHECK(t.device() == kLocked);
  CHECK(values(t) == std::vector<double>{1, 2, 3});
  CHECK(full({}, 7, {DType::i64, kLocked}).item<int64_t>() == 7);
}

TEST_CASE("tensor: a device draws the CPU's random numbers by its own function") {
  if (has_backend(DeviceType::cuda)) return;
  const LockedDevice device;
  draws = 0;
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    Generator here(5), there(5);
    CHECK(values(rand({37}, {dtype, kLocked}, there)) == elements(rand({37}, {dtype}, here)));
    CHECK(values(randn({37}, {dtype, kLocked}, there)) == elements(randn({37}, {dtype}, here)));
    const Tensor a = empty_channels_last({2, 3, 4, 5}, {dtype, kLocked});
    const Tensor b = empty_channels_last({2, 3, 4, 5}, {dtype});
    uniform_(a, -2, 3, there);
    uniform_(b, -2, 3, here);
    CHECK(values(a) == elements(b));
    CHECK(here.offset() == there.offset());
  }
  CHECK(draws == 9);
  Generator here(5), there(5);
  CHECK(values(randint(3, 9, {20}, {DType::i32, kLocked}, there)) ==
        elements(randint(3, 9, {20}, {DType::i32}, here)));
}

TEST_CASE("tensor: printing and saving read a device through a copy") {
  if (has_backend(DeviceType::cuda)) return;
  const LockedDevice device;
  const std::vector<float> given{1, 2, 3, 4};
  const Tensor t = from_values(given, {2, 2}, kLocked);
  CHECK(to_string(t) == "tensor([[1., 2.],\n        [3., 4.]], device='cuda:0')");
  const test::TempFolder folder;
  save_safetensors(folder.path("t.safetensors"), {{"t", raw::transpose(t, 0, 1)}});
  const auto loaded = load_safetensors(folder.path("t.safetensors"));
  CHECK(elements(loaded.at("t")) == std::vector<double>{1, 3, 2, 4});
}
