// The cache of pinned blocks, by device (an event belongs to one) and size.
#include "cairn/tensor/cuda/pinned.h"

#include <algorithm>
#include <bit>
#include <list>
#include <map>
#include <mutex>

#include "cairn/tensor/cuda/runtime.h"

namespace cairn::cuda {
namespace {

struct Idle {
  std::byte* data = nullptr;
  OwnedEvent event;  // empty: never used
};

struct Cache {
  std::mutex mutex;
  std::map<std::pair<int, int64_t>, std::list<Idle>> idle;
};
// Never freed: a block may come back while static objects are destroyed.
Cache& cache() {
  static Cache* const cache = new Cache;
  return *cache;
}

constexpr int64_t kSmallest = 4096;

int64_t size_class(int64_t bytes) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(bytes, kSmallest))));
}

bool done(const Idle& block) {
  if (!block.event) return true;
  const cudaError_t result = cudaEventQuery(block.event.get());
  if (result == cudaErrorNotReady) {
    static_cast<void>(cudaGetLastError());
    return false;
  }
  check_call(result, "cudaEventQuery");
  return true;
}

}  // namespace

Pinned::Pinned(Device device, int64_t bytes) : device_(device), size_(size_class(bytes)) {
  {
    Cache& c = cache();
    const std::lock_guard lock(c.mutex);
    std::list<Idle>& idle = c.idle[{device.index, size_}];
    // The one that came back first is the likeliest to be done.
    if (!idle.empty() && done(idle.front())) {
      data_ = idle.front().data;
      event_ = std::move(idle.front().event);
      idle.pop_front();
      return;
    }
  }
  void* memory = nullptr;
  CAIRN_CUDA(cudaHostAlloc, &memory, static_cast<size_t>(size_), cudaHostAllocPortable);
  data_ = static_cast<std::byte*>(memory);
}

Pinned::~Pinned() {
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  c.idle[{device_.index, size_}].push_back({data_, std::move(event_)});
}

void Pinned::used_by(cudaStream_t stream) {
  const DeviceGuard guard(device_);
  if (!event_) event_ = make_event();
  CAIRN_CUDA(cudaEventRecord, event_.get(), stream);
}

}  // namespace cairn::cuda
