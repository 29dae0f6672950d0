// Forward convolution and data gradient as one gather: every result pixel sums source pixels times
// tap matrices, as register tiles whose rows are images or neighbouring pixels.
// Invariant: each result element is written by one unit of work, its terms in plan order.
#include <cstring>

#include "cairn/kernels/cpu/conv_compute.h"
#include "cairn/kernels/cpu/conv_depthwise.h"
#include "cairn/kernels/cpu/conv_plan.h"
#include "cairn/kernels/cpu/gemm.h"

namespace cairn::kernels::cpu {
namespace {

// Tap matrices of one panel that are walked together; half of a small second-level cache.
constexpr int64_t kTapBytes = 448 * 1024;
// Source bytes of one block of images, kept in the second-level cache beside the taps.
constexpr int64_t kImageBlockBytes = 192 * 1024;
// Rows of one run of pixels handled as one piece.
constexpr int64_t kMaxRun = 32 * kMaxTileRows;
constexpr int64_t kMinUnits = 64;      // enough pieces for an even finish on several threads
constexpr double kMinUnitFlops = 5e5;  // about 5 us: far above the cost of handing a unit out

// A result coordinate on the x axis whose tiles take images as rows.
struct BatchColumn {
  int64_t x;
  int64_t run;
  int64_t index;  // position in the run
};

struct GatherPlan {
  AxisPlan y, x;
  RunPlan runs;
  std::vector<BatchColumn> columns;   // tiles over images
  std::vector<int64_t> pixel_runs;    // runs whose tiles go over pixels
  std::vector<int64_t> tap_groups;    // bounds of groups of vertical taps
  int64_t panel_sets = 1;             // sets of column panels that share a unit
  std::vector<int64_t> tap_y, tap_x;  // tap at each position of the backward order
};

template <class T>
struct Gather {
  int64_t n, result_h, result_w, source_h, source_w;
  int64_t k, k_all;        // source channels of a group, of a pixel
  int64_t columns, n_all;  // result channels of a group, of a pixel
  int64_t groups, kh, kw;
  int64_t step, source_step;  // of runs along x
  T* result;
  const T* source;
  const T* bias;
  bool add;
  const T* weights;
  bool backward;  // weights are read transposed, taps in backward order
  bool packed;    // panels are read from a copy [panel][tap][k][width], else [tap][k][n_all]
  double flops;
};

void plan_columns(int64_t n, GatherPlan* plan) {
  plan->columns.clear();
  plan->pixel_runs.clear();
  for (int64_t r = 0; r < static_cast<int64_t>(plan->runs.runs.size()); ++r) {
    const Run& run = plan->runs.runs[static_cast<size_t>(r)];
    // Runs read neighbouring memory, so they win ties and any height of two full tiles.
    if (run.count >= std::min<int64_t>(n, 2 * kMaxTileRows)) {
      plan->pixel_runs.push_back(r);
    } else {
      for (int64_t i = 0; i < run.count; ++i)
        plan->columns.push_back({run.begin + i * run.step, r, i});
    }
  }
}

// Groups vertical taps so that the tap matrices of a group stay in cache while pixels go by.
template <class T>
void plan_tap_groups(const Gather<T>& p, const TileKernels<T>& kernels, GatherPlan* plan) {
  const int64_t wide = kernels.lanes * kernels.vectors;
  const int64_t panels = ColumnPanels(p.columns, kernels.lanes, kernels.vectors).count();
  int64_t live_x = 0, live_y = 0;
  for (char live : plan->x.live) live_x += live;
  for (char live : plan->y.live) live_y += live;
  const int64_t row_bytes =
      live_x * p.k * std::min(wide, p.columns) * static_cast<int64_t>(sizeof(T));
  const int64_t fit = std::max<int64_t>(1, kTapBytes / std::max<int64_t>(1, row_bytes));
  const int64_t groups = std::max<int64_t>(1, (live_y + fit - 1) / fit);
  const int64_t at_once = std::max<int64_t>(1, fit / std::max<int64_t>(1, live_y));
  plan->panel_sets = (panels + at_once - 1) / at_once;
  while (panels % plan->panel_sets != 0) ++plan->panel_sets;  // equal sets
  plan->tap_groups.clear();
  for (int64_t i = 0; i <= groups; ++i) plan->tap_groups.push_back(i * p.kh / groups);
}

void plan_tap_order(const AxisGeometry& g, std::vector<int64_t>* order) {
  order->assign(static_cast<size_t>(g.k), 0);
  for (int64_t t = 0; t < g.k; ++t) (*order)[static_cast<size_t>(backward_tap_position(g, t))] = t;
}

// Which panels the calling thread's pack buffer holds. Every thread packs what it uses: lines that
// another core has just written cost more than packing them again.
struct PackedSet {
  uint64_t call = 0;
  int64_t set = -1;
};
PackedSet& packed_set() {
  thread_local PackedSet set;
  return set;
}
std::atomic<uint64_t> call_counter{0};

template <class T>
class GatherRunner {
 public:
  GatherRunner(const Gather<T>& p, const GatherPlan& plan)
      : p_(p),
        plan_(plan),
        kernels_(tile_kernels<T>()),
        panels_(p.columns, kernels_.lanes, kernels_.vectors),
        call_(call_counter.fetch_add(1, std::memory_order_relaxed) + 1) {}

