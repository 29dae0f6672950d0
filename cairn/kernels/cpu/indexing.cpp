// Picking by index, and triangles.
// Invariant: lines (or columns) that several indices may name belong to one thread, which adds in
// the order of the indices.
#include "cairn/kernels/indexing.h"

#include <cstring>

#include "cairn/kernels/cpu/lines.h"

namespace cairn::kernels {
namespace cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth a thread

// Calls fn.operator()<I>() with the type of an index tensor.
template <class Fn>
void with_index_type(const Tensor& index, Fn&& fn) {
  if (index.dtype() == DType::i64)
    fn.template operator()<int64_t>();
  else
    fn.template operator()<int32_t>();
}

// Offset of element `flat` (row-major) of t.
int64_t offset_of(const Tensor& t, int64_t flat) {
  int64_t at = 0;
  for (size_t d = t.shape().size(); d-- > 0;) {
    at += flat % t.shape()[d] * t.strides()[d];
    flat /= t.shape()[d];
  }
  return at;
}

void check_index(std::string_view op, std::string_view what, In index, int64_t size) {
  const int64_t n = index.numel();
  const bool flat = index.is_contiguous();
  with_index_type(index, [&]<class I>() {
    const I* in = index.data<I>();
    for (int64_t i = 0; i < n; ++i) {
      const int64_t v = in[flat ? i : offset_of(index, i)];
      if (v < 0 || v >= size) throw Error(index_error(op, what, size, v, index.shape(), i));
    }
  });
}

void index_select(Out y, In x, In index, int64_t outer, int64_t n, int64_t inner) {
  const int64_t count = index.numel();
  const auto row = static_cast<size_t>(inner * item_size(x.dtype()));
  const auto* from = static_cast<const std::byte*>(x.raw_data());
  auto* to = static_cast<std::byte*>(y.raw_data());
  with_index_type(index, [&]<class I>() {
    const I* picks = index.data<I>();
    parallel_for(0, outer * count, std::max<int64_t>(1, kGrain / std::max<int64_t>(inner, 1)),
                 [&](int64_t lo, int64_t hi) {
                   for (int64_t item = lo; item < hi; ++item) {
                     const int64_t source = item / count * n + picks[item % count];
                     std::memcpy(to + static_cast<size_t>(item) * row,
                                 from + static_cast<size_t>(source) * row, row);
                   }
                 });
  });
}

void add_at_index(Out dx, In g, In index, int64_t outer, int64_t n, int64_t inner) {
  const int64_t count = index.numel();
  constexpr int64_t kColumns = 256;  // columns of one unit of work
  const int64_t tiles = (inner + kColumns - 1) / kColumns;
  dispatch_floating(dx.dtype(), "index_select", [&]<class T>() {
    with_index_type(index, [&]<class I>() {
      using C = Accumulate<T>;
      const I* picks = index.data<I>();
      const T* from = g.data<T>();
      T* to = dx.data<T>();
      const int64_t cost = std::max<int64_t>(1, count * std::min(inner, kColumns));
      parallel_for(0, outer * tiles, std::max<int64_t>(1, kGrain / cost),
                   [&](int64_t lo, int64_t hi) {
                     for (int64_t unit = lo; unit < hi; ++unit) {
                       const int64_t o = unit / tiles;
                       const int64_t c0 = unit % tiles * kColumns;
                       const int64_t cols = std::min(kColumns, inner - c0);
                       for (int64_t k = 0; k < count; ++k) {
                         T* d = to + (o * n + picks[k]) * inner + c0;
                         const T* s = from + (o * count + k) * inner + c0;
                         for (int64_t c = 0; c < cols; ++c)
                           d[c] = static_cast<T>(static_cast<C>(d[c]) + static_cast<C>(s[c]));
                       }
                     }
                   });
    });
  });
}

void gather(Out y, In x, int64_t dim, In index) {
  const int64_t n = line_size(index, dim);
  const int64_t x_step = line_step(x, dim);
  const int64_t y_step = line_step(y, dim);
  const int64_t i_step = line_step(index, dim);
  const int64_t* picks = index.data<int64_t>();
  const Tensor* const tensors[3] = {&y, &x, &index};
  dispatch(x.dtype(), [&]<class T>() {
    const T* in = x.data<T>();
    T* out = y.data<T>();
    for_each_line(index.shape(), dim, tensors, n, [&](int64_t to, int64_t from, int64_t pick) {
      for (int64_t i = 0; i < n; ++i)
        out[to + i * y_step] = in[from + picks[pick + i * i_step] * x_step];
    });
  });
}

void add_scattered(Out y, int64_t dim, In index, In src) {
  const int64_t n = line_size(index, dim);
  const int64_t y_step = line_step(y, dim);
  const int64_t s_step = line_step(src, dim);
  const int64_t i_step = line_step(index, dim);
  const int64_t* picks = index.data<int64_t>();
  const Tensor* const tensors[3] = {&y, &src, &index};
  dispatch(y.dtype(), [&]<class T>() {
    // Unsigned for integers: sums wrap around.
    using C = std::conditional_t<std::is_integral_v<T>, uint64_t, Accumulate<T>>;
    const T* in = src.data<T>();
    T* out = y.data<T>();
    for_each_line(index.shape(), dim, tensors, n, [&](int64_t to, int64_t from, int64_t pick) {
      for (int64_t i = 0; i < n; ++i) {
        T& o = out[to + picks[pick + i * i_step] * y_step];
        o = static_cast<T>(static_cast<C>(o) + static_cast<C>(in[from + i * s_step]));
      }
    });
  });
}

void triangle(Out y, In x, int64_t diagonal, bool upper) {
  const int64_t rows = x.size(-2);
  const int64_t cols = x.size(-1);
  const int64_t x_step = x.stride(-1);
  const int64_t y_step = y.stride(-1);
  const Tensor* const tensors[3] = {&y, &x, nullptr};
  // Lines run along the last dimension, so a line's number tells its row.
  dispatch(x.dtype(), [&]<class T>() {
    const T* in = x.data<T>();
    T* out = y.data<T>();
    Shape batch = x.shape();
    batch[batch.size() - 2] = 1;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t first = std::clamp<int64_t>(upper ? r + diagonal : 0, 0, cols);
      const int64_t last = upper ? cols : std::clamp<int64_t>(r + diagonal + 1, 0, cols);
      for_each_line(batch, x.dim() - 1, tensors, cols, [&](int64_t to, int64_t from, int64_t) {
        to += r * y.stride(-2);
        from += r * x.stride(-2);
        for (int64_t c = 0; c < cols; ++c)
          out[to + c * y_step] = c >= first && c < last ? in[from + c * x_step] : T(0);
      });
    }
  });
}

