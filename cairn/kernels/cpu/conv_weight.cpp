// Weight and bias gradients of convolution: for every tap, dW = X^T dY over the pixels that the tap
// reaches, as register tiles whose rows are input channels.
// Invariant: the sum over pixels is cut into parts by the geometry alone and parts are added in
// order, so that the bits do not depend on the number of threads.
#include <cstring>

#include "cairn/kernels/cpu/conv_compute.h"
#include "cairn/kernels/cpu/conv_depthwise.h"
#include "cairn/kernels/cpu/conv_plan.h"
#include "cairn/kernels/cpu/gemm.h"

namespace cairn::kernels::cpu {
namespace {

// Activation bytes of one part: what a core's second-level cache keeps while all taps go by.
constexpr int64_t kPartBytes = 512 * 1024;
constexpr int64_t kMaxParts = 16;
// Products summed in registers between two visits of a tile of dW.
constexpr int64_t kChunk = 256;
// Rows this long are walked along x even where columns are longer.
constexpr int64_t kLongRow = 8;
// Bytes of dY that stay in the second-level cache while merged jobs go over them.
constexpr int64_t kMergedBytes = 256 * 1024;
constexpr int64_t kMinUnits = 32;

// Where pixel (n, y, x) of a map lies.
struct MapStrides {
  int64_t n, y, x;
  int64_t at(int64_t in, int64_t iy, int64_t ix) const { return in * n + iy * y + ix * x; }
};

// `taps` taps side by side from (ty, tx), met by outputs ox .. ox+count-1 of every valid row.
struct Job {
  int64_t ty, tx, taps;
  int64_t ox, ix, count;
};

template <class T>
struct WeightProblem {
  ConvGeometry g;
  int64_t k, columns;  // input and output channels of a group
  const T* x;
  const T* dy;
  MapStrides xs, ys;
  int64_t parts;
  double flops;
};

// Collects terms of one tile column and hands them to the kernels a chunk at a time.
template <class T>
class Accumulator {
 public:
  Accumulator(const TileKernels<T>& kernels, const ColumnPanel& panel, int64_t rows, T* c,
              int64_t ldc, bool accumulate)
      : kernels_(kernels),
        panel_(panel),
        rows_(rows),
        terms_(scratch<GemmTerm<T>>(ScratchSlot::kTerms, kChunk)) {
    tile_.terms = terms_;
    tile_.a_rs = 1;
    tile_.c = c;
    tile_.ldc = ldc;
    tile_.accumulate = accumulate;
  }

  void set_steps(int64_t a_ks, int64_t ldb) {
    tile_.a_ks = a_ks;
    tile_.ldb = ldb;
  }

  void add(const T* a, const T* b, int64_t k) {
    while (k > 0) {
      // Pixels that continue the last term's steps join it.
      GemmTerm<T>* last = count_ > 0 ? terms_ + count_ - 1 : nullptr;
      const int64_t take = std::min(k, kChunk - products_);
      if (last != nullptr && last->a + last->k * tile_.a_ks == a &&
          last->b + last->k * tile_.ldb == b) {
        last->k += take;
      } else {
        terms_[count_++] = {a, b, take};
      }
      a += take * tile_.a_ks;
      b += take * tile_.ldb;
      k -= take;
      products_ += take;
      if (products_ == kChunk) flush();
    }
  }

  // Also writes zeros when nothing was added at all.
  void flush() {
    if (count_ == 0 && tile_.accumulate) return;
    tile_.n_terms = count_;
    run_row_tiles(kernels_, panel_, true, rows_, tile_);
    tile_.accumulate = true;
    count_ = 0;
    products_ = 0;
  }

 private:
  const TileKernels<T>& kernels_;
  ColumnPanel panel_;
  int64_t rows_;
  GemmTerm<T>* terms_;
  GemmTile<T> tile_{};
  int64_t count_ = 0, products_ = 0;
};

// All pixels of images [n0, n1) that a job's taps meet, for input channels from c0 of a group.
template <class T>
void add_job(const WeightProblem<T>& p, const Job& job, int64_t n0, int64_t n1, const T* x,
             const T* dy, Accumulator<T>* sum) {
  const ConvGeometry& g = p.g;
  const ValidRange rows = valid_outputs(axis_y(g), job.ty);
  if (rows.count() <= 0) return;
  const int64_t iy0 = rows.begin * g.stride_h - g.pad_h + job.ty * g.dil_h;
  if (job.count >= rows.count() || job.count >= kLongRow) {
    sum->set_steps(g.stride_w * p.xs.x, p.ys.x);
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t oy = 0; oy < rows.count(); ++oy)
        sum->add(x + p.xs.at(n, iy0 + oy * g.stride_h, job.ix),
                 dy + p.ys.at(n, rows.begin + oy, job.ox), job.count);
  } else {
    // A few columns at the border: walk down instead.
    sum->set_steps(g.stride_h * p.xs.y, p.ys.y);
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t ox = 0; ox < job.count; ++ox)
        sum->add(x + p.xs.at(n, iy0, job.ix + ox * g.stride_w),
                 dy + p.ys.at(n, rows.begin, job.ox + ox), rows.count());
  }
}