  void run() {
    if (!plan_.columns.empty()) {
      const int64_t image_bytes =
          p_.source_h * p_.source_w * p_.k_all * static_cast<int64_t>(sizeof(T));
      int64_t block = std::max<int64_t>(1, kImageBlockBytes / std::max<int64_t>(1, image_bytes));
      block = std::max<int64_t>(block / kMaxTileRows, 1) * kMaxTileRows;
      run_part(static_cast<int64_t>(plan_.columns.size()), (p_.n + block - 1) / block, true);
    }
    if (!plan_.pixel_runs.empty())
      run_part(static_cast<int64_t>(plan_.pixel_runs.size()), p_.n, false);
  }

 private:
  // `width` items a row of the result; `blocks` of images. Panels whose tap matrices fit in cache
  // together share a unit, so that a source pixel is fetched once for all of them.
  void run_part(int64_t width, int64_t blocks, bool batch) {
    const int64_t items = p_.result_h * width;
    const int64_t sets = plan_.panel_sets;
    const int64_t outer = p_.groups * sets * blocks;
    const auto by_cost =
        static_cast<int64_t>(p_.flops / (static_cast<double>(outer) * kMinUnitFlops));
    const int64_t chunks =
        std::min({(kMinUnits + outer - 1) / outer, std::max<int64_t>(by_cost, 1), items});
    for_each_unit(outer * chunks, p_.flops, [&](int64_t unit) {
      const int64_t chunk = unit % chunks;
      const int64_t block = unit / chunks % blocks;
      const int64_t set = unit / chunks / blocks % sets;
      const int64_t group = unit / chunks / blocks / sets;
      Unit u{group, set * panels_.count() / sets, (set + 1) * panels_.count() / sets,
             block * p_.n / blocks, (block + 1) * p_.n / blocks};
      u.weights = unit_weights(u, group * sets + set);
      run_unit(u, width, chunk * items / chunks, (chunk + 1) * items / chunks, batch);
    });
  }

  struct Unit {
    int64_t group;
    int64_t panel0, panel1;
    int64_t image0, image1;
    const T* weights = nullptr;
  };

  // One run of pixels, or one pixel of all images of the unit, as rows of tiles.
  struct Rows {
    int64_t y, x;
    const Run* run;
    int64_t index;  // of x in the run
    int64_t count;
  };

  // The first row of the unit's panels: in the thread's own copy, or in the weights themselves.
  const T* unit_weights(const Unit& u, int64_t set) const {
    if (!p_.packed) return p_.weights + u.group * p_.columns;
    const int64_t first = panels_[u.panel0].begin;
    const ColumnPanel last = panels_[u.panel1 - 1];
    T* out =
        scratch<T>(ScratchSlot::kPackB, p_.kh * p_.kw * p_.k * (last.begin + last.width - first));
    PackedSet& held = packed_set();
    if (held.call != call_ || held.set != set) {
      for (int64_t i = u.panel0; i < u.panel1; ++i)
        pack_panel(u.group, panels_[i], out + p_.kh * p_.kw * p_.k * (panels_[i].begin - first));
      held = {call_, set};
    }
    return out;
  }

