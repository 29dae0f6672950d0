// Picking, sorting and adding by index on the emulated GPU: order of contributions, ties, sizes
// around the edges of tiles, and indices out of range.
#include "cairn/kernels/indexing.h"

#include <limits>

#include "cairn/autograd/ops/indexing.h"
#include "cairn/tensor/cuda.h"
#include "check/reference.h"
#include "tests/cuda/on_device.h"

using namespace cairn;
using namespace cairn::on_device;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Numbers in [0, size) with many repeats.
Tensor picks(const Shape& shape, int64_t size, DType dtype = DType::i64) {
  const Tensor t = empty(shape, {DType::i64});
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<int64_t>()[i] = (i * i * 31 + i * 17 + (i >> 3)) % size;
  return raw::to(t, dtype);
}
Tensor numbers(const Shape& shape, DType dtype) {
  return raw::to(check_table::values_in(shape, 3, -9, 9), dtype);
}

void check_sort(const Tensor& x, int64_t k, bool descending) {
  INFO(cat(x.dtype(), " ", x.shape(), " first ", k, descending ? " descending" : ""));
  for (bool want_indices : {true, false})
    same_on_device(
        {x},
        [&](const Inputs& in) {
          const Tensor values = empty({x.size(0), k}, {x.dtype(), in[0].device()});
          const Tensor indices = empty({x.size(0), k}, {DType::i64, in[0].device()});
          kernels::top_rows(in[0].device(), values, indices, in[0], descending);
          return want_indices ? indices : values;
        },
        0);
}

}  // namespace

TEST_CASE("cuda: rows are picked in every width, and wrong indices read nothing") {
  for (DType dtype : {DType::f32, DType::u8, DType::bf16, DType::f64})
    for (int64_t inner : {1, 3, 4, 16, 33})
      for (DType index_dtype : {DType::i64, DType::i32})
        same_on_device(
            {numbers({2, 5, inner}, dtype), picks({7}, 5, index_dtype)},
            [&](const Inputs& in) {
              const Tensor y = empty({2, 7, inner}, {dtype, in[0].device()});
              kernels::index_select_fwd(y.device(), y, in[0], in[1], 2, 5, inner);
              return y;
            },
            0);
  const Tensor x = there(numbers({5, 3}, DType::f32));
  const Tensor wrong = there(from_values(std::vector<int64_t>{1, -7, int64_t{1} << 40}, {3}));
  const Tensor y = empty({3, 3}, {DType::f32, kGpu});
  kernels::index_select_fwd(kGpu, y, x, wrong, 1, 5, 3);
  CHECK(distance(raw::select(y, 0, 0), raw::select(x, 0, 1)) == 0);
  CHECK(distance(raw::slice(y, 0, 1, 3), zeros({2, 3})) == 0);
}

TEST_CASE("cuda: rows that several indices name are added in order") {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (int64_t count : {1, 2, 33, 300, 5000}) {
      if (count == 5000 && dtype != DType::f32) continue;
      for (DType index_dtype : {DType::i64, DType::i32}) {
        INFO(cat(dtype, " ", count));
        const Tensor g = numbers({2, count, 3}, dtype);
        const Tensor index = picks({count}, 7, index_dtype);
        const auto body = [&](const Inputs& in) {
          const Tensor dx = full({2, 7, 3}, 1, {dtype, in[0].device()});
          kernels::index_add(dx.device(), dx, in[0], in[1], 2, 7, 3);
          return dx;
        };
        // The halves are rounded once there and after every addition here.
        same_on_device({g, index}, body, item_size(dtype) == 2 ? 0.3 : 0);
      }
    }
}

TEST_CASE("cuda: an index out of range adds nothing") {
  const Tensor dx = zeros({3, 2}, {DType::f32, kGpu});
  const Tensor index = there(from_values(std::vector<int64_t>{2, 3, -1, 2, 1ll << 33}, {5}));
  kernels::index_add(kGpu, dx, ones({5, 2}, {DType::f32, kGpu}), index, 1, 3, 2);
  CHECK(distance(raw::select(dx, 0, 2), full({2}, 2)) == 0);
  CHECK(distance(raw::slice(dx, 0, 0, 2), zeros({2, 2})) == 0);
  for (int64_t n : {5, 40}) {
    const Tensor y = zeros({3}, {DType::f32, kGpu});
    const Tensor many = full({n}, -4, {DType::i64, kGpu});
    raw::fill_(raw::slice(many, 0, 1, 2), 1);
    raw::fill_(raw::slice(many, 0, 4, 5), 3);
    kernels::scatter_add(kGpu, y, 0, many, ones({n}, {DType::f32, kGpu}));
    CHECK(distance(y, from_values(std::vector<float>{0, 1, 0}, {3})) == 0);
  }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: gather and scatter_add, short lines and long ones") {
  for (DType dtype : {DType::f32, DType::i32, DType::boolean})
    for (const Shape& shape : {Shape{4, 1}, Shape{3, 20}, Shape{2, 700}, Shape{3, 100, 4}})
      for (int64_t dim : {0, 1}) {
        INFO(cat(dtype, " ", shape, " ", dim));
        Shape y_shape = shape;
        y_shape[static_cast<size_t>(dim)] = 6;
        const Tensor index = picks(shape, 6);
        same_on_device(
            {numbers(y_shape, dtype), index},
            [&](const Inputs& in) {
              const Tensor y = empty(shape, {dtype, in[0].device()});
              kernels::gather_fwd(y.device(), y, in[0], dim, in[1]);
              return y;
            },
            0);
        for (const Tensor& src :
             {numbers(shape, dtype), raw::transpose(numbers({shape[1], shape[0]}, dtype), 0, 1)}) {
          if (src.shape() != shape) continue;
          same_on_device(
              {src, index, numbers(y_shape, dtype)},
              [&](const Inputs& in) {
                const Tensor y = raw::clone(in[2]);
                kernels::scatter_add(y.device(), y, dim, in[1], in[0]);
                return y;
              },
              0);
        }
      }
  same_on_device(
      {numbers({40000}, DType::f32), picks({40000}, 11)},
      [&](const Inputs& in) {
        const Tensor y = zeros({11}, {DType::f32, in[0].device()});
        kernels::scatter_add(y.device(), y, 0, in[1], in[0]);
        return y;
      },
      0);
}

