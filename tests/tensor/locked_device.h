// A made-up device whose memory the host cannot read: pages that only its own copies, fills and
// draws open. It stands in for CUDA in tests of what must not touch a device's memory.
#pragma once

#include <sys/mman.h>

#include "cairn/tensor/allocator.h"
#include "cairn/tensor/device.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

namespace cairn::test {

constexpr int64_t kPage = 4096;
inline int64_t whole_pages(int64_t bytes) { return (bytes / kPage + 1) * kPage; }

class LockedPages final : public Allocator {
 public:
  void* allocate(int64_t bytes, bool* zeros) override {
    void* block = mmap(nullptr, static_cast<size_t>(whole_pages(bytes)), PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) throw Error("allocate: no pages");
    if (zeros != nullptr) *zeros = true;
    return block;
  }
  void deallocate(void* block, int64_t bytes) override {
    munmap(block, static_cast<size_t>(whole_pages(bytes)));
  }
  MemoryStats stats() const override { return {}; }
  void reset_peak() override {}
  void release_cached() override {}
};

inline Allocator* locked_pages(Device) {
  static LockedPages pages;
  return &pages;
}

// Opens a tensor's memory and gives it as the CPU's.
class Opened {
 public:
  explicit Opened(const Tensor& t) : storage_(*t.storage()), locked_(t.device() != kCPU) {
    if (locked_) protect(PROT_READ | PROT_WRITE);
    tensor = Tensor(std::make_shared<Storage>(storage_.data(), storage_.bytes(), kCPU, nullptr),
                    t.dtype(), t.shape(), t.strides(), t.offset());
  }
  ~Opened() {
    if (locked_) protect(PROT_NONE);
  }
  Tensor tensor;

 private:
  void protect(int how) {
    REQUIRE(mprotect(storage_.data(), static_cast<size_t>(whole_pages(storage_.bytes())), how) ==
            0);
  }
  Storage& storage_;
  bool locked_;
};

inline int draws = 0;  // calls of the device's random function

namespace locked {
inline void copy(const Tensor& dst, const Tensor& src) {
  const Opened to(dst), from(src);
  raw::copy_(to.tensor, from.tensor);
}
inline void fill(const Tensor& dst, double value) { raw::fill_(Opened(dst).tensor, value); }
inline void random(const Tensor& t, const RandomDraw& draw) {
  ++draws;
  backend_of(DeviceType::cpu, "random").random(Opened(t).tensor, draw);
}
}  // namespace locked

// The made-up device stands in for CUDA while this lives.
class LockedDevice {
 public:
  LockedDevice() { set_backend(DeviceType::cuda, &kBackend); }
  ~LockedDevice() { set_backend(DeviceType::cuda, nullptr); }

 private:
  static constexpr DeviceBackend kBackend{locked_pages, locked::copy, locked::fill, locked::random};
};

inline const Device kLocked(DeviceType::cuda, 0);

}  // namespace cairn::test