  // Live taps of one panel as [tap][k][width].
  void pack_panel(int64_t group, const ColumnPanel& panel, T* out) const {
    for (int64_t ty = 0; ty < p_.kh; ++ty) {
      for (int64_t tx = 0; tx < p_.kw; ++tx, out += p_.k * panel.width) {
        const auto iy = static_cast<size_t>(ty), ix = static_cast<size_t>(tx);
        if (!plan_.y.live[iy] || !plan_.x.live[ix]) continue;
        if (p_.backward) {
          const int64_t tap = plan_.tap_y[iy] * p_.kw + plan_.tap_x[ix];
          const T* src = p_.weights + (tap * p_.columns + panel.begin) * p_.k_all + group * p_.k;
          kernels_.transpose(src, p_.k_all, panel.width, p_.k, out, panel.width);
        } else {
          const T* src =
              p_.weights + (ty * p_.kw + tx) * p_.k * p_.n_all + group * p_.columns + panel.begin;
          for (int64_t l = 0; l < p_.k; ++l)
            std::memcpy(out + l * panel.width, src + l * p_.n_all,
                        static_cast<size_t>(panel.width) * sizeof(T));
        }
      }
    }
  }

  void run_unit(const Unit& u, int64_t width, int64_t item0, int64_t item1, bool batch) {
    GemmTerm<T>* terms = scratch<GemmTerm<T>>(ScratchSlot::kTerms, p_.kh * p_.kw + 1);
    GemmTile<T> tile{};
    tile.terms = terms;
    tile.a_ks = 1;
    for (size_t taps = 0; taps + 1 < plan_.tap_groups.size(); ++taps) {
      tile.accumulate = p_.add || taps > 0;
      for (int64_t item = item0; item < item1; ++item) {
        const auto column = static_cast<size_t>(item % width);
        Rows rows{item / width, 0, nullptr, 0, 0};
        if (batch) {
          const BatchColumn& c = plan_.columns[column];
          rows.run = &plan_.runs.runs[static_cast<size_t>(c.run)];
          rows.x = c.x;
          rows.index = c.index;
          rows.count = u.image1 - u.image0;
          tile.a_rs = p_.source_h * p_.source_w * p_.k_all;
          tile.ldc = p_.result_h * p_.result_w * p_.n_all;
        } else {
          rows.run = &plan_.runs.runs[static_cast<size_t>(plan_.pixel_runs[column])];
          rows.x = rows.run->begin;
          rows.count = rows.run->count;
          tile.a_rs = p_.source_step * p_.k_all;
          tile.ldc = rows.run->step * p_.n_all;
        }
        for (int64_t i = u.panel0; i < u.panel1; ++i) {
          const ColumnPanel panel = panels_[i];
          tile.n_terms = fill_terms(u, panel, rows, taps, terms);
          run_tiles(u, panel, rows, tile);
        }
      }
    }
  }

  void run_tiles(const Unit& u, const ColumnPanel& panel, const Rows& rows,
                 GemmTile<T> tile) const {
    if (tile.n_terms == 0 && tile.accumulate) return;
    const int64_t channel = u.group * p_.columns + panel.begin;
    tile.c =
        p_.result + ((u.image0 * p_.result_h + rows.y) * p_.result_w + rows.x) * p_.n_all + channel;
    tile.bias = p_.bias == nullptr ? nullptr : p_.bias + channel;
    tile.ldb = p_.packed ? panel.width : p_.n_all;
    run_row_tiles(kernels_, panel, false, rows.count, tile);
  }

  int64_t fill_terms(const Unit& u, const ColumnPanel& panel, const Rows& rows, size_t tap_group,
                     GemmTerm<T>* terms) const {
    const int64_t tap0 = plan_.tap_groups[tap_group];
    const int64_t tap1 = plan_.tap_groups[tap_group + 1];
    const int64_t ldb = p_.packed ? panel.width : p_.n_all;
    const T* b = u.weights;
    if (p_.packed)
      b += p_.kh * p_.kw * p_.k * (panel.begin - panels_[u.panel0].begin);
    else
      b += panel.begin;
    const T* a = p_.source + u.image0 * p_.source_h * p_.source_w * p_.k_all + u.group * p_.k;
    const Segment* segments = plan_.runs.segments.data() + rows.run->first_segment;
    int64_t count = 0;
    for (const AxisTap* t = plan_.y.begin(rows.y); t != plan_.y.end(rows.y); ++t) {
      if (t->tap < tap0 || t->tap >= tap1) continue;
      for (int64_t s = 0; s < rows.run->segments; ++s) {
        const int64_t x = segments[s].source + rows.index * p_.source_step;
        terms[count++] = {a + (t->source * p_.source_w + x) * p_.k_all,
                          b + (t->tap * p_.kw + segments[s].tap) * p_.k * ldb,
                          segments[s].taps * p_.k};
      }
    }
    return count;
  }

