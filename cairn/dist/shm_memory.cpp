// SharedMemory: memfd_create, sealed, mapped where huge pages fit.
#include "cairn/dist/shm_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace cairn::dist {
namespace {

[[noreturn]] void failed(const char* what, int64_t bytes) {
  throw CommError(cat("shared memory: ", what, " of ", bytes,
                      " bytes must succeed, got: ", std::strerror(errno)));
}

}  // namespace

SharedMemory::SharedMemory(int64_t bytes) : bytes_(bytes) {
  descriptor_ = Socket(::memfd_create("cairn", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!descriptor_ || ::ftruncate(descriptor_.fd(), bytes) != 0) failed("a block", bytes);
  ::fcntl(descriptor_.fd(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  map();
}

SharedMemory::SharedMemory(Socket descriptor, int64_t bytes)
    : descriptor_(std::move(descriptor)), bytes_(bytes) {
  struct stat is {};
  if (::fstat(descriptor_.fd(), &is) != 0) failed("the size", bytes);
  if (is.st_size != bytes)
    throw CommError(
        cat("shared memory: size must be ", bytes, " bytes on all ranks, got ", is.st_size));
  map();
}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(bytes_));
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : descriptor_(std::move(other.descriptor_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void SharedMemory::map() {
  const auto size = static_cast<size_t>(bytes_);
  const bool huge = bytes_ >= kHugePage;
  void* place = nullptr;
  // An address of the right alignment is found by reserving more and giving the rest back.
  if (huge) {
    const size_t reserved = size + static_cast<size_t>(kHugePage);
    void* const found = ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) failed("a mapping", bytes_);
    const auto begin = reinterpret_cast<uintptr_t>(found);
    const uintptr_t aligned = (begin + kHugePage - 1) & ~static_cast<uintptr_t>(kHugePage - 1);
    const uintptr_t last = (aligned + size + 4095) & ~uintptr_t{4095};
    if (aligned > begin) ::munmap(found, aligned - begin);
    if (begin + reserved > last) ::munmap(reinterpret_cast<void*>(last), begin + reserved - last);
    place = reinterpret_cast<void*>(aligned);
  }
  void* const at = ::mmap(place, size, PROT_READ | PROT_WRITE, MAP_SHARED | (huge ? MAP_FIXED : 0),
                          descriptor_.fd(), 0);
  if (at == MAP_FAILED) {
    const int reason = errno;
    if (huge) ::munmap(place, size);  // the reserved addresses
    errno = reason;
    failed("a mapping", bytes_);
  }
  data_ = static_cast<std::byte*>(at);
  if (huge) ::madvise(data_, size, MADV_HUGEPAGE);
}

}  // namespace cairn::dist
