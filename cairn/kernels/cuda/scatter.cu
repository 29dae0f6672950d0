// Adding where indices say.
// Invariant: contributions to one element are added by one thread, in the order of the indices.
//
// The indices are sorted together with their places; then each run of equal ones is one element's
// contributions, in order.
#include "cairn/kernels/cuda/sort.cuh"
#include "cairn/kernels/indexing.h"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::global_thread;
using cairn::cuda::grid_for;
using cairn::cuda::launch;
using cairn::cuda::narrow;
using cairn::cuda::widen;

// Sums of integers wrap around.
template <class T>
using SumOf = std::conditional_t<std::is_integral_v<T>, uint64_t, Accumulate<T>>;
template <class T>
__device__ __forceinline__ SumOf<T> load(T x) {
  return static_cast<SumOf<T>>(widen(x));
}
template <class T>
__device__ __forceinline__ T store(SumOf<T> sum) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(sum);
  else
    return narrow<T>(sum);
}

constexpr uint32_t kNowhere = ~uint32_t{0};  // the key of an index out of range

// Line `row` of an index tensor as words of target and place; size is below kNowhere.
template <class I>
struct Targets {
  const I* index;
  Axes<3> starts;  // the index's is the last
  int64_t step, size;
  __device__ Word operator()(int64_t row, int64_t i) const {
    const auto v = static_cast<int64_t>(index[starts.offsets(row).at[2] + i * step]);
    return word_of(v >= 0 && v < size ? static_cast<uint32_t>(v) : kNowhere, i);
  }
};
struct Keep {
  Word* words;
  int64_t n;
  __device__ void operator()(int64_t row, int64_t place, Word w) const {
    words[row * n + place] = w;
  }
};

template <class I>
Tensor sorted_targets(Device device, int64_t rows, int64_t n, const Targets<I>& targets) {
  check(n < kNowhere && targets.size < kNowhere,
        "index_add: indices and elements must be fewer than 2^32 - 1, got ", n, " and ",
        targets.size);
  const Tensor words = empty({rows, n}, {DType::i64, device});
  sort_rows<Word>(device, rows, n, n, targets, Keep{static_cast<Word*>(words.raw_data()), n});
  return words;
}

// The thread at the first of a run of equal targets adds the run: value(place) is a contribution.
template <class T, class Value>
__device__ __forceinline__ void add_run(T* to, int64_t to_step, const Word* words, int64_t n,
                                        int64_t at, const Value& value) {
  constexpr int kFlying = 4;  // loads under way at a time
  const auto target = static_cast<uint32_t>(words[at] >> 32);
  if (target == kNowhere || (at > 0 && words[at - 1] >> 32 == target)) return;
  T& out = to[target * to_step];
  SumOf<T> sum = load(out);
  for (bool more = true; more; at += kFlying) {
    Word w[kFlying];
    T x[kFlying];
#pragma unroll
    for (int k = 0; k < kFlying; ++k) w[k] = at + k < n ? words[at + k] : ~Word{0};
#pragma unroll
    for (int k = 0; k < kFlying; ++k)
      if (w[k] >> 32 == target) x[k] = value(index_of(w[k]));
#pragma unroll
    for (int k = 0; k < kFlying; ++k) {
      more = w[k] >> 32 == target;
      if (more) sum += load(x[k]);
    }
  }
  out = store<T>(sum);
}

// dx [outer, n, inner], g [outer, count, inner].
template <class T>
__global__ void add_rows(T* dx, const T* g, const Word* words, int64_t outer, int64_t n,
                         Split count, Split inner) {
  const int64_t e = global_thread();
  if (e >= outer * count.value * inner.value) return;
  const int64_t item = inner.quotient(e);
  const int64_t c = e - item * inner.value;
  const int64_t o = count.quotient(item);
  const T* const from = g + o * count.value * inner.value + c;
  add_run(dx + o * n * inner.value + c, inner.value, words, count.value, item - o * count.value,
          [&](int64_t place) { return from[place * inner.value]; });
}

