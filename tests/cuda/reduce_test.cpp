// Reductions, scans and softmax on the emulated GPU: sizes around the edges of warps and blocks,
// layouts, special values, and the same bits again.
#include "cairn/kernels/reduce.h"

#include <cmath>
#include <limits>

#include "cairn/kernels/indexing.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/raw.h"
#include "check/reference.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"
#include "tests/cuda/on_device.h"

using namespace cairn;
using namespace cairn::on_device;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Tensor result_like(const Tensor& x, const Shape& shape, DType dtype) {
  return empty(shape, {dtype, x.device()});
}
DType sum_dtype(DType d) { return is_floating(d) ? d : DType::i64; }

Shape without(const Shape& shape, std::initializer_list<int> dims) {
  Shape kept = shape;
  for (int d : dims) kept[static_cast<size_t>(d)] = 1;
  return kept;
}

// Small whole numbers: sums of them are exact in every dtype but the halves.
Tensor small(const Shape& shape, DType dtype) {
  const Tensor x = empty(shape, {DType::f64});
  for (int64_t i = 0; i < x.numel(); ++i)
    x.data<double>()[i] = static_cast<double>((i * 7 + i / 13) % 5) - (is_floating(dtype) ? 2 : 0);
  return raw::to(x, dtype);
}

void check_reductions(const Tensor& x, const Shape& kept) {
  INFO(cat(x.dtype(), " ", x.shape(), " to ", kept));
  const double close = item_size(x.dtype()) == 2 ? 0.01 : 1e-6;
  same_on_device(
      {x},
      [&](const Inputs& in) {
        const Tensor y = result_like(in[0], kept, sum_dtype(x.dtype()));
        kernels::sum_fwd(y.device(), y, in[0], is_floating(x.dtype()) ? 3 : 1);
        return y;
      },
      close);
  if (is_floating(x.dtype()))
    same_on_device(
        {x},
        [&](const Inputs& in) {
          const Tensor y = result_like(in[0], kept, DType::f64);
          kernels::sum_squares_fwd(y.device(), y, in[0]);
          return y;
        },
        1e-12);
  if (x.numel() == 0) return;
  for (bool largest : {true, false})
    same_on_device({x}, [&](const Inputs& in) {
      const Tensor y = result_like(in[0], kept, x.dtype());
      kernels::extreme_fwd(y.device(), y, in[0], largest);
      return y;
    });
}

}  // namespace

TEST_CASE("cuda: reductions of lines around the edges of warps, blocks and splits") {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::i32, DType::boolean, DType::f64})
    for (int64_t n : {1, 2, 3, 31, 33, 128, 255, 513, 1025, 4099, 40004})
      for (int64_t rows : {1, 3}) {
        if (dtype != DType::f32 && n > 1025) continue;
        const Tensor x = small({rows, n}, dtype);
        check_reductions(x, {rows, 1});
        check_reductions(x, {1, n});
        check_reductions(x, {1, 1});
      }
}

TEST_CASE("cuda: reductions of columns, of two dimensions, of strided and of empty tensors") {
  const Tensor image = small({4, 6, 5, 8}, DType::f32);
  check_reductions(image, without(image.shape(), {0, 2, 3}));
  check_reductions(image, without(image.shape(), {1, 3}));
  check_reductions(raw::channels_last(image), without(image.shape(), {0, 2, 3}));
  check_reductions(raw::transpose(image, 0, 3), {8, 1, 5, 1});
  check_reductions(raw::slice(image, 3, 1, 8, 2), {4, 6, 1, 1});
  check_reductions(raw::expand(small({5, 1}, DType::f32), {5, 70}), {5, 1});
  check_reductions(raw::expand(small({5, 1}, DType::f32), {5, 70}), {1, 70});
  check_reductions(small({9000, 7}, DType::f32), {1, 7});
  check_reductions(small({300, 517}, DType::bf16), {1, 517});
  check_reductions(small({2, 0}, DType::f32), {2, 1});
  check_reductions(small({0, 2}, DType::f32), {0, 1});
  check_reductions(small({}, DType::i64), {});
}