// Parts of the sum over images: enough that a part's activations stay in cache, few enough that the
// partial gradients cost less than they save.
int64_t choose_parts(const ConvGeometry& g, int64_t element) {
  const int64_t activations = g.n * (g.h * g.w * g.ci + g.oh * g.ow * g.co) * element;
  const int64_t weights = std::max<int64_t>(1, g.kh * g.kw * (g.ci / g.groups) * g.co * element);
  const int64_t by_cache = (activations + kPartBytes - 1) / kPartBytes;
  const int64_t by_weights = activations / (2 * weights);
  return std::max<int64_t>(1, std::min({by_cache, by_weights, g.n, kMaxParts}));
}

// Several horizontal taps at once when single taps would leave the rows of a tile empty.
template <class T>
bool merges_taps(const WeightProblem<T>& p) {
  return p.g.groups == 1 && p.g.dil_w == 1 && p.g.kw > 1 && p.k < 2 * kMaxTileRows;
}

template <class T>
T* part_output(const WeightProblem<T>& p, T* dw, T* partial, int64_t part) {
  if (p.parts == 1) return dw;
  return partial + part * p.g.kh * p.g.kw * p.k * p.g.co;
}

// One unit: all horizontal taps of row ty as merged jobs that add into the same rows of dW.
template <class T>
void merged_unit(const WeightProblem<T>& p, const RunPlan& runs, int64_t ty, int64_t n0, int64_t n1,
                 const ColumnPanel& panel, T* out, bool add) {
  const TileKernels<T>& kernels = tile_kernels<T>();
  const int64_t co = p.g.co;
  T* row_out = out + ty * p.g.kw * p.k * co + panel.begin;
  if (!add)
    for (int64_t r = 0; r < p.g.kw * p.k; ++r) std::fill_n(row_out + r * co, panel.width, T(0));
  const int64_t image_bytes = p.g.oh * p.g.ow * panel.width * static_cast<int64_t>(sizeof(T));
  const int64_t block = std::max<int64_t>(1, kMergedBytes / image_bytes);
  for (int64_t n = n0; n < n1; n += block) {
    for (const Run& run : runs.runs) {
      if (run.segments == 0) continue;
      const Segment& s = runs.segments[static_cast<size_t>(run.first_segment)];
      const Job job{ty, s.tap, s.taps, run.begin, s.source, run.count};
      Accumulator<T> sum(kernels, panel, s.taps * p.k, row_out + s.tap * p.k * co, co, true);
      add_job(p, job, n, std::min(n1, n + block), p.x, p.dy + panel.begin, &sum);
      sum.flush();
    }
  }
}

template <class T>
void run_merged(const WeightProblem<T>& p, T* dw, bool add, T* partial) {
  thread_local AxisPlan axis;
  thread_local RunPlan run_plan;
  plan_forward_axis(axis_x(p.g), &axis);
  plan_runs(axis, 1, p.g.stride_w, true, p.g.ow + 1, &run_plan);
  const RunPlan& runs = run_plan;
  const TileKernels<T>& kernels = tile_kernels<T>();
  const ColumnPanels panels(p.columns, kernels.lanes, kernels.vectors);
  for_each_unit(p.parts * panels.count() * p.g.kh, p.flops, [&](int64_t unit) {
    const int64_t ty = unit % p.g.kh;
    const int64_t part = unit / p.g.kh / panels.count();
    const ColumnPanel panel = panels[unit / p.g.kh % panels.count()];
    merged_unit(p, runs, ty, part * p.g.n / p.parts, (part + 1) * p.g.n / p.parts, panel,
                part_output(p, dw, partial, part), p.parts == 1 && add);
  });
  const int64_t size = p.g.kh * p.g.kw * p.k * p.g.co;
  if (p.parts > 1) sum_parts(partial, p.parts, size, size, dw, add);
}

// Splits the taps into those that meet data and those that only meet padding.
template <class T>
void sort_taps(const WeightProblem<T>& p, std::vector<int64_t>* live, std::vector<int64_t>* dead) {
  live->clear();
  dead->clear();
  for (int64_t tap = 0; tap < p.g.kh * p.g.kw; ++tap) {
    const bool meets =
        meets_data(axis_y(p.g), tap / p.g.kw) && meets_data(axis_x(p.g), tap % p.g.kw);
    (meets ? live : dead)->push_back(tap);
  }
}