void one_hot(Out y, In classes, int64_t num_classes) {
  const int64_t* in = classes.data<int64_t>();
  int64_t* out = y.data<int64_t>();
  for (int64_t i = 0; i < classes.numel(); ++i) out[i * num_classes + in[i]] = 1;
}

template <class Fn>
void for_each_nonzero(In x, Fn&& fn) {
  dispatch(x.dtype(), [&]<class T>() {
    const T* in = x.data<T>();
    const int64_t n = x.numel();
    const bool flat = x.is_contiguous();
    for (int64_t i = 0; i < n; ++i)
      if (in[flat ? i : offset_of(x, i)] != T(0)) fn(i);
  });
}

void count(In x, int64_t& total) {
  total = 0;
  for_each_nonzero(x, [&](int64_t) { ++total; });
}

void nonzero(Out indices, In x) {
  int64_t* out = indices.data<int64_t>();
  const size_t rank = x.shape().size();
  for_each_nonzero(x, [&](int64_t flat) {
    for (size_t d = rank; d-- > 0;) {
      out[d] = flat % x.shape()[d];
      flat /= x.shape()[d];
    }
    out += rank;
  });
}

}  // namespace
}  // namespace cpu

Slot<void(std::string_view, std::string_view, In, int64_t)> check_index{"check_index",
                                                                        cpu::check_index};
Slot<void(Out, In, In, int64_t, int64_t, int64_t)> index_select_fwd{"index_select_fwd",
                                                                    cpu::index_select};
Slot<void(Out, In, In, int64_t, int64_t, int64_t)> index_add{"index_add", cpu::add_at_index};
Slot<void(Out, In, int64_t, In)> gather_fwd{"gather_fwd", cpu::gather};
Slot<void(Out, int64_t, In, In)> scatter_add{"scatter_add", cpu::add_scattered};
Slot<void(In, int64_t&)> count_nonzero{"count_nonzero", cpu::count};
Slot<void(Out, In)> nonzero_fwd{"nonzero_fwd", cpu::nonzero};
Slot<void(Out, In, int64_t, bool)> triangle_fwd{"triangle_fwd", cpu::triangle};
Slot<void(Out, In, int64_t)> one_hot_fwd{"one_hot_fwd", cpu::one_hot};

}  // namespace cairn::kernels
