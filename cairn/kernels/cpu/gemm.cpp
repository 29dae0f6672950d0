// Whole-matrix product: cuts C into panels and row tiles, packs B (and A where its strides are
// awkward) into scratch, and runs the register-tile kernels on the thread pool.
// Invariant: the cut depends on the shape alone, and each element of C is summed in order of k.
#include "cairn/kernels/cpu/gemm.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace cairn::kernels::cpu {
namespace {

struct ScratchBuffers {
  void* data[static_cast<int>(ScratchSlot::kCount)] = {};
  size_t size[static_cast<int>(ScratchSlot::kCount)] = {};
  ~ScratchBuffers() {
    for (void* p : data) std::free(p);
  }
};

// Bytes of one panel block of B that stay in a core's second-level cache beside the rows of A.
constexpr int64_t kPanelBytes = 160 * 1024;
// Bytes of packed B held at once; larger matrices go through in slices of columns.
constexpr int64_t kPackBytes = 8 * 1024 * 1024;
// Rows of C in one unit of work: high enough to reuse a panel from cache.
constexpr int64_t kUnitRows = 16 * kMaxTileRows;
constexpr int64_t kMinUnitRows = 6 * kMaxTileRows;
// Panels of one unit, so that packing its rows of A pays; fewer when units would become few.
constexpr int64_t kUnitPanels = 8;
constexpr int64_t kMinUnits = 32;
// Transposed rows of A further apart than this share too few cache sets and pages to be read as
// they lie.
constexpr int64_t kFarBytes = 1024;

template <class T>
struct Product {
  int64_t m, n, k;
  const T* a;
  int64_t a_rs, a_ks;
  const T* b;
  int64_t b_rs, b_cs;
  T* c;
  int64_t ldc;
  const T* bias;
};

// Packs rows [k0, k0 + kc) of one panel of B as [kc][width].
template <class T>
void pack_panel(const TileKernels<T>& kernels, const Product<T>& p, int64_t k0, int64_t kc,
                int64_t column, int64_t width, T* out) {
  const T* src = p.b + k0 * p.b_rs + column * p.b_cs;
  if (p.b_cs == 1) {
    for (int64_t l = 0; l < kc; ++l)
      std::memcpy(out + l * width, src + l * p.b_rs, static_cast<size_t>(width) * sizeof(T));
  } else if (p.b_rs == 1) {
    kernels.transpose(src, p.b_cs, width, kc, out, width);
  } else {
    for (int64_t l = 0; l < kc; ++l)
      for (int64_t j = 0; j < width; ++j) out[l * width + j] = src[l * p.b_rs + j * p.b_cs];
  }
}

// Rows of B as they lie serve as panels when a panel's rows are close together or hardly reused.
template <class T>
bool needs_packing(const Product<T>& p, int64_t wide) {
  if (p.b_cs != 1) return true;
  return p.n > 2 * wide && p.m > 32 * kMaxTileRows;
}

template <class T>
struct Slice {
  int64_t k0, kc;
  int64_t panel0, panels;
  bool packed;
  const T* pack;  // [panel][kc][width], panels back to back
};

// Rows of A as the kernels read them.
template <class T>
struct ARows {
  const T* a;
  int64_t a_rs, a_ks;
};

// Whether rows of A are slow to read as they lie when several panels visit them: no direction
// contiguous, or contiguous down the column with far rows.
template <class T>
bool is_awkward(const Product<T>& p) {
  return p.a_ks != 1 && (p.a_rs != 1 || p.a_ks * static_cast<int64_t>(sizeof(T)) > kFarBytes);
}

// How C is cut into units: `rows` stretches of rows times `sets` of panels.
struct UnitGrid {
  int64_t rows, sets;
};
template <class T>
UnitGrid cut_units(const Product<T>& p, int64_t panels) {
  int64_t rows = (p.m + kUnitRows - 1) / kUnitRows;
  int64_t per_unit = std::clamp<int64_t>(panels * rows / kMinUnits, 1, kUnitPanels);
  // Rows that have to be packed are packed once for all panels; lower units make up the number.
  if (is_awkward(p) && p.m > kMaxTileRows) {
    per_unit = std::min(panels, kUnitPanels);
    rows = std::clamp<int64_t>(kMinUnits * per_unit / panels, rows,
                               (p.m + kMinUnitRows - 1) / kMinUnitRows);
  }
  return {rows, (panels + per_unit - 1) / per_unit};
}

// Copies the unit's rows of A to [row][kc] scratch when their own strides would be slow: no
// direction contiguous, or contiguous down the column with far rows that several panels revisit.
template <class T>
ARows<T> rows_of_a(const TileKernels<T>& kernels, const Product<T>& p, const Slice<T>& s,
                   int64_t row0, int64_t rows, int64_t panels) {
  const T* a = p.a + row0 * p.a_rs + s.k0 * p.a_ks;
  if (!is_awkward(p) || (p.a_rs == 1 && panels < 2)) return {a, p.a_rs, p.a_ks};
  // A whole number of pages between rows would send a tile's rows to the same cache sets.
  const int64_t ld = s.kc + 64 / static_cast<int64_t>(sizeof(T));
  T* pack = scratch<T>(ScratchSlot::kPackA, rows * ld);
  if (p.a_rs == 1) {
    kernels.transpose(a, p.a_ks, s.kc, rows, pack, ld);
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t l = 0; l < s.kc; ++l) pack[i * ld + l] = a[i * p.a_rs + l * p.a_ks];
  }
  return {pack, ld, 1};
}

