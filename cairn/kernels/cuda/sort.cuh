// Sorting rows of words, whole or the first k.
// Invariant: all words of a row differ (they end in the element's index), so the order is total and
// the sort stable whatever the algorithm.
#pragma once

#include <bit>

#include "cairn/kernels/cuda/axes.h"
#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {

// A key of 32 bits and an index below 2^32 - 1.
using Word = uint64_t;
// A key of 64 bits.
struct WideWord {
  uint64_t key, index;
  friend constexpr bool operator<(const WideWord& a, const WideWord& b) {
    return a.key != b.key ? a.key < b.key : a.index < b.index;
  }
};
constexpr Word word_of(uint32_t key, int64_t index) {
  return static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(index);
}
constexpr WideWord word_of(uint64_t key, int64_t index) {
  return {key, static_cast<uint64_t>(index)};
}
constexpr int64_t index_of(Word w) { return static_cast<int64_t>(w & 0xffffffffu); }
constexpr int64_t index_of(const WideWord& w) { return static_cast<int64_t>(w.index); }
// Behind every word.
template <class W>
constexpr W last_word() {
  if constexpr (std::is_same_v<W, Word>)
    return ~uint64_t{0};
  else
    return {~uint64_t{0}, ~uint64_t{0}};
}

// How rows are cut into tiles that a block sorts in shared memory.
struct Tiles {
  int64_t rows, n;  // words of a row
  int64_t tiles;    // of a row
  int tile;         // words, a power of 2
  int block;        // words of a block: several tiles where they are short
  int64_t keep;     // words of each tile that are handed on
};

// Bitonic sort of tiles; source(row, i) gives a word, sink(row, tile, i, word) takes the i-th.
template <class W, class Source, class Sink>
__global__ void sort_tiles(Tiles plan, Source source, Sink sink) {
  W* const words = cairn::cuda::dynamic_shared<W>();
  const int threads = static_cast<int>(blockDim.x);
  const auto unit_of = [&](int i) {
    return static_cast<int64_t>(blockIdx.x) * (plan.block / plan.tile) + i / plan.tile;
  };
  for (int i = static_cast<int>(threadIdx.x); i < plan.block; i += threads) {
    const int64_t unit = unit_of(i);
    const int64_t row = unit / plan.tiles;
    const int64_t at = unit % plan.tiles * plan.tile + i % plan.tile;
    words[i] = row < plan.rows && at < plan.n ? source(row, at) : last_word<W>();
  }
  const auto order = [&](int a, int b) {
    if (words[b] < words[a]) {
      const W w = words[a];
      words[a] = words[b];
      words[b] = w;
    }
  };
  for (int size = 2; size <= plan.tile; size *= 2) {
    // Two sorted halves, the second read backwards, become one; every comparison ascends.
    __syncthreads();
    for (int p = static_cast<int>(threadIdx.x); p < plan.block / 2; p += threads) {
      const int start = p / (size / 2) * size;
      const int i = p % (size / 2);
      order(start + i, start + size - 1 - i);
    }
    for (int step = size / 4; step > 0; step /= 2) {
      __syncthreads();
      for (int p = static_cast<int>(threadIdx.x); p < plan.block / 2; p += threads) {
        const int i = p / step * 2 * step + p % step;
        order(i, i + step);
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < plan.block; i += threads) {
    const int64_t unit = unit_of(i);
    const int64_t row = unit / plan.tiles;
    if (row < plan.rows && i % plan.tile < plan.keep)
      sink(row, unit % plan.tiles, i % plan.tile, words[i]);
  }
}

constexpr int kMergeWays = 4;

// Each word goes to its place among its group of kMergeWays sorted runs, which is how many words of
// these come before it.
template <class W, class Sink>
__global__ void merge_runs(const W* words, int64_t rows, Split n, int64_t run, Sink sink) {
  const int64_t e = cairn::cuda::global_thread();
  if (e >= rows * n.value) return;
  const int64_t row = n.quotient(e);
  const int64_t at = e - row * n.value;
  const W* const mine = words + row * n.value;
  const W w = mine[at];
  const int64_t own = at / run;
  const int64_t group = own / kMergeWays * kMergeWays;
  int64_t place = at - own * run;
#pragma unroll
  for (int k = 0; k < kMergeWays; ++k) {
    const int64_t first = (group + k) * run;
    if (group + k == own || first >= n.value) continue;
    int64_t low = first;
    int64_t high = std::min(first + run, n.value);
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (mine[middle] < w)
        low = middle + 1;
      else
        high = middle;
    }
    place += low - first;
  }
  sink(row, 0, group * run + place, w);
}

// Words in memory, [rows, n]; each tile's go behind those of the tile before.
template <class W>
struct Stored {
  W* words;
  int64_t n, each;
  __device__ W operator()(int64_t row, int64_t i) const { return words[row * n + i]; }
  __device__ void operator()(int64_t row, int64_t tile, int64_t i, const W& w) const {
    const int64_t at = tile * each + i;
    if (at < n) words[row * n + at] = w;
  }
};
// The first k go to the sink.
template <class W, class Sink>
struct First {
  Sink sink;
  int64_t k;
  __device__ void operator()(int64_t row, int64_t, int64_t i, const W& w) const {
    if (i < k) sink(row, i, w);
  }
};

template <class W>
constexpr int kTile = 32768 / static_cast<int>(sizeof(W));  // what a block may have without asking

inline Tiles tiles_of(int64_t rows, int64_t n, int64_t keep, int most) {
  constexpr int64_t kLeast = 256;  // words of a block
  const auto tile =
      static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::clamp<int64_t>(n, 1, most))));
  const auto block = static_cast<int>(std::max<int64_t>(tile, kLeast));
  return {rows, n, (n + tile - 1) / tile, tile, block, std::min<int64_t>(keep, tile)};
}

