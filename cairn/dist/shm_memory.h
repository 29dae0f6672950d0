// SharedMemory: a block of memory that processes of one host map, each at an address of its own.
// Invariant: it has no name anywhere and cannot change its size, so that it ends with the last
// process that maps it, however that ends, and no process can pull it away under another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cairn/dist/socket.h"

namespace cairn::dist {

class SharedMemory {
 public:
  SharedMemory() = default;
  // New: zeros, which take no memory until they are touched. `bytes` must be above 0.
  explicit SharedMemory(int64_t bytes);
  // That of another process, through its descriptor. CommError where its size is not `bytes`.
  SharedMemory(Socket descriptor, int64_t bytes);
  ~SharedMemory();
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // For others; -1 once close_descriptor() was called. The mapping stays.
  int descriptor() const { return descriptor_.fd(); }
  void close_descriptor() noexcept { descriptor_.close(); }

 private:
  void map();

  Socket descriptor_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Blocks of at least this size begin at a multiple of it and may consist of huge pages.
inline constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace cairn::dist
