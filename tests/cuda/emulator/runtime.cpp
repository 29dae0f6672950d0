// The CUDA runtime's functions for devices and memory, with the host's memory as device memory.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "tests/cuda/emulator/emulator.h"
#include "tests/cuda/emulator/emulator_control.h"
#include "tests/cuda/emulator/runtime.h"

namespace cairn::emulator {
namespace {

constexpr size_t kFence = 256;  // keeps device blocks as well aligned as the driver's
constexpr unsigned char kFenceByte = 0xA5;
constexpr int64_t kCapacity = int64_t{8} << 30;

struct DeviceBlock {
  size_t size = 0;
  unsigned char* memory = nullptr;  // fence, block, fence
  int device = 0;
};

int64_t used[kDevices] = {};
int64_t violations = 0;
std::map<unsigned char*, DeviceBlock> device_blocks;
std::map<unsigned char*, size_t> pinned_blocks;
std::string failing_call;
cudaError_t failing_error = cudaSuccess;
thread_local int chosen_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

bool is_pinned(const void* p) {
  auto* const byte = static_cast<unsigned char*>(const_cast<void*>(p));
  auto at = pinned_blocks.upper_bound(byte);
  if (at == pinned_blocks.begin()) return false;
  --at;
  return byte < at->first + at->second;
}

void check_fences(const DeviceBlock& block) {
  const unsigned char* const start = block.memory;
  for (size_t i = 0; i < kFence; ++i)
    if (start[i] != kFenceByte || start[kFence + block.size + i] != kFenceByte) {
      ++violations;
      return;
    }
}

}  // namespace

int current_device() { return chosen_device; }

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t planned_failure(const char* call) {
  const Lock lock = lock_devices();
  if (failing_call != call) return cudaSuccess;
  failing_call.clear();
  return result(failing_error);
}

void fail_next(const char* call, cudaError_t error) {
  const Lock lock = lock_devices();
  failing_call = call;
  failing_error = error;
}
int64_t guard_violations() {
  const Lock lock = lock_devices();
  for (const auto& [start, block] : device_blocks) check_fences(block);
  return violations;
}

}  // namespace cairn::emulator

using namespace cairn::emulator;

extern "C" {

// --- devices
// ---------------------------------------------------------------------------------------
cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = chosen_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  chosen_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;  // few, so that kernels which stride over a grid do stride
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 << 10;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 1 << 20;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    default:
      return result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  *found = {};
  std::strcpy(found->name, "emulated on the host");
  found->major = 9;
  found->multiProcessorCount = 4;
  found->totalGlobalMem = static_cast<size_t>(kCapacity);
  found->l2CacheSize = 1 << 20;
  found->sharedMemPerBlockOptin = 227 << 10;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  std::snprintf(id, static_cast<size_t>(length), "0000:%02x:00.0", device);
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnjoined:
      return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error) + 9; }

// --- memory
// ----------------------------------------------------------------------------------------
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Lock lock = lock_devices();
  *total = static_cast<size_t>(kCapacity);
  *free = static_cast<size_t>(kCapacity - used[chosen_device]);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** out, size_t size) {
  const Lock lock = lock_devices();
  if (const cudaError_t error = planned_failure("cudaMalloc")) return error;
  if (used[chosen_device] + static_cast<int64_t>(size) > kCapacity)
    return result(cudaErrorMemoryAllocation);
  const size_t whole = size + 2 * kFence;
  // As on a device, memory is aligned to 256 bytes and holds anything; here it holds NaNs.
  auto* const memory = static_cast<unsigned char*>(
      std::aligned_alloc(kFence, (whole + kFence - 1) / kFence * kFence));
  std::memset(memory, kFenceByte, whole);
  unsigned char* const start = memory + kFence;
  std::memset(start, 0xFF, size);
  device_blocks[start] = {size, memory, chosen_device};
  used[chosen_device] += static_cast<int64_t>(size);
  *out = start;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cudaSuccess;
  Lock lock = lock_devices();
  const auto at = device_blocks.find(static_cast<unsigned char*>(p));
  if (at == device_blocks.end()) return result(cudaErrorInvalidValue);
  count_wait();
  wait_for_device(lock, at->second.device);
  check_fences(at->second);
  used[at->second.device] -= static_cast<int64_t>(at->second.size);
  std::free(at->second.memory);
  device_blocks.erase(at);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* p) {
  const Lock lock = lock_devices();
  *found = {};
  auto* const byte = static_cast<unsigned char*>(const_cast<void*>(p));
  auto at = device_blocks.upper_bound(byte);
  const bool inside = at != device_blocks.begin() && byte < (--at)->first + at->second.size;
  found->type = inside ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  found->device = inside ? at->second.device : -2;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** out, size_t size, unsigned) {
  const Lock lock = lock_devices();
  auto* const memory = static_cast<unsigned char*>(std::malloc(size));
  pinned_blocks[memory] = size;
  *out = memory;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  const Lock lock = lock_devices();
  if (pinned_blocks.erase(static_cast<unsigned char*>(p)) == 0)
    return result(cudaErrorInvalidValue);
  std::free(p);
  return cudaSuccess;
}

static cudaError_t copy_bytes(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  Lock lock = lock_devices();
  const bool pageable = (kind == cudaMemcpyHostToDevice && !is_pinned(from)) ||
                        (kind == cudaMemcpyDeviceToHost && !is_pinned(to));
  if (pageable) {
    if (is_capturing(stream)) {
      spoil_capture(stream);
      return result(cudaErrorStreamCaptureUnsupported);
    }
    count_wait();
    wait_for_stream(lock, stream);
    std::memcpy(to, from, size);
    return cudaSuccess;
  }
  return enqueue(stream, [=] { std::memmove(to, from, size); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (const cudaError_t error = planned_failure("cudaMemcpyAsync")) return error;
  return copy_bytes(to, from, size, kind, stream);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size,
                                cudaStream_t stream) {
  return copy_bytes(to, from, size, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memset(to, value, size); });
}

}  // extern "C"
