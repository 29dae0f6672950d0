// The pool of small objects: per thread, one list of free blocks for every 64 bytes of size.
#include "cairn/tensor/pool.h"

#include <new>

// The address sanitizer is to see a use after the end.
#if defined(__SANITIZE_ADDRESS__)
#define CAIRN_POOL_KEEPS_NOTHING
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CAIRN_POOL_KEEPS_NOTHING
#endif
#endif

namespace cairn {
namespace {

constexpr size_t kUnit = 64;
constexpr size_t kClasses = 16;  // up to 1 KiB; what is larger costs more to fill than to allocate
#if defined(CAIRN_POOL_KEEPS_NOTHING)
constexpr int kKept = 0;
#else
constexpr int kKept = 1024;  // blocks of one class; the graph of a step has hundreds of nodes
#endif

struct FreeBlock {
  FreeBlock* next;
};

// Trivially destructible, so that objects which outlive the thread's other locals can still be
// freed.
struct Lists {
  FreeBlock* first[kClasses];
  int room[kClasses];  // blocks that may be kept beside those that are
  bool started;
};
constinit thread_local Lists lists{};

struct GiveBack {
  ~GiveBack() {
    for (size_t i = 0; i < kClasses; ++i) {
      lists.room[i] = 0;
      while (FreeBlock* block = lists.first[i]) {
        lists.first[i] = block->next;
        ::operator delete(block);
      }
    }
  }
};

// The first block that a thread frees, or one too many.
void free_slowly(void* block, size_t at) noexcept {
  if (lists.started) return ::operator delete(block);
  thread_local GiveBack at_end;
  static_cast<void>(at_end);
  lists.started = true;
  for (int& room : lists.room) room = kKept;
  if (kKept == 0) return ::operator delete(block);
  --lists.room[at];
  lists.first[at] = new (block) FreeBlock{nullptr};
}

constexpr size_t class_of(size_t bytes) { return (bytes - 1) / kUnit; }

}  // namespace

void* pool_allocate(size_t bytes) {
  const size_t at = class_of(bytes);
  if (at >= kClasses) return ::operator new(bytes);
  FreeBlock* block = lists.first[at];
  if (block == nullptr) [[unlikely]]
    return ::operator new((at + 1) * kUnit);
  lists.first[at] = block->next;
  ++lists.room[at];
  return block;
}

void pool_free(void* block, size_t bytes) noexcept {
  const size_t at = class_of(bytes);
  if (at >= kClasses) return ::operator delete(block);
  if (lists.room[at] == 0) [[unlikely]]
    return free_slowly(block, at);
  --lists.room[at];
  lists.first[at] = new (block) FreeBlock{lists.first[at]};
}

}  // namespace cairn
