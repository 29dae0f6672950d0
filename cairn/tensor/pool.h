// Memory of the small objects that every op makes and drops: tensors, storages, nodes.
// Invariant: a block may be freed on any thread and is then that thread's to hand out again; a
// thread keeps a bounded number of blocks and gives them back when it ends.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

namespace cairn {

// Aligned for every object without an alignment of its own. Throws std::bad_alloc.
void* pool_allocate(size_t bytes);
// `bytes` as given to pool_allocate.
void pool_free(void* block, size_t bytes) noexcept;

template <class T>
struct PoolAllocator {
  using value_type = T;
  PoolAllocator() = default;
  template <class U>
  PoolAllocator(const PoolAllocator<U>&) {}
  T* allocate(size_t n) {
    static_assert(alignof(T) <= alignof(std::max_align_t));
    return static_cast<T*>(pool_allocate(n * sizeof(T)));
  }
  void deallocate(T* block, size_t n) noexcept { pool_free(block, n * sizeof(T)); }
  template <class U>
  bool operator==(const PoolAllocator<U>&) const {
    return true;
  }
};

// As std::make_shared.
template <class T, class... Args>
std::shared_ptr<T> make_pooled(Args&&... args) {
  return std::allocate_shared<T>(PoolAllocator<T>{}, std::forward<Args>(args)...);
}

}  // namespace cairn
