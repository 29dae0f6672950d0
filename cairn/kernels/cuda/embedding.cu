// Embedding rows, and the sums of their gradients.
// Invariant: a row of the weight's gradient gets its parts in order of the indices, one after the
// other, so the sum is the CPU's bit for bit. For that the positions are sorted by index first
// (which keeps their order); the sort's memory comes from the caching allocator.
#include "cairn/kernels/embedding.h"

#include "cairn/kernels/cuda/loops.cuh"
#include "cairn/kernels/indexing.h"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::Divisor;
using cairn::cuda::kAllLanes;
using cairn::cuda::kVector;
using cairn::cuda::kWarp;
using cairn::cuda::launch;

constexpr int kThreads = 256;

// A matrix of rows as vectors of kEach elements: element (r, c) lies at r * row_step + c * step.
template <class T>
struct Rows {
  T* data;
  int64_t row_step;
  int64_t step;
};

template <class T>
bool rows_of_vectors(const Rows<T>& rows, int64_t width) {
  constexpr int64_t kEach = kVector<T>;
  return (rows.step == 1 || width == 1) && width % kEach == 0 && rows.row_step % kEach == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

template <class T, int kEach>
__device__ __forceinline__ Vector<T, kEach> load_row(const Rows<T>& rows, int64_t r, int64_t c) {
  return *reinterpret_cast<const Vector<T, kEach>*>(rows.data + r * rows.row_step + c * rows.step);
}
template <class T, int kEach>
__device__ __forceinline__ void store_row(const Rows<T>& rows, int64_t r, int64_t c,
                                          const Vector<T, kEach>& value) {
  *reinterpret_cast<Vector<T, kEach>*>(rows.data + r * rows.row_step + c * rows.step) = value;
}

// --- forward
// -------------------------------------------------------------------------------------

// Thread i moves vector i % groups of row i / groups. A wrong index gives zeros.
template <class T, int kEach>
__global__ void __launch_bounds__(kThreads)
    take_rows(Rows<T> out, Rows<T> weight, const int64_t* index, int64_t size, uint32_t count,
              Divisor groups) {
  const int64_t i = cairn::cuda::global_thread();
  if (i >= count) return;
  const uint32_t row = groups.quotient(static_cast<uint32_t>(i));
  const int64_t c = static_cast<int64_t>(static_cast<uint32_t>(i) - row * groups.value) * kEach;
  const int64_t from = index[row];
  const bool there = from >= 0 && from < size;
  store_row<T, kEach>(out, row, c,
                      there ? load_row<T, kEach>(weight, from, c) : Vector<T, kEach>{});
}

template <class T, int kEach>
void launch_take_rows(Device device, Rows<T> out, const Rows<T>& weight, const int64_t* index,
                      int64_t size, int64_t n, int64_t width) {
  const int64_t groups = width / kEach;
  // Parts whose vectors can be counted in 31 bits; nearly always one.
  const int64_t most = ((int64_t{1} << 31) - 1) / groups;
  for (int64_t at = 0; at < n; at += most) {
    const int64_t count = std::min(most, n - at) * groups;
    launch(device, "embedding_fwd", take_rows<T, kEach>, cairn::cuda::grid_for(count, kThreads),
           Rows<T>{out.data + at * width, width, 1}, weight, index + at, size,
           static_cast<uint32_t>(count), Divisor(groups));
  }
}

void embedding_forward(Out out, In weight, In index) {
  const Device device = weight.device();
  const int64_t size = weight.size(0), width = weight.size(1), n = index.numel();
  check_index(device, "embedding", "index", index, size);
  if (n == 0 || width == 0) return;
  dispatch_floating(weight.dtype(), "embedding", [&]<class T>() {
    const Rows<T> to{out.data<T>(), width, 1};
    const Rows<T> from{weight.data<T>(), weight.stride(0), weight.stride(1)};
    const auto run = rows_of_vectors(to, width) && rows_of_vectors(from, width)
                         ? launch_take_rows<T, kVector<T>>
                         : launch_take_rows<T, 1>;
    run(device, to, from, index.data<int64_t>(), size, n, width);
  });
}

// --- backward
// ------------------------------------------------------------------------------------

constexpr int kTile = 1024;  // keys that one block sorts

// Index and position in one number, so that keys are all different and their order is the one to
// add in. Rows that take no part come last, under index `size`.
__device__ __forceinline__ uint64_t key_of(int64_t index, int64_t position, int64_t size,
                                           int64_t skip) {
  const bool used = index >= 0 && index < size && index != skip;
  return static_cast<uint64_t>(used ? index : size) << 32 | static_cast<uint64_t>(position);
}
__device__ __forceinline__ int64_t index_of(uint64_t key) {
  return static_cast<int64_t>(key >> 32);
}

// How many of the sorted keys are below `key`.
__device__ __forceinline__ int64_t count_below(const uint64_t* keys, int64_t n, uint64_t key) {
  int64_t low = 0;
  for (int64_t high = n; low < high;) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Where keys[i] of n goes when sorted runs of `run` keys are merged pairwise.
__device__ __forceinline__ int64_t merged_place(const uint64_t* keys, int64_t n, int64_t run,
                                                int64_t i) {
  const int64_t pair = i / (2 * run) * (2 * run);
  const bool second = i - pair >= run;
  const int64_t other = second ? pair : pair + run;
  const int64_t left = n - other;
  const int64_t size = left < 0 ? 0 : left < run ? left : run;
  return i - (second ? run : 0) + count_below(keys + other, size, keys[i]);
}

__global__ void __launch_bounds__(kTile)
    sort_tiles(uint64_t* keys, const int64_t* index, int64_t n, int64_t size, int64_t skip) {
  __shared__ uint64_t buffers[2][kTile];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t count = n - first < kTile ? n - first : kTile;
  const auto i = static_cast<int64_t>(threadIdx.x);
  const bool there = i < count;
  if (there) buffers[0][i] = key_of(index[first + i], first + i, size, skip);
  int from = 0;
  for (int64_t run = 1; run < count; run *= 2, from = 1 - from) {
    __syncthreads();
    if (there) buffers[1 - from][merged_place(buffers[from], count, run, i)] = buffers[from][i];
  }
  __syncthreads();
  if (there) keys[first + i] = buffers[from][i];
}

__global__ void __launch_bounds__(kThreads)
    merge_runs(uint64_t* to, const uint64_t* from, int64_t n, int64_t run) {
  const int64_t i = cairn::cuda::global_thread();
  if (i < n) to[merged_place(from, n, run, i)] = from[i];
}

// A warp for each sorted key and stretch of columns (blockIdx.y). The one whose key is the first of
// its row adds up the row.
template <class T, int kEach>
__global__ void __launch_bounds__(kThreads)
    add_rows(Rows<T> dweight, Rows<T> dout, const uint64_t* keys, int64_t n, int64_t width,
             int64_t size) {
  constexpr int kBatch = 8;  // rows of dout in flight
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t start = cairn::cuda::global_thread() / kWarp;
  if (start >= n) return;
  const int64_t row = index_of(keys[start]);
  if (row >= size || (start > 0 && index_of(keys[start - 1]) == row)) return;
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kWarp + lane) * kEach;
  const bool writes = c < width;
  Vector<T, kEach> sum{};
  if (writes) sum = load_row<T, kEach>(dweight, row, c);
  for (int64_t at = start;; at += kWarp) {
    const uint64_t key = at + lane < n ? keys[at + lane] : ~uint64_t{0};
    const int count = __popc(__ballot_sync(kAllLanes, index_of(key) == row));
    for (int first = 0; first < count; first += kBatch) {
      Vector<T, kEach> part[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const uint64_t next = __shfl_sync(kAllLanes, key, first + u);
        const auto position = static_cast<int64_t>(next & 0xffffffffu);
        if (writes && first + u < count) part[u] = load_row<T, kEach>(dout, position, c);
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (!writes || first + u >= count) break;
#pragma unroll
        for (int k = 0; k < kEach; ++k)
          sum.value[k] = narrow<T>(widen(sum.value[k]) + widen(part[u].value[k]));
      }
    }
    if (count < kWarp) break;
  }
  if (writes) store_row<T, kEach>(dweight, row, c, sum);
}

template <class T, int kEach>
void launch_add_rows(Device device, const Rows<T>& dweight, const Rows<T>& dout,
                     const uint64_t* keys, int64_t n, int64_t width, int64_t size) {
  const int64_t stretch = int64_t{kWarp} * kEach;
  cairn::cuda::Grid grid = cairn::cuda::grid_for(n * kWarp, kThreads);
  grid.blocks.y = static_cast<unsigned>((width + stretch - 1) / stretch);
  launch(device, "embedding_bwd", add_rows<T, kEach>, grid, dweight, dout, keys, n, width, size);
}

// The keys of `index`, sorted, in one of the two rows of `scratch` [2, n].
const uint64_t* sorted_keys(const Tensor& scratch, In index, int64_t size, int64_t skip) {
  const Device device = index.device();
  const int64_t n = index.numel();
  auto* from = reinterpret_cast<uint64_t*>(scratch.data<int64_t>());
  auto* to = from + n;
  launch(device, "embedding_bwd", sort_tiles, cairn::cuda::grid_for(n, kTile), from,
         index.data<int64_t>(), n, size, skip);
  for (int64_t run = kTile; run < n; run *= 2, std::swap(from, to))
    launch(device, "embedding_bwd", merge_runs, cairn::cuda::grid_for(n, kThreads), to, from, n,
           run);
  return from;
}

void embedding_backward(Out dweight, In dout, In index, int64_t skip) {
  const Device device = dweight.device();
  const int64_t size = dweight.size(0), width = dweight.size(1), n = index.numel();
  if (n == 0 || width == 0) return;
  constexpr int64_t kMost = int64_t{1} << 31;
  check(n < kMost && size < kMost, "embedding: index and rows must be fewer than 2^31, got ", n,
        " and ", size);
  const Tensor scratch = empty({2, n}, {DType::i64, device});
  const uint64_t* const keys = sorted_keys(scratch, index, size, skip);
  dispatch_floating(dweight.dtype(), "embedding", [&]<class T>() {
    const Rows<T> to{dweight.data<T>(), dweight.stride(0), dweight.stride(1)};
    const Rows<T> from{dout.data<T>(), width, 1};
    const auto run = rows_of_vectors(to, width) && rows_of_vectors(from, width)
                         ? launch_add_rows<T, kVector<T>>
                         : launch_add_rows<T, 1>;
    run(device, to, from, keys, n, width, size);
  });
}

}  // namespace

void fill_embedding() {
  embedding_fwd.fill(DeviceType::cuda, embedding_forward);
  embedding_bwd.fill(DeviceType::cuda, embedding_backward);
}

}  // namespace cairn::kernels::cuda