TEST_CASE("cuda: a captured sum in several blocks has its partial sums to itself") {
  const Tensor x = ones({200000}, {DType::f32, kGpu});
  const Tensor y = empty({1}, {DType::f32, kGpu});
  Capture capture(kGpu);
  kernels::sum_fwd(kGpu, y, x, 1);
  CapturedGraph graph = capture.finish();
  CHECK(graph.nodes() == 2);
  for (float value : {1.0f, 3.0f}) {
    raw::fill_(x, value);
    graph.launch();
    const Tensor other = full({200000}, kNan, {DType::f32, kGpu});  // not in the graph's memory
    CHECK(y.item() == 200000 * value);
  }
}

TEST_CASE("cuda: many short lines keep a warp each") {
  check_reductions(small({2200, 600}, DType::f32), {2200, 1});
}

TEST_CASE("cuda: products, their gradient, and integers that wrap around") {
  for (int64_t zeros_at : {0, 1, 2}) {
    Tensor x = raw::to(check_table::values_in({3, 37}, 5, 0.8, 1.2), DType::f32);
    for (int64_t k = 0; k < zeros_at; ++k)
      raw::fill_(raw::select(raw::select(x, 0, 1), 0, 7 * k), 0);
    same_on_device({x}, [](const Inputs& in) {
      const Tensor y = empty({3, 1}, {DType::f32, in[0].device()});
      kernels::prod_fwd(y.device(), y, in[0]);
      return y;
    });
    for (bool add : {false, true})
      same_on_device(
          {x, raw::to(check_table::values_in({3, 1}, 6, -1, 1), DType::f32)},
          [&](const Inputs& in) {
            const Tensor dx = full({3, 37}, 2, {DType::f32, in[0].device()});
            kernels::ZeroPattern zeros{{{0, 4}}};
            kernels::prod_bwd(dx.device(), kernels::Dst{dx, add, &zeros}, in[1], in[0], 1);
            if (dx.device() != kCPU) CHECK(zeros.empty());
            return dx;
          });
  }
  same_on_device({full({70}, 3, {DType::i64})}, [](const Inputs& in) {
    const Tensor y = empty({1}, {DType::i64, in[0].device()});
    kernels::prod_fwd(y.device(), y, in[0]);
    return y;
  });
}

TEST_CASE("cuda: the first extreme, NaN before all") {
  for (DType dtype :
       {DType::f32, DType::bf16, DType::f16, DType::i64, DType::u8, DType::boolean, DType::f64})
    for (const Shape& shape : {Shape{3, 1}, Shape{2, 50}, Shape{1, 9001}, Shape{6, 40, 5}})
      for (bool largest : {true, false})
        for (bool nan : {false, true}) {
          if (nan && !is_floating(dtype)) continue;
          INFO(cat(dtype, " ", shape, largest ? " largest" : " smallest"));
          const Tensor x = small(shape, dtype);
          if (nan && shape[1] > 30) {
            raw::fill_(raw::slice(x, 1, 17, 18), kNan);
            raw::fill_(raw::slice(x, 1, 29, 30), kNan);
          }
          Shape kept = shape;
          kept[1] = 1;
          same_on_device({x}, [&](const Inputs& in) {
            const Tensor indices = empty(kept, {DType::i64, in[0].device()});
            kernels::arg_extreme_fwd(in[0].device(), Tensor(), indices, in[0], 1, largest);
            return indices;
          });
          same_on_device({x}, [&](const Inputs& in) {
            const Tensor values = empty(kept, {dtype, in[0].device()});
            const Tensor indices = empty(kept, {DType::i64, in[0].device()});
            kernels::arg_extreme_fwd(in[0].device(), values, indices, in[0], 1, largest);
            return values;
          });
          same_on_device({x}, [&](const Inputs& in) {
            const Tensor y = empty(kept, {dtype, in[0].device()});
            kernels::extreme_fwd(in[0].device(), y, in[0], largest);
            return y;
          });
        }
}

