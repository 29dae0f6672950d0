// Calls of the CUDA runtime: every one checked by name, and handles that give themselves back.
// Invariant: a call that fails throws an Error with the call's name, CUDA's name and text for what
// went wrong, and the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "cairn/tensor/device.h"

namespace cairn::cuda {

// Throws `call: CUDA call must succeed, got cudaErrorX (text) on cuda:N` unless it did.
void check_call(cudaError_t result, const char* call);
// CAIRN_CUDA(cudaFree, pointer);
#define CAIRN_CUDA(call, ...) ::cairn::cuda::check_call(call(__VA_ARGS__), #call)

// Makes a device the thread's current one for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// A handle that is created by its owner's constructor and destroyed with it.
template <class Handle, cudaError_t (*kDestroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  ~Owned() { reset(); }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    if (this != &other) {
      reset();
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  Handle get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  void reset() {
    // A failure here can only be the echo of an earlier one, which was thrown where it happened.
    if (handle_ != nullptr) static_cast<void>(kDestroy(handle_));
    handle_ = nullptr;
  }
  Handle handle_ = nullptr;
};

using OwnedStream = Owned<cudaStream_t, cudaStreamDestroy>;
using OwnedEvent = Owned<cudaEvent_t, cudaEventDestroy>;
using OwnedGraph = Owned<cudaGraph_t, cudaGraphDestroy>;
using OwnedGraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;

// On the current device; without_timing events are cheaper.
OwnedStream make_stream();
OwnedEvent make_event(bool timed = false);

}  // namespace cairn::cuda
