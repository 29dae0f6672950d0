// ShmRegions: the tensors of one rank that lie in memory which the other ranks map too.
// Invariant: a region has the same number on all ranks and one part for each of them, and is mapped
// as long as this rank's tensor of it lives.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cairn/dist/shm_links.h"

namespace cairn::dist {

class ShmRegions : public std::enable_shared_from_this<ShmRegions> {
 public:
  // Of one part; region 0 is none.
  struct Place {
    uint64_t region = 0;
    int64_t offset = 0;  // in bytes
  };

  // This rank's part of a new region. All ranks call it in the same order.
  Tensor make(ShmLinks& links, int rank, int size, int64_t numel, DType dtype,
              const Deadline& deadline);
  // Where these bytes are in this rank's parts.
  Place find(const void* data, int64_t bytes) const;
  // The beginning of a rank's part of a region that is mapped.
  std::byte* part(uint64_t region, int rank) const;

 private:
  struct Region {
    uint64_t number;
    std::byte* own;
    int64_t part_bytes, stride;
    SharedMemory memory;
  };
  void forget(const Region* region);

  mutable std::mutex mutex_;
  uint64_t made_ = 0;
  std::vector<Region*> regions_;  // those that live
};

}  // namespace cairn::dist