TEST_CASE("cuda: running sums, both ways, short and in segments") {
  for (DType dtype : {DType::f32, DType::i32, DType::bf16, DType::boolean})
    for (const Shape& shape : {Shape{3, 1}, Shape{2, 64}, Shape{2, 65}, Shape{2, 1025},
                               Shape{1, 20011}, Shape{3, 80, 5}})
      for (bool reverse : {false, true}) {
        if (dtype != DType::f32 && shape[1] > 2000) continue;
        INFO(cat(dtype, " ", shape));
        for (const Tensor& x : {small(shape, dtype), raw::transpose(small(shape, dtype), 0, 1)})
          same_on_device({x}, [&](const Inputs& in) {
            const Tensor y = empty(in[0].shape(), {sum_dtype(dtype), in[0].device()});
            kernels::cumsum_fwd(y.device(), y, in[0], in[0].shape()[0] == shape[0] ? 1 : 0,
                                reverse);
            return y;
          });
      }
  same_on_device({small({2, 70, 4100}, DType::f32)}, [](const Inputs& in) {
    const Tensor y = empty(in[0].shape(), {DType::f32, in[0].device()});
    kernels::cumsum_fwd(y.device(), y, in[0], 1, false);
    return y;
  });
}

namespace {

using Softmax = void (*)(const Tensor& y, const Tensor& x, int64_t outer, int64_t n, int64_t inner);

void check_softmax(const Tensor& x, double close) {
  const int64_t outer = x.size(0);
  const int64_t n = x.size(1);
  const int64_t inner = x.size(2);
  INFO(cat(x.dtype(), " ", x.shape()));
  for (bool log : {false, true}) {
    const auto forward = [&](const Inputs& in) {
      const Tensor y = empty(x.shape(), {x.dtype(), in[0].device()});
      kernels::softmax_fwd(y.device(), y, in[0], outer, n, inner, log);
      return y;
    };
    same_on_device({x}, forward, close);
    const Tensor y = forward({x});
    const Tensor g = raw::to(check_table::values(x.shape(), 3), x.dtype());
    for (bool add : {false, true})
      same_on_device(
          {g, y},
          [&](const Inputs& in) {
            const Tensor dx = full(x.shape(), 0.5, {x.dtype(), in[0].device()});
            kernels::ZeroPattern zeros{{{0, 1}}};
            kernels::softmax_bwd(dx.device(), kernels::Dst{dx, add, &zeros}, in[0], in[1], outer, n,
                                 inner, log);
            if (dx.device() != kCPU) CHECK(zeros.empty());
            return dx;
          },
          close * std::sqrt(static_cast<double>(n)));
  }
  same_on_device(
      {x},
      [&](const Inputs& in) {
        const Tensor y = empty({outer, 1, inner}, {x.dtype(), in[0].device()});
        kernels::logsumexp_fwd(y.device(), y, in[0], outer, n, inner);
        return y;
      },
      close);
}

}  // namespace

TEST_CASE("cuda: softmax of lines in registers, longer ones, and lines side by side") {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
    const double close = item_size(dtype) == 2 ? 0.02 : dtype == DType::f32 ? 2e-6 : 1e-13;
    for (int64_t n : {1, 2, 10, 33, 257, 1000, 8193})
      check_softmax(raw::to(check_table::values_in({3, n, 1}, 1, -4, 4), dtype), close);
    for (const Shape& shape :
         {Shape{2, 10, 7}, Shape{1, 3, 700}, Shape{2, 300, 33}, Shape{1, 1, 2}})
      check_softmax(raw::to(check_table::values_in(shape, 1, -4, 4), dtype), close);
  }
  check_softmax(zeros({0, 3, 2}), 0);
}

TEST_CASE("cuda: softmax with infinities and NaN") {
  for (int64_t n : {5, 9000})
    for (int64_t inner : {1, 2})
      for (double special : {kInfinity, -kInfinity, kNan, 1e30, -1e30}) {
        Tensor x = raw::to(check_table::values_in({3, n, inner}, 1, -200, 200), DType::f32);
        raw::fill_(raw::select(raw::select(x, 0, 0), 0, 0), special);
        raw::fill_(raw::select(raw::select(x, 0, 1), 0, n - 1), special);
        raw::fill_(raw::select(x, 0, 2), special);
        INFO(special << " among " << n);
        for (bool log : {false, true})
          same_on_device(
              {x},
              [&](const Inputs& in) {
                const Tensor y = empty(x.shape(), {DType::f32, in[0].device()});
                kernels::softmax_fwd(y.device(), y, in[0], 3, n, inner, log);
                return y;
              },
              1e-6);
        same_on_device(
            {x},
            [&](const Inputs& in) {
              const Tensor y = empty({3, 1, inner}, {DType::f32, in[0].device()});
              kernels::logsumexp_fwd(y.device(), y, in[0], 3, n, inner);
              return y;
            },
            1e-6);
      }
}
