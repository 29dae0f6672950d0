// Storage: allocation and release.
#include "cairn/tensor/storage.h"

#include <utility>

namespace cairn {

Storage::Storage(int64_t bytes, Device device)
    : bytes_(bytes),
      device_(device),
      allocator_(backend_of(device.type, "storage").allocator(device)) {
  data_ = static_cast<std::byte*>(allocator_->allocate(bytes, &began_as_zeros_));
}

Storage::Storage(void* data, int64_t bytes, Device device, std::shared_ptr<void> owner)
    : data_(static_cast<std::byte*>(data)),
      bytes_(bytes),
      device_(device),
      owner_(std::move(owner)) {}

Storage::~Storage() {
  if (allocator_) allocator_->deallocate(data_, bytes_);
}

}  // namespace cairn
