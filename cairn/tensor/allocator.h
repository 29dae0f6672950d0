// Memory of a device, cached: freed blocks are kept and handed out again.
// Invariant: a block returned by allocate is used by one owner until deallocate.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cairn/tensor/device.h"

namespace cairn {

struct MemoryStats {
  int64_t allocated = 0;           // bytes in use now
  int64_t peak = 0;                // largest `allocated` since start or reset_peak
  int64_t cached = 0;              // bytes held from the system and not in use
  int64_t allocations = 0;         // calls of allocate
  int64_t system_allocations = 0;  // of those, the ones that asked the system
};

class Allocator {
 public:
  virtual ~Allocator() = default;
  // At least `bytes` bytes (0 allowed), aligned to 64. Throws Error when the system has no more.
  // Sets *zeros, where given, to whether they are known to be zeros: memory fresh from the system,
  // which costs nothing until it is touched.
  virtual void* allocate(int64_t bytes, bool* zeros = nullptr) = 0;
  // `bytes` as given to allocate.
  virtual void deallocate(void* block, int64_t bytes) = 0;
  virtual MemoryStats stats() const = 0;
  virtual void reset_peak() = 0;
  // Gives cached blocks back to the system.
  virtual void release_cached() = 0;
};

MemoryStats memory_stats(Device device = {});

}  // namespace cairn
