// Picking by index, triangles, one-hot rows and the places of what is not zero.
// Invariant: an index out of range reads and writes nothing; what it should have given is 0.
#include "cairn/kernels/indexing.h"

#include "cairn/kernels/cuda/reduce.cuh"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::global_thread;
using cairn::cuda::grid_for;
using cairn::cuda::kAllLanes;
using cairn::cuda::kWarp;
using cairn::cuda::launch;
using cairn::cuda::widen;

// Moving bits asks only for their size.
template <class Body>
void dispatch_size(int64_t size, Body&& body) {
  switch (size) {
    case 1:
      return body.template operator()<uint8_t>();
    case 2:
      return body.template operator()<uint16_t>();
    case 4:
      return body.template operator()<uint32_t>();
    case 8:
      return body.template operator()<uint64_t>();
    default:
      return body.template operator()<uint4>();
  }
}

// --- index_select
// -------------------------------------------------------------------------------

// Rows of `row` units of U.
template <class U, class I>
__global__ void select_rows(U* y, const U* x, const I* index, int64_t total, int64_t n, Split count,
                            Split row) {
  const int64_t e = global_thread();
  if (e >= total) return;
  const int64_t item = row.quotient(e);
  const int64_t o = count.quotient(item);
  const auto pick = static_cast<int64_t>(index[item - o * count.value]);
  U value{};
  if (pick >= 0 && pick < n) value = x[(o * n + pick - item) * row.value + e];
  y[e] = value;
}

void index_select(Out y, In x, In index, int64_t outer, int64_t n, int64_t inner) {
  const int64_t bytes = inner * item_size(x.dtype());
  const auto places = reinterpret_cast<uintptr_t>(x.raw_data()) |
                      reinterpret_cast<uintptr_t>(y.raw_data()) | static_cast<uintptr_t>(bytes);
  const int64_t unit = std::min<int64_t>(16, static_cast<int64_t>(places & (~places + 1)));
  const int64_t count = index.numel();
  const int64_t row = bytes / unit;
  const int64_t total = outer * count * row;
  if (total == 0) return;
  dispatch_size(unit, [&]<class U>() {
    auto* const to = static_cast<U*>(y.raw_data());
    const auto* const from = static_cast<const U*>(x.raw_data());
    if (index.dtype() == DType::i64)
      launch(x.device(), "index_select", select_rows<U, int64_t>, grid_for(total), to, from,
             index.data<int64_t>(), total, n, Split(count), Split(row));
    else
      launch(x.device(), "index_select", select_rows<U, int32_t>, grid_for(total), to, from,
             index.data<int32_t>(), total, n, Split(count), Split(row));
  });
}

// --- gather
// -------------------------------------------------------------------------------------

// axes: y, x (0 along the dimension), index.
template <class U>
__global__ void gather_elements(U* y, const U* x, const int64_t* index, Axes<3> axes, int64_t n,
                                int64_t x_step) {
  const int64_t i = global_thread();
  if (i >= axes.count) return;
  const auto at = axes.offsets(i);
  const int64_t pick = index[at.at[2]];
  U value{};
  if (pick >= 0 && pick < n) value = x[at.at[1] + pick * x_step];
  y[at.at[0]] = value;
}

void gather(Out y, In x, int64_t dim, In index) {
  if (index.numel() == 0) return;
  const bool point = index.dim() == 0;
  const auto d = static_cast<size_t>(dim);
  Shape x_strides = x.strides();
  if (!point) x_strides[d] = 0;
  const Axes<3> axes = row_major<3>(index.shape(), {&y.strides(), &x_strides, &index.strides()});
  dispatch_size(item_size(x.dtype()), [&]<class U>() {
    launch(x.device(), "gather", gather_elements<U>, grid_for(axes.count),
           static_cast<U*>(y.raw_data()), static_cast<const U*>(x.raw_data()),
           index.data<int64_t>(), axes, point ? 1 : x.shape()[d], point ? 1 : x.strides()[d]);
  });
}

// --- triangles and one-hot rows
// -----------------------------------------------------------------

struct Matrices {
  Axes<2> starts;  // of y and x
  Split rows, cols;
  int64_t row_step[2], col_step[2];
};

template <class U>
__global__ void triangle_elements(U* y, const U* x, Matrices m, int64_t diagonal, bool upper) {
  const int64_t i = global_thread();
  if (i >= m.starts.count * m.rows.value * m.cols.value) return;
  const int64_t line = m.cols.quotient(i);
  const int64_t c = i - line * m.cols.value;
  const int64_t matrix = m.rows.quotient(line);
  const int64_t r = line - matrix * m.rows.value;
  const auto at = m.starts.offsets(matrix);
  U value{};
  if (upper ? c - r >= diagonal : c - r <= diagonal)
    value = x[at.at[1] + r * m.row_step[1] + c * m.col_step[1]];
  y[at.at[0] + r * m.row_step[0] + c * m.col_step[0]] = value;
}

