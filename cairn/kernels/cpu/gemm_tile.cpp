// Register-tile kernels, compiled once for each CPU target and chosen at run time.
// Invariant: a kernel reads and writes only the rows and columns of its tile, and adds the products
// of one element of C in the order of the terms and of k.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/gemm_tile.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "cairn/kernels/cpu/gemm.h"

// Register arrays only stay in registers when every loop over them is unrolled, at any -O level.
#ifndef CAIRN_UNROLL
#if defined(__clang__)
#define CAIRN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CAIRN_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 32 vector registers hold 6 x 4 sums, 4 of B and the broadcast; 16 registers hold 6 x 2.
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif

// A partial vector. Before AVX2, Highway's masked load reads the whole vector, so go by element.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> load_part(D d, const T* p, int count) {
#if HWY_TARGET <= HWY_AVX2
  return hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(count)), d, p);
#else
  HWY_ALIGN T lanes[hn::MaxLanes(d)] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return hn::Load(d, lanes);
#endif
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE void store_part(D d, hn::Vec<D> v, T* p, int count) {
#if HWY_TARGET <= HWY_AVX2
  hn::BlendedStore(v, hn::FirstN(d, static_cast<size_t>(count)), d, p);
#else
  HWY_ALIGN T lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
#endif
}

// Holds a vector in a register. gcc would otherwise fold the loads of B into the products of every
// row of a low tile, which makes loads the limit.
template <class V>
HWY_INLINE V in_register(V v) {
#if HWY_ARCH_X86 && HWY_COMPILER_GCC && !HWY_COMPILER_CLANG && HWY_TARGET != HWY_EMU128
  asm("" : "+v"(v.raw));
#endif
  return v;
}

template <class D, int kRows, int kVectors>
struct Tile {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t kLanes = hn::MaxLanes(D());

  template <bool kMasked>
  static HWY_INLINE V load(D d, const T* p, int columns) {
    if constexpr (kMasked) return load_part(d, p, columns);
    return hn::LoadU(d, p);
  }

  // The sums at the start: C, the bias in every row, or zero.
  template <bool kMasked>
  static HWY_INLINE void start(D d, const GemmTile<T>& tile, V (&sum)[kRows][kVectors]) {
    CAIRN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      CAIRN_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
    }
    if (!tile.accumulate && tile.bias == nullptr) return;
    const T* from = tile.accumulate ? tile.c : tile.bias;
    const int64_t step = tile.accumulate ? tile.ldc : 0;
    CAIRN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      CAIRN_UNROLL
      for (int v = 0; v < kVectors; ++v)
        sum[r][v] = load<kMasked>(d, from + r * step + v * kLanes, tile.columns);
    }
  }

  // Adds one term: for each k, kVectors loads of B and kRows broadcasts of A.
  template <bool kUnitRows, bool kMasked>
  static HWY_INLINE void add(D d, const GemmTile<T>& tile, const GemmTerm<T>& term,
                             V (&sum)[kRows][kVectors]) {
    const int64_t a_rs = kUnitRows ? 1 : tile.a_rs;
    const int64_t a_ks = tile.a_ks;
    const int64_t ldb = tile.ldb;
    const T* HWY_RESTRICT a = term.a + tile.a_offset;
    const T* HWY_RESTRICT b = term.b;
    for (int64_t k = term.k; k > 0; --k) {
      V row_b[kVectors];
      CAIRN_UNROLL
      for (int v = 0; v < kVectors; ++v)
        row_b[v] = in_register(load<kMasked>(d, b + v * kLanes, tile.columns));
      CAIRN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const V value = hn::Set(d, a[r * a_rs]);
        CAIRN_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(value, row_b[v], sum[r][v]);
      }
      a += a_ks;
      b += ldb;
    }
  }

  template <bool kMasked>
  static HWY_INLINE void store(D d, const GemmTile<T>& tile, V (&sum)[kRows][kVectors]) {
    CAIRN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      T* c = tile.c + r * tile.ldc;
      CAIRN_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kMasked)
          store_part(d, sum[r][v], c, tile.columns);
        else
          hn::StoreU(sum[r][v], d, c + v * kLanes);
      }
    }
  }
};

template <class T, int kRows, int kVectors, bool kUnitRows, bool kMasked>
HWY_NOINLINE void tile_kernel(const GemmTile<T>& tile) {
  using D = hn::ScalableTag<T>;
  using Ops = Tile<D, kRows, kVectors>;
  const D d;
  typename Ops::V sum[kRows][kVectors];
  Ops::template start<kMasked>(d, tile, sum);
  for (int64_t t = 0; t < tile.n_terms; ++t)
    Ops::template add<kUnitRows, kMasked>(d, tile, tile.terms[t], sum);
  Ops::template store<kMasked>(d, tile, sum);
}

