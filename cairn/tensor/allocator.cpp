// The CPU's caching allocator: free lists by size class.
// Invariant: block sizes depend on the request alone, so a repeated step asks the system for
// nothing.
#include "cairn/tensor/allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cairn/tensor/cpu_allocator.h"

namespace cairn {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;

// Eight size classes per power of two: at most 12.5 % of a block is waste.
int64_t block_size(int64_t bytes) {
  bytes = std::max(bytes, kAlignment);
  const int64_t top = int64_t{1} << (63 - std::countl_zero(static_cast<uint64_t>(bytes)));
  const int64_t step = std::max(top / 8, kAlignment);
  return (bytes + step - 1) / step * step;
}

class CpuAllocator final : public Allocator {
 public:
  void* allocate(int64_t bytes) override {
    // The bound keeps block_size and the system's own rounding from overflowing.
    check(bytes >= 0 && bytes <= (int64_t{1} << 56),
          "allocate: size must be at most 2^56 bytes, got ", bytes);
    const int64_t size = block_size(bytes);
    std::lock_guard lock(mutex_);
    ++stats_.allocations;
    if (checks_) return fenced(bytes);
    void* block = nullptr;
    auto& list = free_[size];
    if (!list.empty()) {
      block = list.back();
      list.pop_back();
      stats_.cached -= size;
    } else {
      block = from_system(size);
      ++stats_.system_allocations;
    }
    stats_.allocated += size;
    stats_.peak = std::max(stats_.peak, stats_.allocated);
    return block;
  }

  void deallocate(void* block, int64_t bytes) override {
    const int64_t size = block_size(bytes);
    std::lock_guard lock(mutex_);
    if (!fenced_.empty() && unfence(block)) return;
    free_[size].push_back(block);
    stats_.allocated -= size;
    stats_.cached += size;
  }

  MemoryStats stats() const override {
    std::lock_guard lock(mutex_);
    return stats_;
  }

  void reset_peak() override {
    std::lock_guard lock(mutex_);
    stats_.peak = stats_.allocated;
  }

  void release_cached() override {
    std::lock_guard lock(mutex_);
    for (auto& [size, list] : free_) {
      for (void* block : list) std::free(block);
      stats_.cached -= size * static_cast<int64_t>(list.size());
      list.clear();
    }
  }

  void set_checks(bool on) {
    std::lock_guard lock(mutex_);
    checks_ = on;
  }
  int64_t violations() const {
    std::lock_guard lock(mutex_);
    return violations_;
  }

 private:
  // A block between two fences; the byte after its last one is already fence.
  void* fenced(int64_t bytes) {
    auto* base = static_cast<std::byte*>(from_system(bytes + 2 * kFence));
    std::memset(base, kFenceByte, static_cast<size_t>(kFence));
    std::memset(base + kFence, 0xFF, static_cast<size_t>(bytes));
    std::memset(base + kFence + bytes, kFenceByte, static_cast<size_t>(kFence));
    fenced_[base + kFence] = bytes;
    return base + kFence;
  }

  bool unfence(void* block) {
    const auto found = fenced_.find(block);
    if (found == fenced_.end()) return false;
    auto* data = static_cast<std::byte*>(block);
    const auto broken = [](const std::byte* fence) {
      return std::any_of(fence, fence + kFence, [](std::byte b) { return b != kFenceValue; });
    };
    if (broken(data - kFence) || broken(data + found->second)) ++violations_;
    std::free(data - kFence);
    fenced_.erase(found);
    return true;
  }

  static void* from_system(int64_t size) {
    const int64_t alignment = size >= kHugePage ? kHugePage : kAlignment;
    // aligned_alloc wants a multiple of the alignment.
    const int64_t rounded = (size + alignment - 1) / alignment * alignment;
    void* block = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
    check(block != nullptr, "allocate: memory must suffice, got no ", size,
          " bytes from the system");
    if (size >= kHugePage) madvise(block, static_cast<size_t>(size), MADV_HUGEPAGE);
    return block;
  }

  static constexpr int64_t kFence = 256;
  static constexpr int kFenceByte = 0xA5;
  static constexpr std::byte kFenceValue{kFenceByte};

  mutable std::mutex mutex_;
  std::unordered_map<int64_t, std::vector<void*>> free_;
  MemoryStats stats_;
  bool checks_ = false;
  int64_t violations_ = 0;
  std::unordered_map<void*, int64_t> fenced_;
};

CpuAllocator& instance() {
  // Never destroyed: storages held by static objects are freed after static destructors ran.
  static auto* allocator = new CpuAllocator;
  return *allocator;
}

}  // namespace

Allocator* cpu_allocator() { return &instance(); }
void set_allocator_checks(bool on) { instance().set_checks(on); }
int64_t guard_violations() { return instance().violations(); }

MemoryStats memory_stats(Device device) {
  return backend_of(device.type, "memory_stats").allocator(device)->stats();
}

}  // namespace cairn
