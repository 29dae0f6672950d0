// The CUDA runtime's functions that the library calls, with the host's memory as device memory.
// Invariant: what a stream was given runs in order when somebody waits for it (or for another
// stream or event that comes after it), never earlier.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
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
  int64_t asked = 0, reached = 0;  // records, and those that their stream has come to
  CUstream_st* stream = nullptr;   // of the last one
  int held = 0;                    // by work that is still to be done
  bool destroyed = false;          // goes with the last of that
  // Recorded in a capture: it stands for the stream's first `recorded` pieces of work there.
  std::weak_ptr<CUgraph_st> graph;
  size_t recorded = 0;
};
struct CUstream_st {
  std::deque<Work> queue;
  // A stream joins another one's capture by waiting for an event of it.
  std::shared_ptr<CUgraph_st> capture;
  bool broken = false;              // the capture was spoilt
  size_t recorded = 0, joined = 0;  // pieces of work in the capture, and those others wait for
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
std::vector<float> elapsed;
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

void drain(CUstream_st* stream, int64_t most = std::numeric_limits<int64_t>::max()) {
  for (; most > 0 && !stream->queue.empty(); --most) {
    const Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    work();
  }
}
void drain_all() {
  for (CUstream_st* stream : streams) drain(stream);
}

// What the event's stream does before its record number `target`, and that.
void drain_to(CUstream_st* stream, const CUevent_st* event, int64_t target) {
  while (event->reached < target && !stream->queue.empty()) drain(stream, 1);
}

void let_go(CUevent_st* event) {
  if (--event->held == 0 && event->destroyed) delete event;
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
  if (stream->capture) {
    stream->capture->nodes.push_back(std::move(work));
    ++stream->recorded;
  } else
    stream->queue.push_back([work = std::move(work)] {
      ++launched;
      work();
    });
  return cudaSuccess;
}

// The first wait of an idle stream for a capture's event makes it part of the capture.
static cudaError_t wait_in_capture(CUstream_st* stream, CUevent_st* event) {
  const std::shared_ptr<CUgraph_st> graph = event->graph.lock();
  if (graph == nullptr) return result(cudaErrorInvalidValue);
  if (stream->capture == nullptr) {
    stream->capture = graph;
    stream->recorded = stream->joined = 0;
  } else if (stream->capture != graph) {
    return result(cudaErrorStreamCaptureIsolation);
  }
  event->stream->joined = std::max(event->stream->joined, event->recorded);
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
void set_elapsed(const std::vector<float>& next) {
  const std::lock_guard lock(mutex);
  elapsed = next;
}
void fail_next(const char* call, cudaError_t error) {
  failing_call = call;
  failing_error = error;
}
void advance(int64_t count) {
  const std::lock_guard lock(mutex);
  for (CUstream_st* stream : streams) drain(stream, count);
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
  if (event->held == 0) delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  event->stream = stream;
  event->graph = stream->capture;
  event->recorded = stream->recorded;
  if (stream->capture) return cudaSuccess;
  ++event->asked;
  ++event->held;
  return enqueue(stream, [event] {
    ++event->reached;
    let_go(event);
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(mutex);
  if (!event->graph.expired()) return wait_in_capture(stream, event);
  if (event->reached == event->asked || event->stream == stream) return cudaSuccess;
  ++event->held;
  return enqueue(stream, [event, other = event->stream, target = event->asked] {
    drain_to(other, event, target);
    let_go(event);
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  return event->reached < event->asked ? result(cudaErrorNotReady) : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  ++wait_calls;
  if (event->stream != nullptr) drain_to(event->stream, event, event->asked);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  const std::lock_guard lock(mutex);
  *ms = 1;
  if (!elapsed.empty()) {
    *ms = elapsed.front();
    elapsed.erase(elapsed.begin());
  }
  return cudaSuccess;
}

// --- graphs
// ----------------------------------------------------------------------------------------
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard lock(mutex);
  if (stream->capture) return result(cudaErrorInvalidValue);
  stream->capture = std::make_shared<CUgraph_st>();
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
  const std::shared_ptr<CUgraph_st> recorded = std::move(stream->capture);
  bool joined = true;
  for (CUstream_st* other : streams)
    if (other != stream && other->capture == recorded) {
      joined = joined && other->joined == other->recorded;
      other->capture.reset();
    }
  if (stream->broken) return result(cudaErrorStreamCaptureInvalidated);
  if (!joined) return result(cudaErrorStreamCaptureUnjoined);
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
