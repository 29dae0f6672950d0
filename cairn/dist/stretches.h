// Stretches: what of a tensor is left to reduce outside of known zeros, counted through as if it
// lay in one piece.
// Invariant: the stretches ascend and do not touch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cairn/kernels/zero_ranges.h"

namespace cairn::dist {

class Stretches {
 public:
  // All of [0, numel).
  void reset(int64_t numel) { reset({}, numel); }
  // [0, numel) without the ranges.
  void reset(const kernels::ZeroRanges& zeros, int64_t numel) {
    stretches_.clear();
    count_ = 0;
    kernels::for_each_rest(zeros, numel, [&](int64_t begin, int64_t end) {
      stretches_.push_back({begin, count_, end - begin});
      count_ += end - begin;
    });
  }

  int64_t count() const { return count_; }

  // Calls body(position, index, count) for the pieces of what is counted as [begin, end): `count`
  // elements, of which the first lies at `position` of the tensor and is counted as `index`.
  template <class Body>
  void walk(int64_t begin, int64_t end, Body&& body) const {
    auto at = std::upper_bound(stretches_.begin(), stretches_.end(), begin,
                               [](int64_t index, const Stretch& s) { return index < s.index; });
    if (at != stretches_.begin()) --at;
    for (; begin < end; ++at) {
      const int64_t skipped = begin - at->index;
      const int64_t count = std::min(at->count - skipped, end - begin);
      body(at->position + skipped, begin, count);
      begin += count;
    }
  }

 private:
  struct Stretch {
    int64_t position, index, count;
  };
  std::vector<Stretch> stretches_;
  int64_t count_ = 0;
};

}  // namespace cairn::dist
