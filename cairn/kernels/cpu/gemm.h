// General matrix product on raw pointers, and the register-tile kernels that it and the
// convolutions are made of.
// Invariant: work is cut into tiles by shape alone and no sum is ever split by thread count, so the
// results are the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cairn/tensor/parallel.h"

namespace cairn::kernels::cpu {

// C[m,n] (+)= A[m,k] * B[k,n] for T = float, double.
// A(i,l) = a[i*a_rs + l*a_ks], B(l,j) = b[l*b_rs + j*b_cs], C(i,j) = c[i*ldc + j]; strides count
// elements and may be anything (a transposed operand swaps its two strides). With `accumulate` the
// product is added to C, else C is overwritten by bias[j] + product (bias null: by the product; k =
// 0 writes the bias or zeros). C must not overlap A or B. Runs on the library's thread pool;
// scratch is kept per thread and only grows.
template <class T>
void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_rs, int64_t a_ks, const T* b,
          int64_t b_rs, int64_t b_cs, T* c, int64_t ldc, bool accumulate, const T* bias = nullptr);

// --- building blocks for this folder -----------------------------------------------------------

// One term of a batch-reduce product: A rows start at `a`, B rows at `b`, `k` products each.
template <class T>
struct GemmTerm {
  const T* a;
  const T* b;
  int64_t k;
};

// One register tile of C = init + sum over terms of A_term * B_term.
template <class T>
struct GemmTile {
  const GemmTerm<T>* terms;
  int64_t n_terms;
  int64_t a_offset;  // added to every term's `a`, so that one list serves many row tiles
  int64_t a_rs;      // row stride of A (the unit-row kernels take it as 1)
  int64_t a_ks;      // stride of A along k
  int64_t ldb;       // row stride of B; its columns are contiguous
  T* c;
  int64_t ldc;
  const T* bias;    // [columns], added when not accumulating; may be null
  bool accumulate;  // start from C instead of from bias or zero
  int columns;      // masked kernels only: 1 .. lanes-1
};

template <class T>
using TileFn = void (*)(const GemmTile<T>&);

constexpr int kMaxTileRows = 6;
constexpr int kMaxTileVectors = 4;

// The kernels of the CPU target chosen at run time. full[u][r-1][v-1] computes r rows by v whole
// vectors; masked[u][r-1] computes r rows by `columns` < lanes. u = 1: rows of A are adjacent.
template <class T>
struct TileKernels {
  int lanes;    // elements of a vector
  int vectors;  // widest tile, in vectors
  TileFn<T> full[2][kMaxTileRows][kMaxTileVectors];
  TileFn<T> masked[2][kMaxTileRows];
  // dst[j*ld_dst + i] = src[i*ld_src + j] for i < rows, j < cols.
  void (*transpose)(const T* src, int64_t ld_src, int64_t rows, int64_t cols, T* dst,
                    int64_t ld_dst);
};

template <class T>
const TileKernels<T>& tile_kernels();

// Columns [begin, begin + width) of a matrix as one tile wide: `vectors` whole vectors, or a masked
// tile when vectors is 0.
struct ColumnPanel {
  int64_t begin;
  int64_t width;
  int vectors;
};

// How n columns are cut into panels: whole tiles, then the remaining whole vectors, then the rest.
class ColumnPanels {
 public:
  ColumnPanels(int64_t n, int lanes, int vectors) : n_(n), lanes_(lanes), wide_(lanes * vectors) {}
  int64_t count() const {
    const int64_t rest = n_ % wide_;
    return n_ / wide_ + (rest / lanes_ != 0) + (rest % lanes_ != 0);
  }
  ColumnPanel operator[](int64_t i) const {
    const int64_t whole = n_ / wide_;
    if (i < whole) return {i * wide_, wide_, static_cast<int>(wide_ / lanes_)};
    const int64_t vectors = n_ % wide_ / lanes_;
    if (i == whole && vectors != 0)
      return {whole * wide_, vectors * lanes_, static_cast<int>(vectors)};
    const int64_t begin = whole * wide_ + vectors * lanes_;
    return {begin, n_ - begin, 0};
  }

 private:
  int64_t n_, lanes_, wide_;
};

// Row tiles of nearly equal height: 128 rows are 18 tiles of 6 and 4 of 5, not 21 of 6 and one
// of 2.
struct RowTiles {
  explicit RowTiles(int64_t rows) : count((rows + kMaxTileRows - 1) / kMaxTileRows), rows(rows) {}
  int64_t begin(int64_t i) const { return i * rows / count; }
  int64_t count;
  int64_t rows;
};

// Runs all `rows` rows of one panel: tile.c and tile.a_offset stand for the first of them.
template <class T>
void run_row_tiles(const TileKernels<T>& kernels, const ColumnPanel& panel, bool unit_rows,
                   int64_t rows, GemmTile<T> tile) {
  const RowTiles tiles(rows);
  const int64_t a_rs = unit_rows ? 1 : tile.a_rs;
  const int64_t a_offset = tile.a_offset;
  T* const c = tile.c;
  tile.columns = static_cast<int>(panel.width);
  for (int64_t i = 0; i < tiles.count; ++i) {
    const int64_t row = tiles.begin(i);
    const int64_t height = tiles.begin(i + 1) - row;
    tile.a_offset = a_offset + row * a_rs;
    tile.c = c + row * tile.ldc;
    const auto& fn = panel.vectors > 0 ? kernels.full[unit_rows][height - 1][panel.vectors - 1]
                                       : kernels.masked[unit_rows][height - 1];
    fn(tile);
  }
}

// 64-byte aligned scratch of the calling thread that only grows; contents are undefined. A slot is
// in use from its call until the caller's next call for the same slot: each user keeps to its own.
enum class ScratchSlot { kPackB, kPackA, kTerms, kPartial, kCount };
void* scratch_bytes(ScratchSlot slot, size_t bytes);
template <class T>
T* scratch(ScratchSlot slot, int64_t count) {
  return static_cast<T*>(scratch_bytes(slot, static_cast<size_t>(count) * sizeof(T)));
}

// Calls body(unit) for every unit in [0, units) on the pool. Each worker walks its own contiguous
// share in order, then helps with the shares of others: neighbouring units find their data in the
// same core's cache, call after call, and units may still differ in cost. Serial when `flops` would
// not pay for waking a thread.
template <class Body>
void for_each_unit(int64_t units, double flops, Body&& body) {
  constexpr double kSerialFlops = 4e5;  // a few microseconds of one core
  constexpr int64_t kMaxWorkers = 64;
  const int64_t workers = std::min<int64_t>({units, num_threads(), kMaxWorkers});
  if (workers <= 1 || flops < kSerialFlops) {
    for (int64_t unit = 0; unit < units; ++unit) body(unit);
    return;
  }
  struct alignas(64) Share {
    std::atomic<int64_t> next;
  };
  Share shares[kMaxWorkers];
  for (int64_t w = 0; w < workers; ++w)
    shares[w].next.store(w * units / workers, std::memory_order_relaxed);
  parallel_for(0, workers, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t worker = lo; worker < hi; ++worker) {
      for (int64_t i = 0; i < workers; ++i) {
        const int64_t owner = (worker + i) % workers;
        const int64_t end = (owner + 1) * units / workers;
        std::atomic<int64_t>& next = shares[owner].next;
        for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < end;) body(unit);
      }
    }
  });
}

}  // namespace cairn::kernels::cpu