#if HWY_TARGET == HWY_SCALAR
constexpr int64_t kSquareBytes = 0;  // the target without vectors
template <class T>
HWY_INLINE void transpose_square(const T* src, int64_t, T* dst, int64_t) {
  *dst = *src;
}
#else
constexpr int64_t kSquareBytes = 16;

// Transposes one 128-bit square: 4 x 4 floats or 2 x 2 doubles.
HWY_INLINE void transpose_square(const float* src, int64_t ld_src, float* dst, int64_t ld_dst) {
  const hn::FixedTag<float, 4> d;
  const hn::Repartition<uint64_t, decltype(d)> pairs;
  const auto r0 = hn::LoadU(d, src), r1 = hn::LoadU(d, src + ld_src);
  const auto r2 = hn::LoadU(d, src + 2 * ld_src), r3 = hn::LoadU(d, src + 3 * ld_src);
  const auto lo01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));
  const auto hi01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
  const auto lo23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
  const auto hi23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, lo01, lo23)), d, dst);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, lo01, lo23)), d, dst + ld_dst);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, hi01, hi23)), d, dst + 2 * ld_dst);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, hi01, hi23)), d, dst + 3 * ld_dst);
}

HWY_INLINE void transpose_square(const double* src, int64_t ld_src, double* dst, int64_t ld_dst) {
  const hn::FixedTag<double, 2> d;
  const auto r0 = hn::LoadU(d, src), r1 = hn::LoadU(d, src + ld_src);
  hn::StoreU(hn::InterleaveLower(d, r0, r1), d, dst);
  hn::StoreU(hn::InterleaveUpper(d, r0, r1), d, dst + ld_dst);
}
#endif

template <class T>
HWY_NOINLINE void transpose(const T* src, int64_t ld_src, int64_t rows, int64_t cols, T* dst,
                            int64_t ld_dst) {
  constexpr int64_t kSquare = HWY_MAX(kSquareBytes / static_cast<int64_t>(sizeof(T)), 1);
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t square_rows = rows / kSquare * kSquare;
  const int64_t square_cols = cols / kSquare * kSquare;
  // Columns go by the cache line, so that each line of the source is fetched once.
  for (int64_t j0 = 0; j0 < square_cols; j0 += kLine) {
    const int64_t j1 = HWY_MIN(j0 + kLine, square_cols);
    for (int64_t i = 0; i < square_rows; i += kSquare)
      for (int64_t j = j0; j < j1; j += kSquare)
        transpose_square(src + i * ld_src + j, ld_src, dst + j * ld_dst + i, ld_dst);
  }
  for (int64_t i = square_rows; i < rows; ++i)
    for (int64_t j = 0; j < square_cols; ++j) dst[j * ld_dst + i] = src[i * ld_src + j];
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = square_cols; j < cols; ++j) dst[j * ld_dst + i] = src[i * ld_src + j];
}

template <class T, bool kUnitRows, int kRows>
void fill_rows(TileKernels<T>& table) {
  table.full[kUnitRows][kRows - 1][0] = tile_kernel<T, kRows, 1, kUnitRows, false>;
  table.full[kUnitRows][kRows - 1][1] = tile_kernel<T, kRows, 2, kUnitRows, false>;
  if constexpr (kTileVectors == 4) {
    table.full[kUnitRows][kRows - 1][2] = tile_kernel<T, kRows, 3, kUnitRows, false>;
    table.full[kUnitRows][kRows - 1][3] = tile_kernel<T, kRows, 4, kUnitRows, false>;
  }
  table.masked[kUnitRows][kRows - 1] = tile_kernel<T, kRows, 1, kUnitRows, true>;
  if constexpr (kRows > 1) fill_rows<T, kUnitRows, kRows - 1>(table);
}

template <class T>
TileKernels<T> make_table() {
  TileKernels<T> table{};
  table.lanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<T>()));
  table.vectors = kTileVectors;
  fill_rows<T, false, kMaxTileRows>(table);
  fill_rows<T, true, kMaxTileRows>(table);
  table.transpose = transpose<T>;
  return table;
}

const TileKernels<float>* table_f32() {
  static const TileKernels<float> table = make_table<float>();
  return &table;
}
const TileKernels<double>* table_f64() {
  static const TileKernels<double> table = make_table<double>();
  return &table;
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels::cpu {

HWY_EXPORT(table_f32);
HWY_EXPORT(table_f64);

template <>
const TileKernels<float>& tile_kernels<float>() {
  return *HWY_DYNAMIC_DISPATCH(table_f32)();
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  return *HWY_DYNAMIC_DISPATCH(table_f64)();
}

}  // namespace cairn::kernels::cpu
#endif  // HWY_ONCE
