// Many stretches of memory in one launch: which part of which stretch a block handles.
// Invariant: stretches are cut into parts of one size, a block each, numbered through in order;
// empty stretches have none.
#pragma once

#include <algorithm>
#include <span>

#include "cairn/tensor/cuda/device.cuh"

namespace cairn::kernels::cuda {

using cairn::cuda::limits_of;

// The stretches of one launch, by value: they and a step's numbers stay below the 4 KiB that a
// kernel's arguments may take.
template <class Run>
struct Runs {
  static constexpr int kMost = 3600 / (sizeof(Run) + sizeof(int));

  Run run[kMost];
  int first[kMost];  // number of the stretch's first block
  int count = 0;
  int blocks = 0;
  int64_t part = 0;  // elements of a block

  // The stretch of a block.
  __device__ __forceinline__ int find(int block) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= block ? low : high) = middle;
    }
    return low;
  }
};

// Elements [begin, end) of stretch `run`, for this block.
struct Part {
  int run;
  int64_t begin, end;
};
template <class Run>
__device__ __forceinline__ Part part_of_block(const Runs<Run>& runs) {
  const int block = static_cast<int>(blockIdx.x);
  const int run = runs.find(block);
  const int64_t begin = (block - runs.first[run]) * runs.part;
  const int64_t end = begin + runs.part;
  return {run, begin, end < runs.run[run].numel ? end : runs.run[run].numel};
}

// Calls body(runs) for as many launches as the stretches need.
template <class Run, class Body>
void for_each_launch(std::span<const Run> all, int64_t part, Body&& body) {
  constexpr int64_t kMostBlocks = int64_t{1} << 30;
  Runs<Run> runs;
  runs.part = part;
  for (const Run& run : all) {
    const int64_t blocks = (run.numel + part - 1) / part;
    if (blocks == 0) continue;
    check(run.piece == 0 || run.numel < (int64_t{1} << 31),
          "kernels: a stretch in pieces must be shorter than 2^31 elements, got ", run.numel);
    check(blocks < kMostBlocks, "kernels: a stretch must be shorter than 2^30 blocks, got ",
          blocks);
    if (runs.count == Runs<Run>::kMost || runs.blocks + blocks > kMostBlocks) {
      body(runs);
      runs.count = runs.blocks = 0;
    }
    runs.run[runs.count] = run;
    runs.first[runs.count++] = runs.blocks;
    runs.blocks += static_cast<int>(blocks);
  }
  if (runs.count > 0) body(runs);
}

// Elements a block should handle: few for small work, so that it spreads over the device, and many
// for large work, so that what a block does once does not count.
template <class Run>
int64_t part_for(Device device, std::span<const Run> runs) {
  int64_t numel = 0;
  for (const Run& run : runs) numel += run.numel;
  const int64_t wanted = numel / (16 * limits_of(device).multiprocessors);
  int64_t part = 1024;
  while (part < 16384 && part < wanted) part *= 2;
  return part;
}

__device__ __forceinline__ bool aligned_to(const void* p, int bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

}  // namespace cairn::kernels::cuda