template <class W, class Source, class Sink>
void launch_tiles(Device device, const Tiles& plan, const Source& source, const Sink& sink) {
  const int64_t each = plan.block / plan.tile;
  const int64_t blocks = (plan.rows * plan.tiles + each - 1) / each;
  const int threads = std::min(plan.block / 2, 1024);
  cairn::cuda::launch(device, "sort_tiles", sort_tiles<W, Source, Sink>,
                      {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)),
                       static_cast<size_t>(plan.block) * sizeof(W)},
                      plan, source, sink);
}

template <class W>
Tensor word_memory(Device device, int64_t count) {
  return empty({count * static_cast<int64_t>(sizeof(W))}, {DType::u8, device});
}

// Tiles keep their first k until one tile is left. Few of many: most words are read once.
template <class W, class Source, class Sink>
void sort_few(Device device, int64_t rows, int64_t n, int64_t k, const Source& source,
              const Sink& sink) {
  Tiles plan = tiles_of(rows, n, k, kTile<W>);
  Tensor memory = word_memory<W>(device, rows * plan.tiles * k);
  Stored<W> stored{static_cast<W*>(memory.raw_data()), plan.tiles * k, k};
  launch_tiles<W>(device, plan, source, stored);
  while (stored.n > kTile<W>) {
    plan = tiles_of(rows, stored.n, k, kTile<W>);
    const Tensor next = word_memory<W>(device, rows * plan.tiles * k);
    const Stored<W> to{static_cast<W*>(next.raw_data()), plan.tiles * k, k};
    launch_tiles<W>(device, plan, stored, to);
    memory = next;
    stored = to;
  }
  launch_tiles<W>(device, tiles_of(rows, stored.n, k, kTile<W>), stored, First<W, Sink>{sink, k});
}

// Sorted tiles are merged until one run is left.
template <class W, class Source, class Sink>
void sort_many(Device device, int64_t rows, int64_t n, int64_t k, const Source& source,
               const Sink& sink) {
  const Tensor memory = word_memory<W>(device, 2 * rows * n);
  W* from = static_cast<W*>(memory.raw_data());
  W* to = from + rows * n;
  launch_tiles<W>(device, tiles_of(rows, n, n, kTile<W>), source, Stored<W>{from, n, kTile<W>});
  const cairn::cuda::Grid grid = cairn::cuda::grid_for(rows * n);
  int64_t run = kTile<W>;
  for (; run * kMergeWays < n; run *= kMergeWays) {
    cairn::cuda::launch(device, "merge_runs", merge_runs<W, Stored<W>>, grid, from, rows, Split(n),
                        run, Stored<W>{to, n, 0});
    std::swap(from, to);
  }
  cairn::cuda::launch(device, "merge_runs", merge_runs<W, First<W, Sink>>, grid, from, rows,
                      Split(n), run, First<W, Sink>{sink, k});
}

// The first k of each of `rows` rows of n words, in order: sink(row, place, word) for place < k.
// source(row, i) and sink are functors that go to the device by value.
template <class W, class Source, class Sink>
void sort_rows(Device device, int64_t rows, int64_t n, int64_t k, const Source& source,
               const Sink& sink) {
  if (rows == 0 || k == 0) return;
  if (n <= kTile<W>)
    launch_tiles<W>(device, tiles_of(rows, n, k, kTile<W>), source, First<W, Sink>{sink, k});
  else if (k <= kTile<W> / 4)
    sort_few<W>(device, rows, n, k, source, sink);
  else
    sort_many<W>(device, rows, n, k, source, sink);
}

}  // namespace cairn::kernels::cuda
