// The caching allocator: best fit among free blocks, split and merged inside their segments.
#include "cairn/tensor/cuda/device_allocator.h"

#include <algorithm>
#include <atomic>

#include "cairn/tensor/cuda/runtime.h"

namespace cairn::cuda {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kRounding = 512;  // sizes are multiples: keeps every block well aligned
constexpr int64_t kSmall = kMiB;    // blocks up to here share small segments
constexpr int64_t kSmallSegment = 2 * kMiB;
constexpr int64_t kMiddle = 10 * kMiB;  // blocks up to here share middle segments
constexpr int64_t kMiddleSegment = 20 * kMiB;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t segment_size(int64_t block) {
  if (block <= kSmall) return kSmallSegment;
  if (block <= kMiddle) return kMiddleSegment;
  return round_up(block, 2 * kMiB);
}

// "12.5 MiB"
std::string mib(int64_t bytes) {
  const int64_t tenths = bytes * 10 / kMiB;
  return cat(tenths / 10, ".", tenths % 10, " MiB");
}

thread_local int64_t thread_pool = 0;  // 0: the pool that everybody shares

}  // namespace

DeviceAllocator::Pool& DeviceAllocator::current_pool() {
  return pools_[{current_stream(device_), thread_pool}];
}

void* DeviceAllocator::allocate(int64_t bytes, bool* zeros) {
  check(bytes >= 0, "allocate: bytes must not be negative, got ", bytes);
  if (zeros != nullptr) *zeros = false;
  const std::lock_guard lock(mutex_);
  Pool& pool = current_pool();
  ++stats_.allocations;
  // Without caching a block ends where its bytes end, so that a memory checker sees a step beyond.
  const int64_t size =
      caching_ ? round_up(std::max<int64_t>(bytes, 1), kRounding) : std::max<int64_t>(bytes, 1);
  Block* block = caching_ ? find_free(pool, size) : nullptr;
  if (block == nullptr) block = add_segment(pool, size, bytes);
  pool.free.erase(block);
  if (caching_) split(block, size);
  block->used = true;
  stats_.allocated += block->size;
  stats_.peak = std::max(stats_.peak, stats_.allocated);
  return block->start;
}

DeviceAllocator::Block* DeviceAllocator::find_free(Pool& pool, int64_t size) {
  Block probe;
  probe.size = size;
  const auto at = pool.free.lower_bound(&probe);
  if (at == pool.free.end()) return nullptr;
  // A small block in a big segment would keep that whole segment from being given back, or from
  // serving a big block.
  const bool fits = size <= kSmall ? (*at)->size <= kSmallSegment : (*at)->size > kSmall;
  return fits ? *at : nullptr;
}

// Cuts the rest off a block where it is worth keeping, and puts it among the free ones.
void DeviceAllocator::split(Block* block, int64_t size) {
  const int64_t rest = block->size - size;
  if (rest < (size <= kSmall ? kRounding : kSmall + kRounding)) return;
  auto cut = std::make_unique<Block>();
  cut->start = block->start + size;
  cut->size = rest;
  cut->before = block;
  cut->after = block->after;
  cut->pool = block->pool;
  if (cut->after != nullptr) cut->after->before = cut.get();
  block->after = cut.get();
  block->size = size;
  block->pool->free.insert(cut.get());
  blocks_[cut->start] = std::move(cut);
}

void DeviceAllocator::deallocate(void* start, int64_t) {
  const std::lock_guard lock(mutex_);
  const auto at = blocks_.find(start);
  if (at == blocks_.end()) return;  // memory of a pool that is gone
  Block* block = at->second.get();
  stats_.allocated -= block->size;
  block->used = false;
  block = merge(block);
  Pool& pool = *block->pool;
  pool.free.insert(block);
  if (!caching_ || pool.dropped) release(pool);
}

// Joins a free block with its free neighbours.
DeviceAllocator::Block* DeviceAllocator::merge(Block* block) {
  const auto absorb = [&](Block* first, Block* second) {
    first->size += second->size;
    first->after = second->after;
    if (second->after != nullptr) second->after->before = first;
    blocks_.erase(second->start);
  };
  if (Block* after = block->after; after != nullptr && !after->used) {
    block->pool->free.erase(after);
    absorb(block, after);
  }
  if (Block* before = block->before; before != nullptr && !before->used) {
    block->pool->free.erase(before);
    absorb(before, block);
    block = before;
  }
  return block;
}

