// The CPU's caching allocator: free lists by size class.
// Invariant: block sizes depend on the request alone, so a repeated step asks the system for
// nothing.
#include "cairn/tensor/allocator.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "cairn/tensor/cpu_allocator.h"

namespace cairn {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;
// Blocks from this size on are mappings of their own. The address sanitizer watches only the heap.
#if defined(__SANITIZE_ADDRESS__)
#define CAIRN_WATCHED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CAIRN_WATCHED 1
#endif
#endif
#ifdef CAIRN_WATCHED
constexpr int64_t kMapped = INT64_MAX;
#else
constexpr int64_t kMapped = kHugePage;
#endif

constexpr int kMaxBits = 56;  // of a size; keeps its rounding from overflowing
constexpr int kSteps = 8;     // size classes per power of two: at most 12.5 % of a block is waste

constexpr int log2_of(int64_t size) { return std::bit_width(static_cast<uint64_t>(size)) - 1; }
// Size classes from 2^bits on are a step of 2^log2_step apart, and of kAlignment at least.
constexpr int log2_step(int bits) { return std::max(bits - log2_of(kSteps), log2_of(kAlignment)); }

int64_t block_size(int64_t bytes) {
  bytes = std::max(bytes, kAlignment);
  const int64_t step = int64_t{1} << log2_step(log2_of(bytes));
  return (bytes + step - 1) & -step;
}
constexpr size_t class_of(int64_t block_size) {
  const int bits = log2_of(block_size);
  return static_cast<size_t>(bits * kSteps +
                             ((block_size - (int64_t{1} << bits)) >> log2_step(bits)));
}
constexpr size_t kClasses = class_of(int64_t{1} << kMaxBits) + 1;
// The block size of a class.
constexpr int64_t size_of(size_t size_class) {
  const int bits = static_cast<int>(size_class) / kSteps;
  return (int64_t{1} << bits) + (static_cast<int64_t>(size_class) % kSteps << log2_step(bits));
}

// A lock for sections of a few dozen instructions, which a mutex would double.
class SpinLock {
 public:
  void lock() {
    for (int spins = 0; locked_.test_and_set(std::memory_order_acquire); ++spins)
      if (spins >= 100) std::this_thread::yield();  // the holder may have been descheduled
  }
  void unlock() { locked_.clear(std::memory_order_release); }

 private:
  std::atomic_flag locked_;
};

class CpuAllocator final : public Allocator {
 public:
  void* allocate(int64_t bytes, bool* zeros) override {
    check(bytes >= 0 && bytes <= (int64_t{1} << kMaxBits), "allocate: size must be at most 2^",
          kMaxBits, " bytes, got ", bytes);
    if (checks_.load(std::memory_order_relaxed)) [[unlikely]]
      return fenced(bytes);
    const int64_t size = block_size(bytes);
    void* block = cached(size);
    if (block != nullptr) return block;
    block = from_system(size);
    if (zeros != nullptr) *zeros = size >= kMapped;
    std::lock_guard lock(mutex_);
    ++stats_.system_allocations;
    count_allocation(size);
    return block;
  }

  void deallocate(void* block, int64_t bytes) override {
    const int64_t size = block_size(bytes);
    std::lock_guard lock(mutex_);
    if (!fenced_.empty() && unfence(block)) [[unlikely]]
      return;
    free_[class_of(size)].push_back(block);
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
    std::vector<std::pair<void*, int64_t>> blocks;
    {
      std::lock_guard lock(mutex_);
      for (size_t i = 0; i < kClasses; ++i) {
        for (void* block : free_[i]) blocks.emplace_back(block, size_of(i));
        free_[i].clear();
      }
      stats_.cached = 0;
    }
    for (const auto& [block, size] : blocks) to_system(block, size);
  }

  void set_checks(bool on) { checks_ = on; }
  // Around fork(): the child finds the lists whole and the lock free.
  void before_fork() { mutex_.lock(); }
  void after_fork() { mutex_.unlock(); }
  int64_t violations() const {
    std::lock_guard lock(mutex_);
    return violations_;
  }

 private:
  // A cached block, or null.
  void* cached(int64_t size) {
    std::lock_guard lock(mutex_);
    auto& list = free_[class_of(size)];
    if (list.empty()) return nullptr;
    void* const block = list.back();
    list.pop_back();
    stats_.cached -= size;
    count_allocation(size);
    return block;
  }

  void count_allocation(int64_t size) {
    ++stats_.allocations;
    stats_.allocated += size;
    stats_.peak = std::max(stats_.peak, stats_.allocated);
  }

  // A block between two fences; the byte after its last one is already fence.
  void* fenced(int64_t bytes) {
    auto* base = static_cast<std::byte*>(from_system(bytes + 2 * kFence));
    std::memset(base, kFenceByte, static_cast<size_t>(kFence));
    std::memset(base + kFence, 0xFF, static_cast<size_t>(bytes));
    std::memset(base + kFence + bytes, kFenceByte, static_cast<size_t>(kFence));
    std::lock_guard lock(mutex_);
    ++stats_.allocations;
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
    to_system(data - kFence, found->second + 2 * kFence);
    fenced_.erase(found);
    return true;
  }

  static void* from_system(int64_t size) {
    // aligned_alloc wants a multiple of the alignment.
    void* block = size >= kMapped
                      ? map(size)
                      : std::aligned_alloc(
                            kAlignment, static_cast<size_t>((size + kAlignment - 1) & -kAlignment));
    check(block != nullptr, "allocate: memory must suffice, got no ", size,
          " bytes from the system");
    return block;
  }

  static void to_system(void* block, int64_t size) {
    if (size >= kMapped)
      munmap(block, static_cast<size_t>(size));
    else
      std::free(block);
  }

  // Fresh pages from the start of a huge page on; null when there are none.
  static void* map(int64_t size) {
    void* const all = mmap(nullptr, static_cast<size_t>(size + kHugePage), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    auto* const first = static_cast<std::byte*>(all);
    const auto ahead = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(all) & (kHugePage - 1));
    std::byte* const block = first + ahead;
    if (ahead > 0) munmap(first, static_cast<size_t>(ahead));
    // The rest behind the block, from the first whole page on.
    const int64_t pages = (size + kPage - 1) / kPage * kPage;
    if (kHugePage > ahead + (pages - size))
      munmap(block + pages, static_cast<size_t>(size + kHugePage - ahead - pages));
    madvise(block, static_cast<size_t>(size), MADV_HUGEPAGE);
    return block;
  }

  static constexpr int64_t kPage = 4096;
  static constexpr int64_t kFence = 256;
  static constexpr int kFenceByte = 0xA5;
  static constexpr std::byte kFenceValue{kFenceByte};

  mutable SpinLock mutex_;
  std::array<std::vector<void*>, kClasses> free_;
  MemoryStats stats_;
  std::atomic<bool> checks_{false};
  int64_t violations_ = 0;
  std::unordered_map<void*, int64_t> fenced_;
};

CpuAllocator& instance() {
  // Never destroyed: storages held by static objects are freed after static destructors ran.
  static auto* allocator = [] {
    pthread_atfork([] { instance().before_fork(); }, [] { instance().after_fork(); },
                   [] { instance().after_fork(); });
    return new CpuAllocator;
  }();
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
