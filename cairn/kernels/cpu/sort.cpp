// Sorting of rows, whole or the first k.
// Invariant: the order is total (value, then index), so it is stable whatever algorithm runs, and
// the indices are sorted in the output's own memory.
#include <algorithm>

#include "cairn/kernels/indexing.h"
#include "cairn/tensor/parallel.h"

namespace cairn::kernels {
namespace cpu {
namespace {

// Whether element i of the row comes before element k.
template <class T>
struct Before {
  const T* row;
  bool descending;
  bool operator()(int64_t i, int64_t k) const {
    const T a = row[i];
    const T b = row[k];
    // NaN is larger than any number and equal to itself.
    const bool nan_a = a != a;
    const bool nan_b = b != b;
    if (nan_a != nan_b) return descending ? nan_a : nan_b;
    if (nan_a || a == b) return i < k;
    return descending ? a > b : a < b;
  }
};

// index[0 … k) = the first k of the row, in order.
template <class T>
void first_k(int64_t* index, int64_t k, int64_t n, const Before<T>& before) {
  for (int64_t i = 0; i < k; ++i) index[i] = i;
  if (k < n) {
    // A heap whose top is the last of the chosen; each better element takes its place.
    std::make_heap(index, index + k, before);
    for (int64_t i = k; i < n; ++i) {
      if (!before(i, index[0])) continue;
      std::pop_heap(index, index + k, before);
      index[k - 1] = i;
      std::push_heap(index, index + k, before);
    }
  }
  std::sort(index, index + k, before);
}

void top(Out values, Out indices, In x, bool descending) {
  const int64_t rows = x.size(0);
  const int64_t n = x.size(1);
  const int64_t k = values.size(1);
  if (k == 0) return;
  constexpr int64_t kGrain = 2048;  // elements worth a thread
  dispatch(x.dtype(), [&]<class T>() {
    const T* in = x.data<T>();
    T* value = values.data<T>();
    int64_t* index = indices.data<int64_t>();
    parallel_for(0, rows, std::max<int64_t>(1, kGrain / n), [&](int64_t lo, int64_t hi) {
      for (int64_t r = lo; r < hi; ++r) {
        const Before<T> before{in + r * n, descending};
        first_k(index + r * k, k, n, before);
        for (int64_t i = 0; i < k; ++i) value[r * k + i] = in[r * n + index[r * k + i]];
      }
    });
  });
}

}  // namespace
}  // namespace cpu

Slot<void(Out, Out, In, bool)> top_rows{"top_rows", cpu::top};

}  // namespace cairn::kernels
