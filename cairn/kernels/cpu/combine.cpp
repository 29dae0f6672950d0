// combine: buffers reduced in order, by blocks that stay in the first cache.
#include "cairn/kernels/combine.h"

#include <algorithm>
#include <concepts>
#include <type_traits>

namespace cairn::kernels {
namespace {

constexpr int64_t kBlock = 1024;

// What elements are reduced in: unsigned for integers, so that they wrap around.
template <class T>
struct Reduced {
  using Type = float;
};
template <>
struct Reduced<double> {
  using Type = double;
};
template <std::integral T>
struct Reduced<T> {
  using Type = std::make_unsigned_t<T>;
};

// Calls fn<T>() for every dtype that buffers may have.
template <class Fn>
void dispatch_part(DType dtype, Fn&& fn) {
  dispatch(dtype, [&]<class T>() {
    if constexpr (std::is_same_v<T, bool>)
      fail("combine: dtype must be a number's, got ", DType::boolean);
    else
      fn.template operator()<T>();
  });
}

template <class T>
T apply(ReduceOp op, T a, T b) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::avg:
      return static_cast<T>(a + b);
    case ReduceOp::prod:
      return static_cast<T>(a * b);
    case ReduceOp::min:
      return b < a || b != b ? b : a;
    case ReduceOp::max:
      return b > a || b != b ? b : a;
  }
  return a;
}

template <class T>
void combine_cpu_block(T* out, std::span<const Part> parts, int64_t begin, int64_t n, ReduceOp op,
                       double scale) {
  // Order of integers is that of their own type, arithmetic that of the unsigned one.
  using W = typename Reduced<T>::Type;
  using Ordered = std::conditional_t<std::is_integral_v<T>, T, W>;
  W sum[kBlock];
  for (size_t p = 0; p < parts.size(); ++p) {
    dispatch_part(parts[p].dtype, [&]<class In>() {
      const In* in = static_cast<const In*>(parts[p].data) + begin;
      if (p == 0) {
        for (int64_t i = 0; i < n; ++i) sum[i] = static_cast<W>(in[i]);
      } else if (op == ReduceOp::sum || op == ReduceOp::avg) {
        for (int64_t i = 0; i < n; ++i) sum[i] = static_cast<W>(sum[i] + static_cast<W>(in[i]));
      } else if (op == ReduceOp::prod) {
        for (int64_t i = 0; i < n; ++i) sum[i] = static_cast<W>(sum[i] * static_cast<W>(in[i]));
      } else {
        for (int64_t i = 0; i < n; ++i)
          sum[i] =
              static_cast<W>(apply(op, static_cast<Ordered>(sum[i]), static_cast<Ordered>(in[i])));
      }
    });
  }
  const bool scaled = std::is_floating_point_v<W> && scale != 1;
  for (int64_t i = 0; i < n; ++i)
    out[begin + i] = static_cast<T>(scaled ? static_cast<W>(sum[i] * scale) : sum[i]);
}

void combine_cpu(void* out, DType dtype, std::span<const Part> parts, int64_t n, ReduceOp op,
                 double scale) {
  dispatch_part(dtype, [&]<class T>() {
    for (int64_t begin = 0; begin < n; begin += kBlock)
      combine_cpu_block(static_cast<T*>(out), parts, begin, std::min(kBlock, n - begin), op, scale);
  });
}

}  // namespace

std::string_view name_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return "sum";
    case ReduceOp::avg:
      return "avg";
    case ReduceOp::min:
      return "min";
    case ReduceOp::max:
      return "max";
    case ReduceOp::prod:
      return "prod";
  }
  return "unknown";
}

Slot<void(void*, DType, std::span<const Part>, int64_t, ReduceOp, double)> combine{"combine",
                                                                                   combine_cpu};

}  // namespace cairn::kernels
