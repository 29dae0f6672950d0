// Checked calls, guards, and what the driver offers.
#include "cairn/tensor/cuda/api.h"

#include <atomic>
#include <string>

#include "cairn/tensor/cuda/availability.h"
#include "cairn/tensor/error.h"

namespace cairn::cuda {
namespace {

struct Availability {
  int devices = 0;
  std::string why;
};

Availability find_devices() {
  Availability found;
  const cudaError_t result = cudaGetDeviceCount(&found.devices);
  static_cast<void>(cudaGetLastError());  // it is told here and must not surface elsewhere
  if (result == cudaSuccess && found.devices > 0) return found;
  found.devices = 0;
  int driver = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  if (driver == 0)
    found.why = "this machine has no CUDA driver";
  else if (result == cudaErrorInsufficientDriver)
    found.why =
        cat("the driver serves CUDA ", driver / 1000, ".", driver % 1000 / 10,
            " and this build needs ", CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10);
  else if (result == cudaErrorNoDevice || result == cudaSuccess)
    found.why = "this machine has no CUDA device";
  else
    found.why = cat("looking for devices gave ", cudaGetErrorName(result), " (",
                    cudaGetErrorString(result), ")");
  return found;
}

// The driver keeps its devices for a process's life; so does this.
const Availability& availability() {
  static const Availability found = find_devices();
  return found;
}

}  // namespace

int usable_devices() { return availability().devices; }
std::string why_unusable() { return availability().why; }

void check_call(cudaError_t result, const char* call) {
  if (result == cudaSuccess) [[likely]]
    return;
  static_cast<void>(cudaGetLastError());
  int device = 0;
  static_cast<void>(cudaGetDevice(&device));
  fail(call, ": CUDA call must succeed, got ", cudaGetErrorName(result), " (",
       cudaGetErrorString(result), ") on ", Device(DeviceType::cuda, device));
}

DeviceGuard::DeviceGuard(Device device) {
  CAIRN_CUDA(cudaGetDevice, &before_);
  if (before_ == device.index) return;
  CAIRN_CUDA(cudaSetDevice, device.index);
  changed_ = true;
}
DeviceGuard::~DeviceGuard() {
  if (changed_) static_cast<void>(cudaSetDevice(before_));
}

OwnedStream make_stream() {
  cudaStream_t stream = nullptr;
  CAIRN_CUDA(cudaStreamCreateWithFlags, &stream, cudaStreamNonBlocking);
  return OwnedStream(stream);
}

OwnedEvent make_event(bool timed) {
  cudaEvent_t event = nullptr;
  CAIRN_CUDA(cudaEventCreateWithFlags, &event, timed ? cudaEventDefault : cudaEventDisableTiming);
  return OwnedEvent(event);
}

}  // namespace cairn::cuda