TEST_CASE("cuda: rows are sorted stably, with NaN, ties and both zeros") {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8,
                      DType::boolean, DType::f64})
    for (int64_t n : {1, 2, 5, 33, 257, 1000})
      for (bool descending : {false, true}) {
        Tensor x = raw::to(picks({3, n}, 9), dtype);
        if (is_floating(dtype) && n > 4) {
          raw::fill_(raw::select(raw::select(x, 0, 1), 0, 3), kNan);
          raw::fill_(raw::select(raw::select(x, 0, 1), 0, 1), kNan);
          raw::fill_(raw::select(raw::select(x, 0, 2), 0, 4), -0.0);
          raw::fill_(raw::select(raw::select(x, 0, 2), 0, 2), -3);
        }
        check_sort(x, n, descending);
        if (n > 2) check_sort(x, n / 2, descending);
      }
}

TEST_CASE("cuda: rows longer than a tile, few of them and all") {
  const Tensor x = numbers({2, 9000}, DType::f32);
  check_sort(x, 9000, false);
  check_sort(x, 5, true);
  check_sort(x, 1500, true);
  check_sort(numbers({1, 40000}, DType::f32), 40000, true);
  check_sort(numbers({1, 40000}, DType::f32), 1000, false);  // 10 tiles leave more than one again
  check_sort(numbers({1, 9000}, DType::f64), 9000, true);
  check_sort(raw::to(picks({1, 9000}, 50), DType::i64), 3, false);
}

TEST_CASE("cuda: what is not zero is counted and listed in order") {
  for (DType dtype : {DType::f32, DType::u8, DType::boolean, DType::bf16})
    for (const Shape& shape : {Shape{1}, Shape{33}, Shape{3, 700}, Shape{2, 3, 4}, Shape{5000}}) {
      INFO(cat(dtype, " ", shape));
      Tensor x = raw::to(picks(shape, 3), dtype);
      if (dtype == DType::f32) raw::fill_(raw::select(raw::view(x, {x.numel()}), 0, 0), -0.0);
      for (const Tensor& t : {x, raw::transpose(x, 0, static_cast<int64_t>(shape.size()) - 1)}) {
        const int64_t before = cuda::waits();
        const Tensor on_gpu = there(t);
        const Tensor got = nonzero(on_gpu);
        CHECK(cuda::waits() == before + 1);
        CHECK(same_bits(got, nonzero(t)));
      }
    }
  CHECK(nonzero(zeros({4, 5}, {DType::f32, kGpu})).shape() == Shape{0, 2});
  CHECK(nonzero(zeros({0, 5}, {DType::f32, kGpu})).shape() == Shape{0, 2});
  CHECK(nonzero(ones({}, {DType::f32, kGpu})).shape() == Shape{1, 0});
}

TEST_CASE("cuda: triangles and one-hot rows") {
  for (DType dtype : {DType::f32, DType::boolean})
    for (int64_t diagonal : {-3, 0, 2})
      for (bool upper : {false, true})
        for (const Tensor& x :
             {numbers({2, 3, 5}, dtype), raw::transpose(numbers({2, 3, 5}, dtype), 1, 2)})
          same_on_device(
              {x},
              [&](const Inputs& in) {
                const Tensor y = empty_like(in[0]);
                kernels::triangle_fwd(y.device(), y, in[0], diagonal, upper);
                return y;
              },
              0);
  same_on_device({picks({300}, 4)}, [](const Inputs& in) {
    const Tensor y = zeros({300, 4}, {DType::i64, in[0].device()});
    kernels::one_hot_fwd(y.device(), y, in[0], 4);
    return y;
  });
}

TEST_CASE("cuda: a wrong index is thrown at the next wait, and the device goes on") {
  const Tensor x = there(numbers({4, 2}, DType::f32));
  const Tensor index = there(from_values(std::vector<int64_t>{0, 1, 4, 2}, {2, 2}));
  const Tensor y = gather(x, 0, index);
  std::string text;
  try {
    cuda::synchronize(kGpu);
  } catch (const Error& error) {
    text = error.what();
  }
  CHECK(text == "gather: index must be in [0, 4), got 4 at position [1, 0]");
  const Tensor good = there(from_values(std::vector<int64_t>{0, 1, 3, 2}, {2, 2}));
  CHECK(distance(gather(x, 0, good),
                 gather(raw::to(x, DType::f32, kCPU), 0, raw::to(good, DType::i64, kCPU))) == 0);
  CHECK(emulator::guard_violations() == 0);
}