void triangle(Out y, In x, int64_t diagonal, bool upper) {
  if (x.numel() == 0) return;
  Matrices m{{},
             Split(x.size(-2)),
             Split(x.size(-1)),
             {y.stride(-2), x.stride(-2)},
             {y.stride(-1), x.stride(-1)}};
  for (size_t d = x.shape().size() - 2; d-- > 0;)
    m.starts.add(x.shape()[d], {y.strides()[d], x.strides()[d]});
  dispatch_size(item_size(x.dtype()), [&]<class U>() {
    launch(x.device(), "triangle", triangle_elements<U>, grid_for(x.numel()),
           static_cast<U*>(y.raw_data()), static_cast<const U*>(x.raw_data()), m, diagonal, upper);
  });
}

__global__ void one_hot_rows(int64_t* y, const int64_t* classes, int64_t n, int64_t num_classes) {
  const int64_t i = global_thread();
  if (i >= n) return;
  const int64_t c = classes[i];
  if (c >= 0 && c < num_classes) y[i * num_classes + c] = 1;
}

void one_hot(Out y, In classes, int64_t num_classes) {
  const int64_t n = classes.numel();
  if (n == 0) return;
  launch(y.device(), "one_hot", one_hot_rows, grid_for(n), y.data<int64_t>(),
         classes.data<int64_t>(), n, num_classes);
}

// --- nonzero: each block has a part of the elements, and counts those of the parts before it
// -----

constexpr int kThreads = 256;

template <class T>
struct Parts {
  const T* x;
  Axes<1> axes;
  int64_t each;  // elements of a part, a multiple of kThreads
  __device__ bool operator()(int64_t i) const {
    return i < axes.count && widen(x[axes.offsets(i).at[0]]) != Compute<T>(0);
  }
};

struct Coordinates {
  int rank;
  Split size[kMaxRank];
};

template <class T>
__global__ void count_parts(int64_t* counts, Parts<T> parts) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * parts.each;
  int64_t total = 0;
  for (int64_t i = 0; i < parts.each; i += kThreads)
    total += __syncthreads_count(parts(first + i + threadIdx.x));
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// How many threads before this one have `found`, and the block's number of them.
__device__ inline int rank_in_block(bool found, int& total) {
  __shared__ int warps[kThreads / kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const unsigned votes = __ballot_sync(kAllLanes, found);
  __syncthreads();  // the last call's readers are done
  if (lane == 0) warps[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1u));
  total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  return before;
}

template <class T>
__global__ void write_parts(int64_t* out, const int64_t* counts, Parts<T> parts,
                            Coordinates coordinates) {
  int64_t place = 0;
  for (int b = static_cast<int>(threadIdx.x); b < static_cast<int>(blockIdx.x); b += kThreads)
    place += counts[b];
  place = cairn::cuda::block_reduce(place, int64_t{0}, cairn::cuda::Plus{});
  const int64_t first = static_cast<int64_t>(blockIdx.x) * parts.each;
  for (int64_t i = 0; i < parts.each; i += kThreads) {
    int64_t flat = first + i + threadIdx.x;
    const bool found = parts(flat);
    int total = 0;
    const int before = rank_in_block(found, total);
    if (found) {
      int64_t* const to = out + (place + before) * coordinates.rank;
      for (int d = coordinates.rank; d-- > 0;) {
        const int64_t rest = coordinates.size[d].quotient(flat);
        to[d] = flat - rest * coordinates.size[d].value;
        flat = rest;
      }
    }
    place += total;
  }
}

void nonzero(Out indices, In x) {
  const int64_t n = x.numel();
  if (n == 0) return;
  constexpr int64_t kParts = 4096;  // at most, since each block reads the others' counts
  const int64_t steps = std::max<int64_t>(4, (n + kThreads * kParts - 1) / (kThreads * kParts));
  const int64_t each = steps * kThreads;
  const auto blocks = static_cast<unsigned>((n + each - 1) / each);
  Coordinates coordinates{static_cast<int>(x.dim()), {}};
  for (int d = 0; d < coordinates.rank; ++d)
    coordinates.size[d] = Split(x.shape()[static_cast<size_t>(d)]);
  const Tensor counts = empty({blocks}, {DType::i64, x.device()});
  dispatch_bytes(x.dtype(), [&]<class T>() {
    const Parts<T> parts{static_cast<const T*>(x.raw_data()),
                         row_major<1>(x.shape(), {&x.strides()}), each};
    launch(x.device(), "nonzero_counts", count_parts<T>, {dim3(blocks), dim3(kThreads)},
           counts.data<int64_t>(), parts);
    launch(x.device(), "nonzero", write_parts<T>, {dim3(blocks), dim3(kThreads)},
           indices.data<int64_t>(), counts.data<int64_t>(), parts, coordinates);
  });
}

}  // namespace

void fill_indexing() {
  index_select_fwd.fill(DeviceType::cuda, index_select);
  gather_fwd.fill(DeviceType::cuda, gather);
  triangle_fwd.fill(DeviceType::cuda, triangle);
  one_hot_fwd.fill(DeviceType::cuda, one_hot);
  nonzero_fwd.fill(DeviceType::cuda, nonzero);
}

}  // namespace cairn::kernels::cuda
