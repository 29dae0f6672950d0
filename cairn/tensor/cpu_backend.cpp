// The CPU's copies and fills over any strides and dtypes.
// Invariant: dimensions are merged and sorted by the destination's strides first, so dense copies
// run as one loop and layout changes walk the destination in order.
#include "cairn/tensor/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cairn/tensor/cpu_allocator.h"
#include "cairn/tensor/parallel.h"
#include "cairn/tensor/tensor.h"

namespace cairn {
namespace {

constexpr int64_t kGrain = 1 << 15;

// Two strided operands over one index space, outermost dimension first.
struct Loop {
  int rank = 0;
  int64_t size[kMaxRank];
  int64_t dst[kMaxRank];
  int64_t src[kMaxRank];
};

Loop plan(const Tensor& dst, const Tensor& src) {
  size_t order[kMaxRank];
  size_t count = 0;
  for (size_t i = 0; i < dst.shape().size(); ++i)
    if (dst.shape()[i] != 1) order[count++] = i;
  std::stable_sort(order, order + count,
                   [&](size_t a, size_t b) { return dst.strides()[a] > dst.strides()[b]; });
  Loop loop;
  for (size_t k = 0; k < count; ++k) {
    const size_t d = order[k];
    const int64_t size = dst.shape()[d];
    const int64_t ds = dst.strides()[d];
    const int64_t ss = src.strides()[d];
    const int last = loop.rank - 1;
    if (last >= 0 && loop.dst[last] == ds * size && loop.src[last] == ss * size) {
      loop.size[last] *= size;
      loop.dst[last] = ds;
      loop.src[last] = ss;
    } else {
      loop.size[loop.rank] = size;
      loop.dst[loop.rank] = ds;
      loop.src[loop.rank] = ss;
      ++loop.rank;
    }
  }
  if (loop.rank == 0) {
    loop.rank = 1;
    loop.size[0] = 1;
    loop.dst[0] = loop.src[0] = 1;
  }
  return loop;
}

// Calls row(dst_offset, src_offset, n) for pieces of rows of the innermost dimension.
template <class Row>
void walk(const Loop& loop, Row&& row) {
  const int inner = loop.rank - 1;
  const int64_t width = loop.size[inner];
  int64_t rows = 1;
  for (int d = 0; d < inner; ++d) rows *= loop.size[d];
  const auto one_row = [&](int64_t r, int64_t lo, int64_t hi) {
    int64_t to = lo * loop.dst[inner];
    int64_t from = lo * loop.src[inner];
    for (int d = inner - 1; d >= 0; --d) {
      const int64_t i = r % loop.size[d];
      r /= loop.size[d];
      to += i * loop.dst[d];
      from += i * loop.src[d];
    }
    row(to, from, hi - lo);
  };
  if (rows == 1) {
    parallel_for(0, width, kGrain, [&](int64_t lo, int64_t hi) { one_row(0, lo, hi); });
  } else {
    parallel_for(0, rows, std::max<int64_t>(1, kGrain / width), [&](int64_t lo, int64_t hi) {
      for (int64_t r = lo; r < hi; ++r) one_row(r, 0, width);
    });
  }
}

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, bool>)
    return static_cast<bool>(value != From(0));
  else if constexpr (std::is_integral_v<To> && !std::is_integral_v<From>) {
    // A NaN or a value out of range has no integer; it becomes 0 rather than undefined behaviour.
    const auto wide = static_cast<double>(value);
    if (!(wide >= -0x1p63 && wide < 0x1p63)) return To(0);
    return static_cast<To>(static_cast<int64_t>(wide));
  } else if constexpr (kIsHalf<To> && kIsHalf<From>)
    return static_cast<To>(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

void copy(const Tensor& dst, const Tensor& src) {
  const Loop loop = plan(dst, src);
  const int inner = loop.rank - 1;
  const int64_t ds = loop.dst[inner];
  const int64_t ss = loop.src[inner];
  dispatch(dst.dtype(), [&]<class To>() {
    dispatch(src.dtype(), [&]<class From>() {
      auto* to = static_cast<To*>(dst.raw_data());
      const auto* from = static_cast<const From*>(src.raw_data());
      walk(loop, [&](int64_t t, int64_t f, int64_t n) {
        if constexpr (std::is_same_v<To, From>) {
          if (ds == 1 && ss == 1) {
            std::memcpy(to + t, from + f, static_cast<size_t>(n) * sizeof(To));
            return;
          }
          for (int64_t i = 0; i < n; ++i) to[t + i * ds] = from[f + i * ss];
        } else {
          for (int64_t i = 0; i < n; ++i) to[t + i * ds] = convert<To>(from[f + i * ss]);
        }
      });
    });
  });
}

void fill(const Tensor& dst, double value) {
  const Loop loop = plan(dst, dst);
  const int64_t ds = loop.dst[loop.rank - 1];
  dispatch(dst.dtype(), [&]<class T>() {
    auto* to = static_cast<T*>(dst.raw_data());
    const T v = convert<T>(value);
    walk(loop, [&](int64_t t, int64_t, int64_t n) {
      if (ds == 1)
        std::fill_n(to + t, n, v);
      else
        for (int64_t i = 0; i < n; ++i) to[t + i * ds] = v;
    });
  });
}

Allocator* allocator(Device) { return cpu_allocator(); }

}  // namespace

const DeviceBackend kCpuBackend{allocator, copy, fill, cpu_random};

}  // namespace cairn
