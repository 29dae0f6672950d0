// Sorting of rows, whole or the first k.
// Invariant: a key orders as the elements do (NaN last, -0 with 0) and is flipped to descend; the
// index is not, so that ties stay in order of index.
#include "cairn/kernels/cuda/sort.cuh"

#include "cairn/kernels/cuda/reduce.cuh"
#include "cairn/kernels/indexing.h"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::widen;

template <class T>
constexpr bool kWide = sizeof(Compute<T>) == 8;
template <class T>
using KeyOf = std::conditional_t<kWide<T>, uint64_t, uint32_t>;
template <class T>
using WordOf = std::conditional_t<kWide<T>, WideWord, Word>;

template <class T>
__device__ __forceinline__ KeyOf<T> key_of(T value) {
  using Key = KeyOf<T>;
  constexpr Key kTop = Key(1) << (sizeof(Key) * 8 - 1);
  const Compute<T> wide = widen(value);
  if constexpr (std::is_integral_v<T>) {
    return static_cast<Key>(wide) ^ (std::is_signed_v<T> ? kTop : Key(0));
  } else {
    if (wide != wide) return ~Key(0);
    const Key bits = std::bit_cast<Key>(wide == 0 ? Compute<T>(0) : wide);
    return (bits & kTop) != 0 ? ~bits : bits | kTop;
  }
}

template <class T>
struct Elements {
  const T* x;
  int64_t n;
  KeyOf<T> flip;
  __device__ WordOf<T> operator()(int64_t row, int64_t i) const {
    return word_of(static_cast<KeyOf<T>>(key_of(x[row * n + i]) ^ flip), i);
  }
};

template <class T>
struct Ranked {
  T* values;
  int64_t* indices;
  const T* x;
  int64_t n, k;
  __device__ void operator()(int64_t row, int64_t place, const WordOf<T>& w) const {
    const int64_t i = index_of(w);
    indices[row * k + place] = i;
    values[row * k + place] = x[row * n + i];
  }
};

void top(Out values, Out indices, In x, bool descending) {
  const int64_t rows = x.size(0);
  const int64_t n = x.size(1);
  const int64_t k = values.size(1);
  check(n < 0xffffffff, "top_rows: a row must have fewer than 2^32 - 1 elements, got ", n);
  dispatch_bytes(x.dtype(), [&]<class T>() {
    const auto* in = static_cast<const T*>(x.raw_data());
    const auto flip = static_cast<KeyOf<T>>(descending ? ~KeyOf<T>(0) : KeyOf<T>(0));
    sort_rows<WordOf<T>>(
        x.device(), rows, n, k, Elements<T>{in, n, flip},
        Ranked<T>{static_cast<T*>(values.raw_data()), indices.data<int64_t>(), in, n, k});
  });
}

}  // namespace

void fill_sort() { top_rows.fill(DeviceType::cuda, top); }

}  // namespace cairn::kernels::cuda
