// The CUDA runtime's functions that the library calls, with the host's memory as device memory.
// Invariant: what a stream was given runs in order when somebody waits for it (or for another
// stream or event that comes after it), never earlier.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "tests/cuda/emulator/block.h"
#include "tests/cuda/emulator/emulator.h"
#include "tests/cuda/emulator/emulator_control.h"
#include "tests/cuda/emulator/queue.h"

namespace {

using Work = std::function<void()>;

constexpr size_t kFence = 256;  // keeps device blocks as well aligned as the driver's
constexpr unsigned char kFenceByte = 0xA5;

}  // namespace

struct CUgraph_st {
  std::vector<Work> nodes;
};
struct CUgraphExec_st {
  std::vector<Work> nodes;
};
struct CUevent_st {
  int pending = 0;  // records that their stream has not come to
  CUstream_st* stream = nullptr;
  bool destroyed = false;  // goes with the last of them
};
struct CUstream_st {
  std::deque<Work> queue;
  std::unique_ptr<CUgraph_st> capture;
  bool broken = false;  // the capture was spoilt
};

namespace cairn::emulator {
namespace {

struct DeviceBlock {
  size_t size = 0;
  unsigned char* memory = nullptr;  // fence, block, fence
  int device = 0;
};

// Recursive: work that runs may call back.
std::recursive_mutex mutex;
constexpr int kDevices = 1;
constexpr int64_t kCapacity = int64_t{8} << 30;
int64_t used = 0;
int64_t wait_calls = 0;
int64_t launched = 0;
int64_t violations = 0;
std::map<unsigned char*, DeviceBlock> device_blocks;
std::map<unsigned char*, size_t> pinned_blocks;
std::vector<CUstream_st*> streams;
std::string failing_call;
cudaError_t failing_error = cudaSuccess;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t planned_failure(const char* call) {
  if (failing_call != call) return cudaSuccess;
  failing_call.clear();
  return result(failing_error);
}

bool is_pinned(const void* p) {
  auto* const byte = static_cast<unsigned char*>(const_cast<void*>(p));
  auto at = pinned_blocks.upper_bound(byte);
  if (at == pinned_blocks.begin()) return false;
  --at;
  return byte < at->first + at->second;
}

void drain(CUstream_st* stream) {
  while (!stream->queue.empty()) {
    const Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    work();
  }
}
void drain_all() {
  for (CUstream_st* stream : streams) drain(stream);
}

bool any_capture() {
  return std::any_of(streams.begin(), streams.end(),
                     [](const CUstream_st* s) { return s->capture != nullptr; });
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

cudaError_t enqueue(cudaStream_t stream, Work work) {
  const std::lock_guard lock(mutex);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);  // the library has its own
  if (stream->capture)
    stream->capture->nodes.push_back(std::move(work));
  else
    stream->queue.push_back([work = std::move(work)] {
      ++launched;
      work();
    });
  return cudaSuccess;
}

cudaError_t submit(const char* name, dim3 blocks, dim3 threads, size_t shared, cudaStream_t stream,
                   std::function<void()> body) {
  if (const cudaError_t error = planned_failure("cudaLaunchKernelExC")) return error;
  const size_t count = size_t{threads.x} * threads.y * threads.z;
  const bool fits = count >= 1 && count <= 1024 && threads.z <= 64 && blocks.x >= 1 &&
                    blocks.x <= 0x7fffffffu && blocks.y >= 1 && blocks.y <= 65535 &&
                    blocks.z >= 1 && blocks.z <= 65535 && shared <= (227 << 10);
  if (!fits) return result(cudaErrorInvalidConfiguration);
  return enqueue(stream, [=, body = std::move(body)] {
    for (unsigned z = 0; z < blocks.z; ++z)
      for (unsigned y = 0; y < blocks.y; ++y)
        for (unsigned x = 0; x < blocks.x; ++x)
          run_block(name, dim3(x, y, z), blocks, threads, shared, body);
  });
}

int64_t runtime_waits() { return wait_calls; }
int64_t launches() { return launched; }
void fail_next(const char* call, cudaError_t error) {
  failing_call = call;
  failing_error = error;
}
int64_t guard_violations() {
  const std::lock_guard lock(mutex);
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
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  current_device = device;
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
  const std::lock_guard lock(mutex);
  *total = static_cast<size_t>(kCapacity);
  *free = static_cast<size_t>(kCapacity - used);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** out, size_t size) {
  const std::lock_guard lock(mutex);
  if (const cudaError_t error = planned_failure("cudaMalloc")) return error;
  if (used + static_cast<int64_t>(size) > kCapacity) return result(cudaErrorMemoryAllocation);
  const size_t whole = size + 2 * kFence;
  // As on a device, memory is aligned to 256 bytes and holds anything; here it holds NaNs.
  auto* const memory = static_cast<unsigned char*>(
      std::aligned_alloc(kFence, (whole + kFence - 1) / kFence * kFence));
  std::memset(memory, kFenceByte, whole);
  unsigned char* const start = memory + kFence;
  std::memset(start, 0xFF, size);
  device_blocks[start] = {size, memory, current_device};
  used += static_cast<int64_t>(size);
  *out = start;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cudaSuccess;
  const std::lock_guard lock(mutex);
  const auto at = device_blocks.find(static_cast<unsigned char*>(p));
  if (at == device_blocks.end()) return result(cudaErrorInvalidValue);
  ++wait_calls;  // it waits for the device
  drain_all();
  check_fences(at->second);
  used -= static_cast<int64_t>(at->second.size);
  std::free(at->second.memory);
  device_blocks.erase(at);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* p) {
  const std::lock_guard lock(mutex);
  *found = {};
  auto* const byte = static_cast<unsigned char*>(const_cast<void*>(p));
  auto at = device_blocks.upper_bound(byte);
  const bool inside = at != device_blocks.begin() && byte < (--at)->first + at->second.size;
  found->type = inside ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  found->device = inside ? at->second.device : -2;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** out, size_t size, unsigned) {
  const std::lock_guard lock(mutex);
  auto* const memory = static_cast<unsigned char*>(std::malloc(size));
  pinned_blocks[memory] = size;
  *out = memory;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  const std::lock_guard lock(mutex);
  if (pinned_blocks.erase(static_cast<unsigned char*>(p)) == 0)
    return result(cudaErrorInvalidValue);
  std::free(p);
  return cudaSuccess;
}

static cudaError_t copy_bytes(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  const bool pageable = (kind == cudaMemcpyHostToDevice && !is_pinned(from)) ||
                        (kind == cudaMemcpyDeviceToHost && !is_pinned(to));
  if (pageable) {
    if (stream->capture) {
      stream->broken = true;
      return result(cudaErrorStreamCaptureUnsupported);
    }
    ++wait_calls;
    drain(stream);
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

// --- streams and events
// ----------------------------------------------------------------------------
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned) {
  const std::lock_guard lock(mutex);
  *out = new CUstream_st;
  streams.push_back(*out);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  drain(stream);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (const cudaError_t error = planned_failure("cudaStreamSynchronize")) return error;
  if (stream->capture) {
    stream->broken = true;
    return result(cudaErrorStreamCaptureUnsupported);
  }
  ++wait_calls;
  drain(stream);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(mutex);
  if (any_capture()) return result(cudaErrorStreamCaptureUnsupported);
  ++wait_calls;
  drain_all();
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  *out = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  event->destroyed = true;
  if (event->pending == 0) delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  ++event->pending;
  event->stream = stream;
  return enqueue(stream, [event] {
    if (--event->pending == 0 && event->destroyed) delete event;
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(mutex);
  if (event->pending == 0 || event->stream == stream) return cudaSuccess;
  CUstream_st* const other = event->stream;
  return enqueue(stream, [other] { drain(other); });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->pending > 0 ? result(cudaErrorNotReady) : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  ++wait_calls;
  if (event->pending > 0) drain(event->stream);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  *ms = 1;
  return cudaSuccess;
}

// --- graphs
// ----------------------------------------------------------------------------------------
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard lock(mutex);
  if (stream->capture) return result(cudaErrorInvalidValue);
  stream->capture = std::make_unique<CUgraph_st>();
  stream->broken = false;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(mutex);
  *graph = nullptr;
  if (!stream->capture) return result(cudaErrorInvalidValue);
  const std::unique_ptr<CUgraph_st> recorded = std::move(stream->capture);
  if (stream->broken) return result(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st(*recorded);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const std::lock_guard lock(mutex);
  drain_all();
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return enqueue(stream, [exec] {
    for (const Work& node : exec->nodes) node();
  });
}

}  // extern "C"
