// Workspaces, from the caching allocator.
#include "cairn/kernels/cuda/workspace.h"

#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "cairn/tensor/cuda/runtime.h"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {
namespace {

struct Pieces {
  std::mutex mutex;
  // The last of each is the largest; earlier ones stay for graphs that were captured with them.
  std::map<std::pair<int, cudaStream_t>, std::vector<Tensor>> by_stream;
};

// Never destroyed: the driver may be gone before static objects are.
Pieces& pieces() {
  static Pieces* const pieces = new Pieces;
  return *pieces;
}

}  // namespace

void* workspace(Device device, int64_t bytes) {
  if (bytes == 0) return nullptr;
  Pieces& all = pieces();
  const std::lock_guard lock(all.mutex);
  std::vector<Tensor>& own = all.by_stream[{device.index, cairn::cuda::current_stream(device)}];
  if (own.empty() || own.back().numel() < bytes) {
    // Doubling bounds what earlier pieces hold to as much again.
    int64_t size = kBlasWorkspace;
    while (size < bytes) size *= 2;
    own.push_back(empty({size}, {DType::u8, device}));
  }
  return own.back().raw_data();
}

}  // namespace cairn::kernels::cuda
