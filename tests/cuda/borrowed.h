// Kernels of the CPU in place of those that CUDA does not have: on the emulated GPU, whose memory
// is the host's, they run in the stream's turn like any other. Invariant: a slot that CUDA fills
// itself is left alone.
#pragma once

#include <memory>
#include <tuple>
#include <type_traits>

#include "cairn/kernels/slot.h"
#include "cairn/tensor/cuda/runtime.h"
#include "tests/cuda/emulator/queue.h"

namespace cairn::test {

inline const Device kGpu(DeviceType::cuda, 0);

// The same memory as a tensor of the CPU.
inline Tensor on_host(const Tensor& t) {
  if (!t.defined() || t.device() == kCPU) return t;
  int64_t extent = t.numel() > 0 ? 1 : 0;
  for (size_t d = 0; extent > 0 && d < t.shape().size(); ++d)
    extent += (t.shape()[d] - 1) * t.strides()[d];
  auto memory =
      std::make_shared<Storage>(t.raw_data(), extent * item_size(t.dtype()), kCPU, nullptr);
  return Tensor(std::move(memory), t.dtype(), t.shape(), t.strides(), 0);
}

// An argument as it must be kept until the kernel runs.
template <class T>
struct Kept {
  T value;
  explicit Kept(const T& given) : value(given) {}
  const T& get() const { return value; }
};
template <>
struct Kept<Tensor> {
  Tensor value;
  explicit Kept(const Tensor& given) : value(on_host(given)) {}
  const Tensor& get() const { return value; }
};
template <>
struct Kept<kernels::Dst> {
  kernels::Dst value;
  explicit Kept(const kernels::Dst& given) : value{on_host(given.tensor), given.add} {
    if (given.zeros != nullptr) given.zeros->clear();
  }
  const kernels::Dst& get() const { return value; }
};
template <auto& kSlot, class... Args>
void run_borrowed(Args... args) {
  using Arguments = std::tuple<Kept<std::remove_cvref_t<Args>>...>;
  auto kept = std::make_shared<Arguments>(Kept<std::remove_cvref_t<Args>>(args)...);
  cuda::check_call(
      emulator::enqueue(
          cuda::current_stream(kGpu),
          [kept] { std::apply([](const auto&... k) { kSlot(kCPU, k.get()...); }, *kept); }),
      kSlot.name());
}

template <auto& kSlot, class... Args>
void borrow_as(kernels::Slot<void(Args...)>&) {
  if (kSlot.of(DeviceType::cuda) == nullptr)
    kSlot.fill(DeviceType::cuda, run_borrowed<kSlot, Args...>);
}
template <auto& kSlot>
void borrow() {
  borrow_as<kSlot>(kSlot);
}

// What the tests' models need.
void borrow_kernels();

}  // namespace cairn::test