bool DeviceAllocator::take_from_driver(int64_t bytes, std::byte** start) {
  if (limit_ > 0 && reserved_ + bytes > limit_) return false;
  const DeviceGuard guard(device_);
  // A stream that is being captured does not mind: the memory is there when the graph runs.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  CAIRN_CUDA(cudaThreadExchangeStreamCaptureMode, &mode);
  void* memory = nullptr;
  const cudaError_t result = cudaMalloc(&memory, static_cast<size_t>(bytes));
  CAIRN_CUDA(cudaThreadExchangeStreamCaptureMode, &mode);
  if (result == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return false;
  }
  check_call(result, "cudaMalloc");
  *start = static_cast<std::byte*>(memory);
  return true;
}

DeviceAllocator::Block* DeviceAllocator::add_segment(Pool& pool, int64_t size, int64_t wanted) {
  const int64_t bytes = caching_ ? segment_size(size) : size;
  std::byte* start = nullptr;
  if (!take_from_driver(bytes, &start)) {
    for (auto& [key, other] : pools_)
      if (key.second == 0) release(other);  // a graph's memory stays its own
    if (!take_from_driver(bytes, &start)) fail_allocation(wanted);
  }
  ++stats_.system_allocations;
  reserved_ += bytes;
  auto block = std::make_unique<Block>();
  block->start = start;
  block->size = bytes;
  block->pool = &pool;
  Block* const out = block.get();
  blocks_[start] = std::move(block);
  pool.free.insert(out);
  return out;
}

// Gives whole free segments of the pool back to the driver, which waits for the device.
void DeviceAllocator::release(Pool& pool) {
  const DeviceGuard guard(device_);
  for (auto at = pool.free.begin(); at != pool.free.end();) {
    Block* const block = *at;
    if (block->before != nullptr || block->after != nullptr) {
      ++at;
      continue;
    }
    at = pool.free.erase(at);
    reserved_ -= block->size;
    void* const start = block->start;
    blocks_.erase(start);
    CAIRN_CUDA(cudaFree, start);
  }
}

void DeviceAllocator::fail_allocation(int64_t bytes) {
  size_t free = 0;
  size_t total = 0;
  {
    const DeviceGuard guard(device_);
    CAIRN_CUDA(cudaMemGetInfo, &free, &total);
  }
  int64_t largest = 0;
  for (const auto& [key, pool] : pools_)
    if (!pool.free.empty()) largest = std::max(largest, (*pool.free.rbegin())->size);
  std::string limit;
  if (limit_ > 0) limit = cat(", under a limit of ", mib(limit_));
  fail("allocate: ", device_, " must have ", mib(bytes), " for one block, got ",
       mib(static_cast<int64_t>(free)), " free of ", mib(static_cast<int64_t>(total)), ", ",
       mib(stats_.allocated), " in use and ", mib(reserved_ - stats_.allocated),
       " cached in blocks of at most ", mib(largest), limit);
}

MemoryStats DeviceAllocator::stats() const {
  const std::lock_guard lock(mutex_);
  MemoryStats out = stats_;
  out.cached = reserved_ - stats_.allocated;
  return out;
}

void DeviceAllocator::reset_peak() {
  const std::lock_guard lock(mutex_);
  stats_.peak = stats_.allocated;
}

void DeviceAllocator::release_cached() {
  const std::lock_guard lock(mutex_);
  for (auto& [key, pool] : pools_)
    if (key.second == 0) release(pool);
}

void DeviceAllocator::set_limit(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  limit_ = bytes;
}

void DeviceAllocator::set_caching(bool on) {
  const std::lock_guard lock(mutex_);
  caching_ = on;
}

int64_t DeviceAllocator::make_pool() {
  const std::lock_guard lock(mutex_);
  return ++last_pool_;
}

void DeviceAllocator::use_pool(int64_t id) { thread_pool = id; }

void DeviceAllocator::drop_pool(int64_t id) {
  const std::lock_guard lock(mutex_);
  for (auto& [key, pool] : pools_) {
    if (key.second != id) continue;
    pool.dropped = true;  // blocks that are still held go back as they are freed
    release(pool);
  }
}

DeviceAllocator& allocator_of(Device device) {
  static std::mutex mutex;
  static std::map<int, DeviceAllocator*> all;  // never freed: static tensors may outlive this map
  check_device(device, "allocate");
  const std::lock_guard lock(mutex);
  DeviceAllocator*& allocator = all[device.index];
  if (allocator == nullptr) allocator = new DeviceAllocator(device);
  return *allocator;
}

}  // namespace cairn::cuda
