// Kernels that go along lines in order: index of the extreme, running sums, gradient of products.
// Invariant: a line is read from its first element to its last by one thread.
#include "cairn/kernels/cpu/lines.h"
#include "cairn/kernels/cpu/reduce_ops.h"
#include "cairn/kernels/reduce.h"

namespace cairn::kernels {
namespace cpu {
namespace {

template <class T>
bool is_nan(T v) {
  return v != v;
}

// Index of the first extreme of n elements `step` apart; NaN wins.
template <class T>
int64_t first_extreme(const T* in, int64_t n, int64_t step, bool largest) {
  int64_t best = 0;
  T top = in[0];
  for (int64_t i = 1; i < n && !is_nan(top); ++i) {
    const T v = in[i * step];
    if (is_nan(v) || (largest ? v > top : v < top)) {
      top = v;
      best = i;
    }
  }
  return best;
}

// The same for a long contiguous line: the vectorised extreme first, then where it is.
template <class T>
int64_t find_extreme(const T* in, int64_t n, bool largest) {
  const ReduceKind kind = largest ? ReduceKind::max : ReduceKind::min;
  const auto& rows =
      *static_cast<const ReduceRows<T, Accumulate<T>>*>(reduce_rows(kind, dtype_of<T>()));
  const T top = static_cast<T>(rows.run(in, 1, n));
  const bool nan = is_nan(top);
  constexpr int64_t kBlock = 64;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    bool found = false;
    for (int64_t k = 0; k < kBlock; ++k) found |= nan ? is_nan(in[i + k]) : in[i + k] == top;
    if (found) break;
  }
  while (i < n - 1 && !(nan ? is_nan(in[i]) : in[i] == top)) ++i;
  return i;
}

void arg_extreme(const Tensor& values, Out indices, In x, int64_t dim, bool largest) {
  const int64_t n = line_size(x, dim);
  const int64_t step = line_step(x, dim);
  const bool search = step == 1 && n >= 128;
  dispatch(x.dtype(), [&]<class T>() {
    const T* in = x.data<T>();
    int64_t* index = indices.data<int64_t>();
    T* value = values.defined() ? values.data<T>() : nullptr;
    const Tensor* const tensors[3] = {&x, &indices, value ? &values : nullptr};
    for_each_line(x.shape(), dim, tensors, n, [&](int64_t from, int64_t to, int64_t value_to) {
      const int64_t best =
          search ? find_extreme(in + from, n, largest) : first_extreme(in + from, n, step, largest);
      index[to] = best;
      if (value) value[value_to] = in[from + best * step];
    });
  });
}

void cumsum(Out y, In x, int64_t dim, bool reverse) {
  const int64_t n = line_size(x, dim);
  const int64_t x_step = line_step(x, dim);
  const int64_t y_step = line_step(y, dim);
  dispatch(x.dtype(), [&]<class T>() {
    using Result = std::conditional_t<std::is_integral_v<T>, int64_t, T>;
    // A running sum is one long chain, so it is kept in f64 for f32 too.
    using Acc = std::conditional_t<std::is_integral_v<T>, uint64_t, double>;
    const T* in = x.data<T>();
    Result* out = y.data<Result>();
    const Tensor* const tensors[3] = {&x, &y, nullptr};
    for_each_line(x.shape(), dim, tensors, n, [&](int64_t from, int64_t to, int64_t) {
      Acc sum = 0;
      for (int64_t k = 0; k < n; ++k) {
        const int64_t i = reverse ? n - 1 - k : k;
        sum += static_cast<Acc>(in[from + i * x_step]);
        out[to + i * y_step] = static_cast<Result>(sum);
      }
    });
  });
}

void prod_backward(const Dst& dx, In g, In x, int64_t dim) {
  if (!dx) return;
  const int64_t n = line_size(x, dim);
  const int64_t x_step = line_step(x, dim);
  const int64_t d_step = line_step(dx.tensor, dim);
  dispatch_floating(x.dtype(), "prod", [&]<class T>() {
    using C = Accumulate<T>;
    const T* in = x.data<T>();
    T* out = dx.tensor.data<T>();
    const T* grad = g.data<T>();
    const Tensor* const tensors[3] = {&x, &dx.tensor, &g};
    for_each_line(x.shape(), dim, tensors, n, [&](int64_t from, int64_t to, int64_t g_at) {
      // With one zero only its own gradient is not zero; with two none is.
      int64_t zeros = 0;
      C others = 1;
      for (int64_t i = 0; i < n; ++i) {
        const C v = static_cast<C>(in[from + i * x_step]);
        if (v == 0)
          ++zeros;
        else
          others *= v;
      }
      const C gi = static_cast<C>(grad[g_at]);
      for (int64_t i = 0; i < n; ++i) {
        const C v = static_cast<C>(in[from + i * x_step]);
        const C d = zeros == 0 ? gi * (others / v) : zeros == 1 && v == 0 ? gi * others : C(0);
        T& o = out[to + i * d_step];
        o = static_cast<T>(dx.add ? static_cast<C>(o) + d : d);
      }
    });
  });
}

}  // namespace
}  // namespace cpu

Slot<void(const Tensor&, Out, In, int64_t, bool)> arg_extreme_fwd{"arg_extreme_fwd",
                                                                  cpu::arg_extreme};
Slot<void(Out, In, int64_t, bool)> cumsum_fwd{"cumsum_fwd", cpu::cumsum};
Slot<void(const Dst&, In, In, int64_t)> prod_bwd{"prod_bwd", cpu::prod_backward};

}  // namespace cairn::kernels
