// ShmRegions: a table of mappings, looked up by address.
#include "cairn/dist/shm_regions.h"

#include <algorithm>
#include <utility>

#include "cairn/tensor/factory.h"

namespace cairn::dist {
namespace {

// Parts of large regions begin at huge pages.
int64_t stride_of(int64_t bytes) {
  const int64_t multiple = bytes >= kHugePage ? kHugePage : 4096;
  return (bytes + multiple - 1) / multiple * multiple;
}

}  // namespace

Tensor ShmRegions::make(ShmLinks& links, int rank, int size, int64_t numel, DType dtype,
                        const Deadline& deadline) {
  const int64_t bytes = numel * item_size(dtype), stride = stride_of(bytes);
  auto made = std::make_unique<Region>();
  made->memory = links.share(stride * size, deadline);
  made->own = made->memory.data() + rank * stride;
  made->part_bytes = bytes;
  made->stride = stride;
  {
    const std::lock_guard lock(mutex_);
    made->number = ++made_;
    regions_.push_back(made.get());
  }
  std::byte* const own = made->own;
  const std::shared_ptr<void> owner(made.release(), [table = shared_from_this()](void* region) {
    const std::unique_ptr<Region> gone(static_cast<Region*>(region));
    table->forget(gone.get());
  });
  return Tensor(std::make_shared<Storage>(own, bytes, kCPU, owner), dtype, {numel}, {1}, 0);
}

void ShmRegions::forget(const Region* region) {
  const std::lock_guard lock(mutex_);
  std::erase(regions_, region);
}

ShmRegions::Place ShmRegions::find(const void* data, int64_t bytes) const {
  const auto* const at = static_cast<const std::byte*>(data);
  const std::lock_guard lock(mutex_);
  for (const Region* region : regions_)
    if (at >= region->own && at + bytes <= region->own + region->part_bytes)
      return {region->number, at - region->own};
  return {};
}

std::byte* ShmRegions::part(uint64_t region, int rank) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(regions_.begin(), regions_.end(),
                                  [&](const Region* r) { return r->number == region; });
  check(found != regions_.end(), "shm: region ", region, " must be mapped, got none");
  return (*found)->memory.data() + rank * (*found)->stride;
}

}  // namespace cairn::dist
