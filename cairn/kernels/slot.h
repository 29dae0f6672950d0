// Slot: a kernel's name and one function per device kind.
// Invariant: the CPU's function is part of the slot's constant initialiser, in the file that holds
// the kernel, so whoever uses the slot links the kernel; other kinds fill theirs at start-up.
#pragma once

#include "cairn/kernels/zero_ranges.h"
#include "cairn/tensor/profiler.h"
#include "cairn/tensor/tensor.h"

namespace cairn::kernels {

// Arguments of kernels. Inputs and outputs are handed over ready: right shape, dtype, device and
// layout. A kernel never allocates.
using In = const Tensor&;
using Out = const Tensor&;

// Where a backward kernel writes: overwrite, or add to what is there. False: nobody wants it.
struct Dst {
  Tensor tensor;
  bool add = false;
  // Where given: what the kernel finds as zeros in the memory and need not write, and leaves there.
  // A kernel that does not care clears it.
  ZeroPattern* zeros = nullptr;
  explicit operator bool() const { return tensor.defined(); }
};
inline void note(profiler::Work& work, const Dst& dst) { work.tensor(dst.tensor, dst.add); }

template <class Signature>
class Slot;

template <class... Args>
class Slot<void(Args...)> {
 public:
  using Function = void (*)(Args...);
  // Adds to the profiler's view of a call what its tensors do not show: FLOPs, bytes behind spans.
  using Cost = void (*)(profiler::Work& work, Args...);

  constexpr Slot(const char* name, Function cpu, Cost cost = nullptr)
      : name_(name), functions_{cpu, nullptr}, cost_(cost) {}

  // Calls the function of `device`; throws `name: no CUDA kernel in this build` where it is empty.
  template <class... Given>
  void operator()(Device device, Given&&... args) const {
    const Function function = functions_[static_cast<int>(device.type)];
    check(function != nullptr, name_, ": no ", device.type == DeviceType::cuda ? "CUDA" : "CPU",
          " kernel in this build");
    if (profiler::recording()) [[unlikely]]
      return profiled(function, std::forward<Given>(args)...);
    function(std::forward<Given>(args)...);
  }

  void fill(DeviceType type, Function function) { functions_[static_cast<int>(type)] = function; }
  // The function alone, null where it is empty: for a kernel made of others, which the profiler
  // sees as one.
  Function of(DeviceType type) const { return functions_[static_cast<int>(type)]; }
  const char* name() const { return name_; }

 private:
  [[gnu::noinline, gnu::cold]] void profiled(Function function, Args... args) const {
    profiler::Work work;
    (note(work, args), ...);
    if (cost_ != nullptr) cost_(work, args...);
    const profiler::Range range(name_, work);
    function(std::forward<Args>(args)...);
  }

  const char* name_;
  Function functions_[kDeviceTypeCount];
  Cost cost_;
};

}  // namespace cairn::kernels
