// Stretches of a dense tensor's memory that are known to hold zeros, so that kernels and optimizers
// may leave them out.
// Invariant: ranges are ascending, do not touch, and count elements from the tensor's first; those
// of a pattern lie in its first period. A list may say less than is true, never more.
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

// Equal for equal lists and, but for a chance of 2^-64, for these alone.
inline uint64_t hash_of(const ZeroRanges& ranges) {
  uint64_t hash = 0;
  const auto mix = [&](int64_t value) {
    hash = (hash ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  };
  for (const ZeroRange& range : ranges) mix(range.begin), mix(range.end);
  return hash;
}

// Zeros of one tensor's memory. Where filters lie one behind the other, each has zeros at the same
// places: a list of all would be as long as there are filters.
struct ZeroPattern {
  ZeroRanges ranges = {};
  int64_t period = 0;  // the ranges repeat so, up to the tensor's end; 0: they are all

  bool empty() const { return ranges.empty(); }
  void clear() {
    ranges.clear();
    period = 0;
  }
  void append(ZeroRange range) { append_range(ranges, range); }
  // Whether that is all of `numel` elements.
  bool whole(int64_t numel) const {
    return ranges.size() == 1 && ranges[0] == ZeroRange{0, period > 0 ? period : numel};
  }
  bool operator==(const ZeroPattern&) const = default;
};

// What both hold, of a tensor of `numel` elements; of different periods nothing, unless one holds
// all.
inline ZeroPattern intersection(const ZeroPattern& a, const ZeroPattern& b, int64_t numel) {
  if (a.whole(numel)) return b;
  if (b.whole(numel)) return a;
  if (a.period != b.period) return {};
  ZeroPattern out{intersection(a.ranges, b.ranges), a.period};
  if (out.empty()) out.clear();
  return out;
}

// Whether the first holds all that the second does.
inline bool contains(const ZeroPattern& all, const ZeroPattern& some, int64_t numel) {
  return intersection(all, some, numel) == some;
}

// Stretches outside of a pattern: `count` of them, `length` elements each, `step` from one's start
// to the next one's.
struct Rest {
  int64_t begin, length, step, count;
};

// Calls body(rest) for all of [0, numel) outside the pattern; in order where there is no period.
template <class Body>
void for_each_rest(const ZeroPattern& zeros, int64_t numel, Body&& body) {
  const int64_t span = zeros.period > 0 ? zeros.period : numel;
  if (span <= 0) return;
  for_each_rest(zeros.ranges, span, [&](int64_t begin, int64_t end) {
    body(Rest{begin, end - begin, span, numel / span});
  });
}

}  // namespace cairn::kernels
