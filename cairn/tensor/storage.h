// A block of device memory that tensors share.
// Invariant: the version counts in-place writes by public ops, so that saved tensors can be
// checked.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "cairn/tensor/allocator.h"
#include "cairn/tensor/device.h"

namespace cairn {

class Storage {
 public:
  // `bytes` bytes of the device's allocator, not initialised.
  Storage(int64_t bytes, Device device);
  // Memory of somebody else, which `owner` keeps alive (may be null: the caller does).
  Storage(void* data, int64_t bytes, Device device, std::shared_ptr<void> owner);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  // Whether the memory was known to hold zeros when it was allocated.
  bool began_as_zeros() const { return began_as_zeros_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }

  uint32_t version() const { return version_; }
  const char* last_writer() const { return last_writer_; }
  // `op` must be a string literal.
  void bump_version(const char* op) {
    ++version_;
    last_writer_ = op;
  }

  // Whether a public view op ever made a second tensor on this memory. Sticky: a recorded in-place
  // write would not reach the gradient of the other tensor, so it is refused.
  bool viewed() const { return viewed_.load(std::memory_order_relaxed); }
  void mark_viewed() { viewed_.store(true, std::memory_order_relaxed); }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_;
  uint32_t version_ = 0;
  bool began_as_zeros_ = false;
  const char* last_writer_ = "";
  std::atomic<bool> viewed_{false};
  Allocator* allocator_ = nullptr;  // null when owner_ (or the caller) holds the memory
  std::shared_ptr<void> owner_;
};

}  // namespace cairn
