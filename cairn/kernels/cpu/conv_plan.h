// Which taps meet data, along each axis, and how neighbouring pixels share them.
// Invariant: a plan lists exactly the (result, tap, source) triples whose source exists, and its
// vectors keep their capacity, so that rebuilding it in a steady state allocates nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "cairn/kernels/conv_taps.h"
#include "cairn/kernels/cpu/conv_compute.h"

namespace cairn::kernels::cpu {

struct AxisTap {
  int64_t tap;     // index in the weights as the kernel reads them
  int64_t source;  // coordinate that the tap reads
};

// One axis: the taps of result coordinate r are taps[first[r]] .. taps[first[r+1]].
struct AxisPlan {
  std::vector<AxisTap> taps;
  std::vector<int64_t> first;
  std::vector<char> live;  // by tap: whether any coordinate uses it

  int64_t size() const { return static_cast<int64_t>(first.size()) - 1; }
  int64_t count(int64_t r) const { return first[r + 1] - first[r]; }
  const AxisTap* begin(int64_t r) const { return taps.data() + first[r]; }
  const AxisTap* end(int64_t r) const { return taps.data() + first[r + 1]; }
};

inline AxisGeometry axis_y(const ConvGeometry& g) {
  return {g.h, g.oh, g.kh, g.stride_h, g.pad_h, g.dil_h};
}
inline AxisGeometry axis_x(const ConvGeometry& g) {
  return {g.w, g.ow, g.kw, g.stride_w, g.pad_w, g.dil_w};
}

// Result = output coordinates, source = input coordinates.
void plan_forward_axis(const AxisGeometry& g, AxisPlan* plan);

// Position of tap t in the order that the data gradient reads the weights: taps of one residue
// modulo the stride lie side by side and run backwards, so that neighbouring taps of one input
// pixel meet neighbouring output pixels.
int64_t backward_tap_position(const AxisGeometry& g, int64_t t);

// Result = input coordinates, source = output coordinates, taps by backward_tap_position.
void plan_backward_axis(const AxisGeometry& g, AxisPlan* plan);

// `taps` taps side by side in the weights that read `taps` pixels side by side from `source`.
struct Segment {
  int64_t tap, taps, source;
};

// Result coordinates begin, begin + step, … (`count` of them) that use the same taps; the sources
// of each next one are one source step further. Segments hold the sources of the first.
struct Run {
  int64_t begin, step, count;
  int64_t first_segment, segments;
};

struct RunPlan {
  std::vector<Run> runs;
  std::vector<Segment> segments;
};

// Cuts an axis into runs of at most max_count. `merge` joins neighbouring taps into one segment.
void plan_runs(const AxisPlan& axis, int64_t step, int64_t source_step, bool merge,
               int64_t max_count, RunPlan* plan);

// out[i] = (add ? out[i] : 0) + sum over parts of partial[part*stride + i], parts in order.
template <class T>
void sum_parts(const T* partial, int64_t parts, int64_t stride, int64_t count, T* out, bool add);

}  // namespace cairn::kernels::cpu