// Zeros the matrices of dead taps, which lie in one piece each.
template <class T>
void zero_taps(const WeightProblem<T>& p, const std::vector<int64_t>& taps, T* dw) {
  constexpr int64_t kBlock = 64 * 1024;
  const int64_t size = p.k * p.g.co;
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  const auto units = static_cast<int64_t>(taps.size()) * blocks;
  for_each_unit(units, static_cast<double>(units * kBlock), [&](int64_t unit) {
    const int64_t lo = unit % blocks * kBlock, hi = std::min(size, lo + kBlock);
    std::fill(dw + taps[static_cast<size_t>(unit / blocks)] * size + lo,
              dw + taps[static_cast<size_t>(unit / blocks)] * size + hi, T(0));
  });
}

// Dead taps hold zeros already, get them, or, when adding, keep what they have.
template <class T>
void settle_dead_taps(const WeightProblem<T>& p, const std::vector<int64_t>& taps, T* dw, bool add,
                      ZeroPattern* zeros) {
  thread_local ZeroPattern dead;
  dead.clear();
  const int64_t size = p.k * p.g.co, numel = p.g.kh * p.g.kw * size;
  for (int64_t tap : taps) dead.append({tap * size, (tap + 1) * size});
  if (zeros != nullptr && *zeros == dead) return;
  if (!add && (zeros == nullptr || !contains(*zeros, dead, numel))) zero_taps(p, taps, dw);
  if (zeros != nullptr) *zeros = add ? intersection(*zeros, dead, numel) : dead;
}

// One unit: one tap of one group, some of the input channels, one panel.
template <class T>
void run_taps(const WeightProblem<T>& p, T* dw, bool add, T* partial, ZeroPattern* zeros) {
  thread_local std::vector<int64_t> live_taps, dead_taps;
  sort_taps(p, &live_taps, &dead_taps);
  settle_dead_taps(p, dead_taps, dw, add, zeros);
  if (live_taps.empty()) return;
  const ConvGeometry& g = p.g;
  const int64_t* taps = live_taps.data();
  const auto n_taps = static_cast<int64_t>(live_taps.size());
  const TileKernels<T>& kernels = tile_kernels<T>();
  const ColumnPanels panels(p.columns, kernels.lanes, kernels.vectors);
  const int64_t outer = p.parts * g.groups * panels.count() * n_taps;
  const int64_t tiles = RowTiles(p.k).count;
  const int64_t blocks = std::clamp<int64_t>(kMinUnits / outer, 1, tiles);
  for_each_unit(outer * blocks, p.flops, [&](int64_t unit) {
    const int64_t block = unit % blocks;
    int64_t rest = unit / blocks;
    const int64_t tap = taps[rest % n_taps];
    rest /= n_taps;
    const ColumnPanel panel = panels[rest % panels.count()];
    rest /= panels.count();
    const int64_t group = rest % g.groups;
    const int64_t part = rest / g.groups;

    const int64_t c0 = block * p.k / blocks, c1 = (block + 1) * p.k / blocks;
    const int64_t column = group * p.columns + panel.begin;
    T* out = part_output(p, dw, partial, part) + (tap * p.k + c0) * g.co + column;
    const ValidRange xs = valid_outputs(axis_x(g), tap % g.kw);
    const Job job{
        tap / g.kw, tap % g.kw, 1, xs.begin, xs.begin * g.stride_w - g.pad_w + tap % g.kw * g.dil_w,
        xs.count()};
    Accumulator<T> sum(kernels, panel, c1 - c0, out, g.co, p.parts == 1 && add);
    add_job(p, job, part * g.n / p.parts, (part + 1) * g.n / p.parts, p.x + group * p.k + c0,
            p.dy + column, &sum);
    sum.flush();
  });
  if (p.parts == 1) return;
  const int64_t size = p.k * g.co, stride = g.kh * g.kw * size;
  for (int64_t i = 0; i < n_taps;) {  // neighbouring live taps are one range
    int64_t end = i + 1;
    while (end < n_taps && taps[end] == taps[end - 1] + 1) ++end;
    sum_parts(partial + taps[i] * size, p.parts, stride, (end - i) * size, dw + taps[i] * size,
              add);
    i = end;
  }
}

double count_flops(const ConvGeometry& g) {
  int64_t y = 0, x = 0;
  for (int64_t t = 0; t < g.kh; ++t) y += std::max<int64_t>(0, valid_outputs(axis_y(g), t).count());
  for (int64_t t = 0; t < g.kw; ++t) x += std::max<int64_t>(0, valid_outputs(axis_x(g), t).count());
  return 2.0 * static_cast<double>(y * x) * static_cast<double>(g.n * (g.ci / g.groups)) *
         static_cast<double>(g.co);
}

}  // namespace

