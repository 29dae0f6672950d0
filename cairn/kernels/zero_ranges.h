// Stretches of a dense tensor's memory that are known to hold zeros, so that kernels and optimizers
// may leave them out.
// Invariant: ranges are ascending, do not touch, and count elements from the tensor's first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace cairn::kernels {

struct ZeroRange {
  int64_t begin = 0, end = 0;
  bool operator==(const ZeroRange&) const = default;
};
using ZeroRanges = std::vector<ZeroRange>;

// Adds a range behind the others.
inline void append_range(ZeroRanges& ranges, ZeroRange range) {
  if (range.begin >= range.end) return;
  if (!ranges.empty() && ranges.back().end == range.begin)
    ranges.back().end = range.end;
  else
    ranges.push_back(range);
}

// What both lists hold.
inline ZeroRanges intersection(const ZeroRanges& a, const ZeroRanges& b) {
  ZeroRanges out;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    append_range(out, {std::max(a[i].begin, b[j].begin), std::min(a[i].end, b[j].end)});
    a[i].end < b[j].end ? ++i : ++j;
  }
  return out;
}

// Calls body(begin, end) for the stretches of [0, numel) outside the ranges, in order.
template <class Body>
void for_each_rest(const ZeroRanges& ranges, int64_t numel, Body&& body) {
  int64_t at = 0;
  for (const ZeroRange& range : ranges) {
    if (range.begin > at) body(at, range.begin);
    at = range.end;
  }
  if (at < numel) body(at, numel);
}

}  // namespace cairn::kernels
