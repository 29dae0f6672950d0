// Reporting a value that is out of range, from a kernel to the host's next wait.
// Invariant: of one check, the first bad element in row-major order is the one that is reported, on
// every run.
#pragma once

#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/cuda/runtime.h"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {

// What a kernel needs to say "op: what must be in [0, size), got V at position P".
struct Report {
  cairn::cuda::Finding* place;
  int text;
  int64_t size;
  Shape shape;  // of the tensor that is checked
};

// op and what are string literals.
inline Report report_for(Device device, std::string_view op, std::string_view what, int64_t size,
                         const Shape& shape) {
  return {cairn::cuda::finding_of(device), cairn::cuda::text_id(op, what), size, shape};
}

// By one thread of a launch: which of several is first would be chance.
__device__ inline void report_out_of_range(const Report& report, int64_t position, int64_t value) {
  cairn::cuda::Finding* const place = report.place;
  if (atomicCAS_system(&place->state, 0, 1) != 0) return;  // an earlier one stays
  place->text = report.text;
  place->position = position;
  place->value = value;
  place->size = report.size;
  place->shape = report.shape;
  __threadfence_system();
  atomicExch_system(&place->state, 2);
}

// The smallest i in [first, n), `step` apart, for which bad(i) holds; n where there is none. The
// whole block gets it.
template <class Bad>
__device__ int64_t first_bad(int64_t n, const Bad& bad, int64_t first, int64_t step) {
  int64_t found = n;
  for (int64_t i = first; i < n && found == n; i += step)
    if (bad(i)) found = i;
  return cairn::cuda::block_reduce(found, n, [](int64_t a, int64_t b) { return a < b ? a : b; });
}

// One block. bad.value(i) is what is reported of element i.
template <class Bad>
__global__ void check_in_one_block(int64_t n, Bad bad, Report report) {
  const int64_t found = first_bad(n, bad, threadIdx.x, blockDim.x);
  if (threadIdx.x == 0 && found < n) report_out_of_range(report, found, bad.value(found));
}

template <class Bad>
__global__ void check_in_blocks(int64_t* firsts, int64_t n, Bad bad) {
  const int64_t found =
      first_bad(n, bad, cairn::cuda::global_thread(), cairn::cuda::global_threads());
  if (threadIdx.x == 0) firsts[blockIdx.x] = found;
}

template <class Bad>
__global__ void report_first(const int64_t* firsts, int blocks, int64_t n, Bad bad, Report report) {
  int64_t found = n;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += static_cast<int>(blockDim.x))
    if (firsts[i] < found) found = firsts[i];
  found = cairn::cuda::block_reduce(found, n, [](int64_t a, int64_t b) { return a < b ? a : b; });
  if (threadIdx.x == 0 && found < n) report_out_of_range(report, found, bad.value(found));
}

// Reports the first of n elements for which bad(i) holds; bad is a functor that goes by value to
// the device: `__device__ bool operator()(int64_t i) const` and `int64_t value(int64_t i) const`.
// One launch for up to kOneBlock elements, two for more.
template <class Bad>
void check_elements(Device device, int64_t n, const Bad& bad, const Report& report) {
  using cairn::cuda::launch;
  constexpr int64_t kOneBlock = 32768;  // 32 elements a thread: about as long as a launch
  constexpr int kThreads = 1024;
  if (n == 0) return;
  if (n <= kOneBlock) {
    const int threads = n <= 128 ? 128 : n <= 1024 ? 256 : kThreads;
    launch(device, "check_in_one_block", check_in_one_block<Bad>,
           {dim3(1), dim3(static_cast<unsigned>(threads))}, n, bad, report);
    return;
  }
  const cairn::cuda::Grid grid = cairn::cuda::grid_for(n, kThreads, 16, 256);
  const auto blocks = static_cast<int>(grid.blocks.x);
  const Tensor firsts = empty({blocks}, {DType::i64, device});
  launch(device, "check_in_blocks", check_in_blocks<Bad>, grid, firsts.data<int64_t>(), n, bad);
  launch(device, "report_first", report_first<Bad>, {dim3(1), dim3(256)}, firsts.data<int64_t>(),
         blocks, n, bad, report);
}

}  // namespace cairn::kernels::cuda