// One unit: rows [row0, row0 + rows) of panels [panel0, panel1) of the slice.
template <class T>
void run_unit(const TileKernels<T>& kernels, const Product<T>& p, const ColumnPanels& panels,
              const Slice<T>& s, int64_t panel0, int64_t panel1, int64_t row0, int64_t rows,
              bool accumulate) {
  const int64_t first = panels[s.panel0].begin;
  const ARows<T> a = rows_of_a(kernels, p, s, row0, rows, panel1 - panel0);
  GemmTerm<T> term{a.a, nullptr, s.kc};
  GemmTile<T> tile{};
  tile.terms = &term;
  tile.n_terms = 1;
  tile.a_rs = a.a_rs;
  tile.a_ks = a.a_ks;
  tile.ldc = p.ldc;
  tile.accumulate = accumulate;
  for (int64_t i = panel0; i < panel1; ++i) {
    const ColumnPanel panel = panels[s.panel0 + i];
    term.b = s.packed ? s.pack + (panel.begin - first) * s.kc : p.b + s.k0 * p.b_rs + panel.begin;
    tile.ldb = s.packed ? panel.width : p.b_rs;
    tile.c = p.c + row0 * p.ldc + panel.begin;
    tile.bias = p.bias != nullptr ? p.bias + panel.begin : nullptr;
    run_row_tiles(kernels, panel, a.a_rs == 1, rows, tile);
  }
}

template <class T>
void run_slice(const TileKernels<T>& kernels, const Product<T>& p, const ColumnPanels& panels,
               Slice<T> s, bool accumulate) {
  const int64_t first = panels[s.panel0].begin;
  const ColumnPanel last = panels[s.panel0 + s.panels - 1];
  const int64_t columns = last.begin + last.width - first;
  if (s.packed) {
    T* pack = scratch<T>(ScratchSlot::kPackB, columns * s.kc);
    for_each_unit(s.panels, 8.0 * static_cast<double>(columns * s.kc), [&](int64_t i) {
      const ColumnPanel panel = panels[s.panel0 + i];
      pack_panel(kernels, p, s.k0, s.kc, panel.begin, panel.width,
                 pack + (panel.begin - first) * s.kc);
    });
    s.pack = pack;
  }
  const UnitGrid grid = cut_units(p, s.panels);
  const int64_t row_units = grid.rows, sets = grid.sets;
  const double flops = 2.0 * static_cast<double>(p.m) * static_cast<double>(columns * s.kc);
  for_each_unit(sets * row_units, flops, [&](int64_t unit) {
    const int64_t set = unit / row_units, block = unit % row_units;
    const int64_t row0 = block * p.m / row_units;
    const int64_t row1 = (block + 1) * p.m / row_units;
    run_unit(kernels, p, panels, s, set * s.panels / sets, (set + 1) * s.panels / sets, row0,
             row1 - row0, accumulate);
  });
}

// A product of nothing.
template <class T>
void start_rows(const Product<T>& p) {
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t j = 0; j < p.n; ++j) p.c[i * p.ldc + j] = p.bias != nullptr ? p.bias[j] : T(0);
}

}  // namespace

void* scratch_bytes(ScratchSlot slot, size_t bytes) {
  thread_local ScratchBuffers buffers;
  const int i = static_cast<int>(slot);
  if (bytes > buffers.size[i]) {
    constexpr size_t kAlign = 64;
    const size_t size = (bytes + bytes / 4 + kAlign - 1) / kAlign * kAlign;
    std::free(buffers.data[i]);
    buffers.data[i] = nullptr;
    buffers.size[i] = 0;
    buffers.data[i] = std::aligned_alloc(kAlign, size);
    if (buffers.data[i] == nullptr) throw std::bad_alloc();
    buffers.size[i] = size;
  }
  return buffers.data[i];
}

template <class T>
void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_rs, int64_t a_ks, const T* b,
          int64_t b_rs, int64_t b_cs, T* c, int64_t ldc, bool accumulate, const T* bias) {
  if (m <= 0 || n <= 0) return;
  const Product<T> p{m, n, k, a, a_rs, a_ks, b, b_rs, b_cs, c, ldc, bias};
  if (k <= 0) {
    if (!accumulate) start_rows(p);
    return;
  }
  const TileKernels<T>& kernels = tile_kernels<T>();
  const int64_t wide = kernels.lanes * kernels.vectors;
  const ColumnPanels panels(n, kernels.lanes, kernels.vectors);
  const bool packed = needs_packing(p, wide);

  const auto element = static_cast<int64_t>(sizeof(T));
  const int64_t k_blocks = (k * wide * element + kPanelBytes - 1) / kPanelBytes;
  const int64_t kc_max = (k + k_blocks - 1) / k_blocks;
  const int64_t slice_panels =
      packed ? std::max<int64_t>(1, kPackBytes / (kc_max * wide * element)) : panels.count();
  for (int64_t panel0 = 0; panel0 < panels.count(); panel0 += slice_panels) {
    const int64_t count = std::min(slice_panels, panels.count() - panel0);
    for (int64_t k0 = 0; k0 < k; k0 += kc_max) {
      const Slice<T> slice{k0, std::min(kc_max, k - k0), panel0, count, packed, nullptr};
      run_slice(kernels, p, panels, slice, accumulate || k0 > 0);
    }
  }
}

template void gemm<float>(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const float*,
                          int64_t, int64_t, float*, int64_t, bool, const float*);
template void gemm<double>(int64_t, int64_t, int64_t, const double*, int64_t, int64_t,
                           const double*, int64_t, int64_t, double*, int64_t, bool, const double*);

}  // namespace cairn::kernels::cpu
