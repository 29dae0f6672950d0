// Device state: streams, waits and findings, made when a device is first used.
#include "cairn/tensor/cuda/runtime.h"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cairn/tensor/cuda/availability.h"
#include "cairn/tensor/print.h"

namespace cairn::cuda {
namespace {

constexpr int kMaxDevices = 128;

struct DeviceState {
  OwnedStream stream;
  Finding* finding = nullptr;  // lives as long as the process
  DeviceLimits limits;
};

std::atomic<DeviceState*> states[kMaxDevices];
std::mutex states_mutex;
std::atomic<int64_t> waits{0};
thread_local cudaStream_t scoped_streams[kMaxDevices] = {};

int attribute(cudaDeviceAttr which, Device device) {
  int value = 0;
  CAIRN_CUDA(cudaDeviceGetAttribute, &value, which, device.index);
  return value;
}

std::unique_ptr<DeviceState> make_state(Device device) {
  const DeviceGuard guard(device);
  auto state = std::make_unique<DeviceState>();
  state->stream = make_stream();
  void* memory = nullptr;
  CAIRN_CUDA(cudaHostAlloc, &memory, sizeof(Finding), cudaHostAllocPortable | cudaHostAllocMapped);
  state->finding = new (memory) Finding{};
  state->limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  state->limits.max_threads_per_multiprocessor =
      attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device);
  state->limits.shared_memory_per_block =
      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  state->limits.l2_cache = attribute(cudaDevAttrL2CacheSize, device);
  return state;
}

// States are never freed: streams must outlive every static object that holds tensors.
DeviceState& state_of(Device device) {
  check_device(device, "device");
  std::atomic<DeviceState*>& slot = states[device.index];
  DeviceState* state = slot.load(std::memory_order_acquire);
  if (state == nullptr) {
    const std::lock_guard lock(states_mutex);
    state = slot.load(std::memory_order_acquire);
    if (state == nullptr) {
      state = make_state(device).release();
      slot.store(state, std::memory_order_release);
    }
  }
  return *state;
}

struct Texts {
  std::mutex mutex;
  std::map<std::string, int, std::less<>> ids;
  std::vector<std::string> by_id;
};
Texts& texts() {
  static Texts texts;
  return texts;
}

}  // namespace

void check_device(Device device, const char* op) {
  const int count = usable_devices();
  check(count > 0, op, ": CUDA must be usable, but ", why_unusable());
  check(device.type == DeviceType::cuda && device.index >= 0 && device.index < count, op,
        ": device must be one of the ", count, " CUDA devices that are there, got ", device);
}

cudaStream_t current_stream(Device device) {
  check_device(device, "device");
  const cudaStream_t scoped = scoped_streams[device.index];
  return scoped != nullptr ? scoped : state_of(device).stream.get();
}

StreamScope::StreamScope(Device device, cudaStream_t stream)
    : device_(device), before_(scoped_streams[device.index]) {
  scoped_streams[device.index] = stream;
}
StreamScope::~StreamScope() { scoped_streams[device_.index] = before_; }

void wait_for(Device device, cudaStream_t stream) {
  const DeviceGuard guard(device);
  ++waits;
  CAIRN_CUDA(cudaStreamSynchronize, stream);
  throw_finding(device);
}

void wait_for(Device device, cudaEvent_t event) {
  ++waits;
  CAIRN_CUDA(cudaEventSynchronize, event);
  throw_finding(device);
}

void wait_for_device(Device device) {
  const DeviceGuard guard(device);
  ++waits;
  CAIRN_CUDA(cudaDeviceSynchronize);
  throw_finding(device);
}

int64_t wait_count() { return waits; }

Finding* finding_of(Device device) { return state_of(device).finding; }

const DeviceLimits& limits_of(Device device) { return state_of(device).limits; }

int text_id(std::string_view op, std::string_view what) {
  Texts& t = texts();
  const std::string text = cat(op, ": ", what);
  const std::lock_guard lock(t.mutex);
  const auto [at, fresh] = t.ids.emplace(text, static_cast<int>(t.by_id.size()));
  if (fresh) t.by_id.push_back(text);
  return at->second;
}

void throw_finding(Device device) {
  Finding* const place = state_of(device).finding;
  const std::atomic_ref<int> state(place->state);
  if (state.load(std::memory_order_acquire) != 2) return;
  const Finding found = *place;
  state.store(0, std::memory_order_release);
  std::string text;
  {
    const std::lock_guard lock(texts().mutex);
    text = texts().by_id.at(static_cast<size_t>(found.text));
  }
  fail(text, " must be in [0, ", found.size, "), got ", found.value, " at position ",
       position_text(found.shape, found.position));
}

}  // namespace cairn::cuda
