// Sorting of rows, whole or the first k.
// Invariant: the order is total (value, then index), so it is stable whatever algorithm runs, and
// the indices are sorted in the output's own memory.
#include <algorithm>
#include <bit>
#include <functional>

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

// chosen[0 … k) = the first k of word(0 … n), in order.
template <class Word, class Function, class Order>
void first_k(Word* chosen, int64_t k, int64_t n, const Function& word, const Order& before) {
  for (int64_t i = 0; i < k; ++i) chosen[i] = word(i);
  if (k < n) {
    // A heap whose top is the last of the chosen; each better element takes its place.
    std::make_heap(chosen, chosen + k, before);
    for (int64_t i = k; i < n; ++i) {
      const Word next = word(i);
      if (!before(next, chosen[0])) continue;
      std::pop_heap(chosen, chosen + k, before);
      chosen[k - 1] = next;
      std::push_heap(chosen, chosen + k, before);
    }
  }
  std::sort(chosen, chosen + k, before);
}

// A number that is ordered as the elements are, and the same for equal ones.
template <class T>
uint32_t key_of(T value) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<uint32_t>(value) ^ (std::is_signed_v<T> ? 0x80000000u : 0u);
  } else {
    const float wide = static_cast<float>(value);
    if (wide != wide) return ~0u;
    const uint32_t bits = std::bit_cast<uint32_t>(wide == 0 ? 0.0f : wide);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }
}

template <class T>
void first_of_row(int64_t* index, int64_t k, const T* row, int64_t n, bool descending) {
  if constexpr (sizeof(T) <= 4) {
    if (n <= int64_t{1} << 32) {
      // Key and index in one word: comparing two elements reads nothing else.
      const uint32_t flip = descending ? ~0u : 0u;
      auto* words = reinterpret_cast<uint64_t*>(index);
      const auto word = [=](int64_t i) {
        return static_cast<uint64_t>(key_of(row[i]) ^ flip) << 32 | static_cast<uint64_t>(i);
      };
      first_k(words, k, n, word, std::less<uint64_t>{});
      for (int64_t i = 0; i < k; ++i) index[i] = static_cast<int64_t>(words[i] & 0xffffffffu);
      return;
    }
  }
  first_k(
      index, k, n, [](int64_t i) { return i; }, Before<T>{row, descending});
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
        first_of_row(index + r * k, k, in + r * n, n, descending);
        for (int64_t i = 0; i < k; ++i) value[r * k + i] = in[r * n + index[r * k + i]];
      }
    });
  });
}

}  // namespace
}  // namespace cpu

Slot<void(Out, Out, In, bool)> top_rows{"top_rows", cpu::top};

}  // namespace cairn::kernels