template <class T>
void sum_parts(const T* partial, int64_t parts, int64_t stride, int64_t count, T* out, bool add) {
  constexpr int64_t kBlock = 4096;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  for_each_unit(blocks, 4.0 * static_cast<double>(parts * count), [&](int64_t block) {
    const int64_t lo = block * kBlock, hi = std::min(count, lo + kBlock);
    if (!add) std::memcpy(out + lo, partial + lo, static_cast<size_t>(hi - lo) * sizeof(T));
    for (int64_t part = add ? 0 : 1; part < parts; ++part) {
      const T* in = partial + part * stride;
      for (int64_t i = lo; i < hi; ++i) out[i] += in[i];
    }
  });
}

template <class T>
void conv2d_bwd_weight(const ConvGeometry& geometry, T* dw, bool add, const T* x, const T* dy,
                       ZeroPattern* zeros) {
  ConvGeometry g = geometry;
  if (g.kh == 1 && g.kw == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_h == 0 &&
      g.pad_w == 0 && g.oh == g.h && g.ow == g.w) {
    g.n = g.n * g.h * g.w;  // every pixel is an image of one pixel
    g.h = g.w = g.oh = g.ow = 1;
  }
  const int64_t size = g.kh * g.kw * (g.ci / std::max<int64_t>(1, g.groups)) * g.co;
  if (size <= 0) return;
  if (g.n <= 0 || g.h <= 0 || g.w <= 0 || g.oh <= 0 || g.ow <= 0) {
    if (!add) std::fill_n(dw, size, T(0));
    if (!add && zeros != nullptr) *zeros = {{{0, size}}};
    return;
  }
  if (is_depthwise(g)) {
    if (zeros != nullptr) zeros->clear();
    return depthwise_bwd_weight(g, dw, add, x, dy);
  }
  WeightProblem<T> p{};
  p.g = g;
  p.k = g.ci / g.groups;
  p.columns = g.co / g.groups;
  p.x = x;
  p.dy = dy;
  p.flops = count_flops(g);
  p.parts = choose_parts(g, static_cast<int64_t>(sizeof(T)));
  p.xs = {g.h * g.w * g.ci, g.w * g.ci, g.ci};
  p.ys = {g.oh * g.ow * g.co, g.ow * g.co, g.co};
  T* partial = p.parts > 1 ? scratch<T>(ScratchSlot::kPartial, p.parts * size) : nullptr;
  if (merges_taps(p)) {
    if (zeros != nullptr) zeros->clear();
    run_merged(p, dw, add, partial);
  } else {
    run_taps(p, dw, add, partial, zeros);
  }
}

template <class T>
void conv2d_bwd_bias(const ConvGeometry& g, T* db, bool add, const T* dy) {
  const int64_t pixels = g.n * g.oh * g.ow;
  if (g.co <= 0) return;
  if (pixels <= 0) {
    if (!add) std::fill_n(db, g.co, T(0));
    return;
  }
  // One row of ones times dY, in parts of a fixed number of pixels.
  constexpr int64_t kPixels = 1024;
  const int64_t parts = std::min<int64_t>(64, (pixels + kPixels - 1) / kPixels);
  const TileKernels<T>& kernels = tile_kernels<T>();
  const ColumnPanels panels(g.co, kernels.lanes, kernels.vectors);
  const T one = T(1);
  T* partial = scratch<T>(ScratchSlot::kPartial, parts * g.co);
  for_each_unit(parts, 4.0 * static_cast<double>(pixels * g.co), [&](int64_t part) {
    const int64_t lo = part * pixels / parts, hi = (part + 1) * pixels / parts;
    for (int64_t i = 0; i < panels.count(); ++i) {
      const ColumnPanel panel = panels[i];
      const GemmTerm<T> term{&one, dy + lo * g.co + panel.begin, hi - lo};
      GemmTile<T> tile{};
      tile.terms = &term;
      tile.n_terms = 1;
      tile.ldb = g.co;
      tile.c = partial + part * g.co + panel.begin;
      tile.ldc = g.co;
      run_row_tiles(kernels, panel, false, 1, tile);
    }
  });
  sum_parts(partial, parts, g.co, g.co, db, add);
}

template void sum_parts<float>(const float*, int64_t, int64_t, int64_t, float*, bool);
template void sum_parts<double>(const double*, int64_t, int64_t, int64_t, double*, bool);
template void conv2d_bwd_weight<float>(const ConvGeometry&, float*, bool, const float*,
                                       const float*, ZeroPattern*);
template void conv2d_bwd_weight<double>(const ConvGeometry&, double*, bool, const double*,
                                        const double*, ZeroPattern*);
template void conv2d_bwd_bias<float>(const ConvGeometry&, float*, bool, const float*);
template void conv2d_bwd_bias<double>(const ConvGeometry&, double*, bool, const double*);

}  // namespace cairn::kernels::cpu
