// The caching allocator of one CUDA device: segments from the driver, cut into blocks.
// Invariant: a block is handed out again only to work that comes after its last use in the same
// stream, so nothing waits; blocks of graphs' pools are never handed out to anything else.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cairn/tensor/allocator.h"
#include "cairn/tensor/cuda/api.h"

namespace cairn::cuda {

class DeviceAllocator final : public Allocator {
 public:
  explicit DeviceAllocator(Device device) : device_(device) {}

  // Throws `allocate: device must have N MiB more, got …` with what is free, cached and in use.
  void* allocate(int64_t bytes, bool* zeros = nullptr) override;
  void deallocate(void* block, int64_t bytes) override;
  MemoryStats stats() const override;
  void reset_peak() override;
  void release_cached() override;

  // The most bytes of segments; 0: no limit.
  void set_limit(int64_t bytes);
  // Off: every block is a segment of its own, exactly as large as asked for.
  void set_caching(bool on);

  // A pool of graphs: this thread's blocks come from it from use_pool(it) to use_pool(0), which is
  // the pool of everybody. drop_pool gives it back once its blocks are free; nothing may use its
  // memory any more.
  int64_t make_pool();
  void use_pool(int64_t id);
  void drop_pool(int64_t id);

 private:
  struct Segment {
    std::byte* start = nullptr;
    int64_t size = 0;
  };
  struct Pool;
  // A piece of a segment. Neighbours in the segment are linked, so that free ones can be merged.
  struct Block {
    std::byte* start = nullptr;
    int64_t size = 0;
    bool used = false;
    Block* before = nullptr;
    Block* after = nullptr;
    Pool* pool = nullptr;
  };
  struct BySize {
    bool operator()(const Block* a, const Block* b) const {
      return std::pair(a->size, a->start) < std::pair(b->size, b->start);
    }
  };
  struct Pool {
    std::set<Block*, BySize> free;
    bool dropped = false;
  };
  using PoolKey = std::pair<cudaStream_t, int64_t>;

  Pool& current_pool();
  Block* find_free(Pool& pool, int64_t size);
  Block* add_segment(Pool& pool, int64_t size, int64_t wanted);
  void split(Block* block, int64_t size);
  Block* merge(Block* block);
  void release(Pool& pool);
  bool take_from_driver(int64_t bytes, std::byte** start);
  [[noreturn]] void fail_allocation(int64_t bytes);

  const Device device_;
  mutable std::mutex mutex_;
  std::map<PoolKey, Pool> pools_;
  std::unordered_map<void*, std::unique_ptr<Block>> blocks_;  // by start, free and used
  int64_t reserved_ = 0;
  int64_t limit_ = 0;
  int64_t last_pool_ = 0;
  bool caching_ = true;
  MemoryStats stats_;
};

// One per device, made when it is first used; it lives as long as the process.
DeviceAllocator& allocator_of(Device device);

}  // namespace cairn::cuda
