// Tap lists of convolution axes. Invariant: coordinates outside the source never enter a plan.
#include "cairn/kernels/cpu/conv_plan.h"

#include <algorithm>

namespace cairn::kernels::cpu {
namespace {

void start(int64_t taps, AxisPlan* plan) {
  plan->taps.clear();
  plan->first.clear();
  plan->first.push_back(0);
  plan->live.assign(static_cast<size_t>(taps), 0);
}

void add_tap(AxisPlan* plan, int64_t tap, int64_t source) {
  plan->taps.push_back({tap, source});
  plan->live[static_cast<size_t>(tap)] = 1;
}

void finish_coordinate(AxisPlan* plan) {
  plan->first.push_back(static_cast<int64_t>(plan->taps.size()));
}

// Whether coordinate r uses the taps of r0, each `shift` sources further.
bool same_taps(const AxisPlan& axis, int64_t r0, int64_t r, int64_t shift) {
  if (axis.count(r0) != axis.count(r)) return false;
  return std::equal(axis.begin(r0), axis.end(r0), axis.begin(r),
                    [shift](const AxisTap& a, const AxisTap& b) {
                      return a.tap == b.tap && a.source + shift == b.source;
                    });
}

void add_segments(const AxisPlan& axis, int64_t r, bool merge, RunPlan* plan) {
  const size_t first = plan->segments.size();
  for (const AxisTap* t = axis.begin(r); t != axis.end(r); ++t) {
    if (merge && plan->segments.size() > first) {
      Segment& last = plan->segments.back();
      if (t->tap == last.tap + last.taps && t->source == last.source + last.taps) {
        ++last.taps;
        continue;
      }
    }
    plan->segments.push_back({t->tap, 1, t->source});
  }
}

}  // namespace

void plan_forward_axis(const AxisGeometry& g, AxisPlan* plan) {
  start(g.k, plan);
  for (int64_t r = 0; r < g.out; ++r) {
    for (int64_t t = 0; t < g.k; ++t) {
      const int64_t source = r * g.stride - g.pad + t * g.dil;
      if (source >= 0 && source < g.in) add_tap(plan, t, source);
    }
    finish_coordinate(plan);
  }
}

int64_t backward_tap_position(const AxisGeometry& g, int64_t t) {
  const int64_t residue = t % g.stride;
  int64_t before = 0;  // taps of smaller residues
  for (int64_t r = 0; r < residue; ++r) before += (g.k - r + g.stride - 1) / g.stride;
  const int64_t mine = (g.k - residue + g.stride - 1) / g.stride;
  return before + (mine - 1 - t / g.stride);
}

void plan_backward_axis(const AxisGeometry& g, AxisPlan* plan) {
  start(g.k, plan);
  for (int64_t r = 0; r < g.in; ++r) {
    for (int64_t t = g.k - 1; t >= 0; --t) {
      const int64_t reach = r + g.pad - t * g.dil;
      if (reach < 0 || reach % g.stride != 0 || reach / g.stride >= g.out) continue;
      add_tap(plan, backward_tap_position(g, t), reach / g.stride);
    }
    finish_coordinate(plan);
  }
}

void plan_runs(const AxisPlan& axis, int64_t step, int64_t source_step, bool merge,
               int64_t max_count, RunPlan* plan) {
  plan->runs.clear();
  plan->segments.clear();
  const int64_t size = axis.size();
  // Coordinates of one residue modulo the step form a chain; a run is a piece of a chain.
  for (int64_t residue = 0; residue < std::min(step, size); ++residue) {
    int64_t r = residue;
    while (r < size) {
      int64_t count = 1;
      while (r + count * step < size && same_taps(axis, r, r + count * step, count * source_step))
        ++count;
      const int64_t pieces = (count + max_count - 1) / max_count;
      for (int64_t i = 0; i < pieces; ++i) {
        const int64_t lo = i * count / pieces;
        const int64_t hi = (i + 1) * count / pieces;
        const auto first = static_cast<int64_t>(plan->segments.size());
        add_segments(axis, r + lo * step, merge, plan);
        plan->runs.push_back({r + lo * step, step, hi - lo, first,
                              static_cast<int64_t>(plan->segments.size()) - first});
      }
      r += count * step;
    }
  }
}

}  // namespace cairn::kernels::cpu
