// Pinned host memory, cached: what asynchronous copies read from and write to.
// Invariant: a block is handed out again only after the copy that used it is done, which is asked
// for and never waited for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cairn/tensor/cuda/api.h"

namespace cairn::cuda {

// A block for one copy. Fill (or read) it, queue the copy, then call used_by with its stream.
class Pinned {
 public:
  Pinned(Device device, int64_t bytes);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

  std::byte* data() const { return data_; }
  // The block is busy until what `stream` of the device was given so far is done.
  void used_by(cudaStream_t stream);

 private:
  Device device_;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  OwnedEvent event_;
};

}  // namespace cairn::cuda