  const Gather<T>& p_;
  const GatherPlan& plan_;
  const TileKernels<T>& kernels_;
  ColumnPanels panels_;
  uint64_t call_;
};

template <class T>
void plan_and_count(Gather<T>* p, GatherPlan* plan) {
  const TileKernels<T>& kernels = tile_kernels<T>();
  plan_runs(plan->x, p->step, p->source_step, p->k == p->k_all, kMaxRun, &plan->runs);
  plan_columns(p->n, plan);
  plan_tap_groups(*p, kernels, plan);
  p->flops = 2.0 * static_cast<double>(plan->y.taps.size()) *
             static_cast<double>(plan->x.taps.size()) * static_cast<double>(p->n) *
             static_cast<double>(p->k) * static_cast<double>(p->n_all);
}

GatherPlan& thread_plan() {
  thread_local GatherPlan plan;
  return plan;
}

// A 1x1 convolution without stride or padding is one product over all pixels: one long row.
ConvGeometry flatten_pointwise(const ConvGeometry& g) {
  ConvGeometry f = g;
  if (g.kh == 1 && g.kw == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_h == 0 &&
      g.pad_w == 0 && g.oh == g.h && g.ow == g.w) {
    f.n = f.h = f.oh = 1;
    f.w = f.ow = g.n * g.h * g.w;
  }
  return f;
}

}  // namespace

template <class T>
void conv2d_fwd(const ConvGeometry& geometry, T* y, const T* x, const T* weights, const T* bias) {
  const ConvGeometry g = flatten_pointwise(geometry);
  if (g.n <= 0 || g.oh <= 0 || g.ow <= 0 || g.co <= 0) return;
  if (is_depthwise(g)) return depthwise_fwd(g, y, x, weights, bias);
  GatherPlan& plan = thread_plan();
  plan_forward_axis(axis_y(g), &plan.y);
  plan_forward_axis(axis_x(g), &plan.x);
  Gather<T> p{};
  p.n = g.n;
  p.result_h = g.oh, p.result_w = g.ow, p.source_h = g.h, p.source_w = g.w;
  p.k = g.ci / g.groups, p.k_all = g.ci;
  p.columns = g.co / g.groups, p.n_all = g.co;
  p.groups = g.groups, p.kh = g.kh, p.kw = g.kw;
  p.step = 1, p.source_step = g.stride_w;
  p.result = y, p.source = x, p.bias = bias, p.weights = weights;
  plan_and_count(&p, &plan);

  // Where all columns are walked together the weights serve as they lie; a few columns of many are
  // gathered, or their stride would crowd a few sets of the cache. Few rows do not pay for that.
  p.packed = plan.panel_sets > 1 && g.n * g.oh * g.ow >= 8 * kMaxTileRows;
  GatherRunner<T>(p, plan).run();
}

template <class T>
void conv2d_bwd_data(const ConvGeometry& geometry, T* dx, bool add, const T* dy, const T* weights) {
  const ConvGeometry g = flatten_pointwise(geometry);
  if (g.n <= 0 || g.h <= 0 || g.w <= 0 || g.ci <= 0) return;
  if (is_depthwise(g)) return depthwise_bwd_data(g, dx, add, dy, weights);
  GatherPlan& plan = thread_plan();
  const AxisGeometry ay = axis_y(g), ax = axis_x(g);
  plan_backward_axis(ay, &plan.y);
  plan_backward_axis(ax, &plan.x);
  Gather<T> p{};
  p.n = g.n;
  p.result_h = g.h, p.result_w = g.w, p.source_h = g.oh, p.source_w = g.ow;
  p.k = g.co / g.groups, p.k_all = g.co;
  p.columns = g.ci / g.groups, p.n_all = g.ci;
  p.groups = g.groups, p.kh = g.kh, p.kw = g.kw;
  p.step = g.stride_w, p.source_step = 1;
  p.result = dx, p.source = dy, p.add = add, p.weights = weights;
  plan_and_count(&p, &plan);

  plan_tap_order(ay, &plan.tap_y);
  plan_tap_order(ax, &plan.tap_x);
  p.backward = p.packed = true;
  GatherRunner<T>(p, plan).run();
}

template void conv2d_fwd<float>(const ConvGeometry&, float*, const float*, const float*,
                                const float*);
template void conv2d_fwd<double>(const ConvGeometry&, double*, const double*, const double*,
                                 const double*);
template void conv2d_bwd_data<float>(const ConvGeometry&, float*, bool, const float*, const float*);
template void conv2d_bwd_data<double>(const ConvGeometry&, double*, bool, const double*,
                                      const double*);

}  // namespace cairn::kernels::cpu
