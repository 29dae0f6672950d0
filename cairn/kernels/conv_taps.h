// Which taps of a convolution meet data, along one axis.
#pragma once

#include <cstdint>

namespace cairn::kernels {

// Parameters of one axis of a convolution.
struct AxisGeometry {
  int64_t in, out, k, stride, pad, dil;
};

// Output coordinates for which tap t meets data: begin <= r < end.
struct ValidRange {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};
inline ValidRange valid_outputs(const AxisGeometry& g, int64_t t) {
  const int64_t shift = t * g.dil - g.pad;  // input = output * stride + shift
  const int64_t begin = shift >= 0 ? 0 : (-shift + g.stride - 1) / g.stride;
  const int64_t end = g.in - 1 - shift < 0 ? 0 : (g.in - 1 - shift) / g.stride + 1;
  return {begin < g.out ? begin : g.out, end < g.out ? end : g.out};
}

// Whether any output meets data through tap t; no tap of an axis without outputs does.
inline bool meets_data(const AxisGeometry& g, int64_t t) { return valid_outputs(g, t).count() > 0; }

}  // namespace cairn::kernels