void add_at_index(Out dx, In g, In index, int64_t outer, int64_t n, int64_t inner) {
  const int64_t count = index.numel();
  if (g.numel() == 0 || dx.numel() == 0) return;
  const Device device = dx.device();
  const auto sorted = [&]<class I>() {
    return sorted_targets(device, 1, count, Targets<I>{index.data<I>(), {}, 1, n});
  };
  const Tensor words = index.dtype() == DType::i64 ? sorted.template operator()<int64_t>()
                                                   : sorted.template operator()<int32_t>();
  dispatch_floating(dx.dtype(), "index_select", [&]<class T>() {
    launch(device, "add_rows", add_rows<T>, grid_for(outer * count * inner), dx.data<T>(),
           g.data<T>(), static_cast<const Word*>(words.raw_data()), outer, n, Split(count),
           Split(inner));
  });
}

// Lines of y, src and index along one dimension.
struct ScatterLines {
  Axes<3> starts;  // of y, src, index
  Split n;         // indices of a line
  int64_t size;    // elements of y's lines
  int64_t y_step, src_step, index_step;
};

template <class T>
__global__ void scatter_lines(T* y, const T* src, const int64_t* index, ScatterLines lines) {
  const int64_t line = global_thread();
  if (line >= lines.starts.count) return;
  const auto at = lines.starts.offsets(line);
  for (int64_t i = 0; i < lines.n.value; ++i) {
    const int64_t target = index[at.at[2] + i * lines.index_step];
    if (target < 0 || target >= lines.size) continue;
    T& out = y[at.at[0] + target * lines.y_step];
    out = store<T>(load(out) + load(src[at.at[1] + i * lines.src_step]));
  }
}

template <class T>
__global__ void scatter_sorted(T* y, const T* src, const Word* words, ScatterLines lines) {
  const int64_t e = global_thread();
  if (e >= lines.starts.count * lines.n.value) return;
  const int64_t line = lines.n.quotient(e);
  const auto at = lines.starts.offsets(line);
  const T* const from = src + at.at[1];
  add_run(y + at.at[0], lines.y_step, words + line * lines.n.value, lines.n.value,
          e - line * lines.n.value, [&](int64_t place) { return from[place * lines.src_step]; });
}

void add_scattered(Out y, int64_t dim, In index, In src) {
  if (index.numel() == 0 || y.numel() == 0) return;
  const bool point = index.dim() == 0;
  const auto d = static_cast<size_t>(dim);
  const ScatterLines lines{
      row_major<3>(index.shape(), {&y.strides(), &src.strides(), &index.strides()},
                   point ? -1 : dim),
      Split(point ? 1 : index.shape()[d]),
      point ? 1 : y.shape()[d],
      point ? 1 : y.strides()[d],
      point ? 1 : src.strides()[d],
      point ? 1 : index.strides()[d]};
  const Device device = y.device();
  const int64_t rows = lines.starts.count;
  const int64_t n = lines.n.value;
  const auto* const picks = index.data<int64_t>();
  // Short lines, or enough of them to fill the device: one thread goes along each.
  const bool along = n <= 32 || rows >= 32768;
  Tensor words;
  if (!along)
    words = sorted_targets(device, rows, n,
                           Targets<int64_t>{picks, lines.starts, lines.index_step, lines.size});
  dispatch(y.dtype(), [&]<class T>() {
    if (along)
      launch(device, "scatter_lines", scatter_lines<T>, grid_for(rows, 128), y.data<T>(),
             src.data<T>(), picks, lines);
    else
      launch(device, "scatter_sorted", scatter_sorted<T>, grid_for(rows * n), y.data<T>(),
             src.data<T>(), static_cast<const Word*>(words.raw_data()), lines);
  });
}

}  // namespace

void fill_scatter() {
  index_add.fill(DeviceType::cuda, add_at_index);
  scatter_add.fill(DeviceType::cuda, add_scattered);
}

}  // namespace cairn::kernels::cuda
