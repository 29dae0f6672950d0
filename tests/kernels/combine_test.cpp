// combine against plain loops in double precision.
#include "cairn/kernels/combine.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "cairn/tensor/factory.h"
#include "tests/catch.h"

using namespace cairn;
using kernels::Part;
using kernels::ReduceOp;

namespace {

void combine(void* out, DType dtype, std::span<const Part> parts, int64_t n, ReduceOp op,
             double scale = 1) {
  kernels::combine(kCPU, out, dtype, parts, n, op, scale);
}

}  // namespace

TEST_CASE("kernels: combine sums f32 in order and halves in f32") {
  const int64_t n = 3001;  // more than a block, and a rest
  std::vector<float> a(n), b(n), c(n), out(n);
  std::vector<bfloat16> ha(n), hb(n), hc(n), hout(n);
  for (int64_t i = 0; i < n; ++i) {
    a[i] = std::sin(static_cast<float>(i));
    b[i] = 1e4f * std::cos(static_cast<float>(i));
    c[i] = 1e-3f * static_cast<float>(i);
    ha[i] = bfloat16(a[i]), hb[i] = bfloat16(b[i]), hc[i] = bfloat16(c[i]);
  }
  const Part parts[] = {{a.data(), DType::f32}, {b.data(), DType::f32}, {c.data(), DType::f32}};
  combine(out.data(), DType::f32, parts, n, ReduceOp::avg, 1.0 / 3);
  const Part halves[] = {
      {ha.data(), DType::bf16}, {hb.data(), DType::bf16}, {hc.data(), DType::bf16}};
  combine(hout.data(), DType::bf16, halves, n, ReduceOp::sum);
  const Part mixed[] = {{a.data(), DType::f32}, {hb.data(), DType::bf16}};
  std::vector<float> sum(n);
  combine(sum.data(), DType::f32, mixed, n, ReduceOp::sum);
  for (int64_t i = 0; i < n; ++i) {
    REQUIRE(out[i] == static_cast<float>(((a[i] + b[i]) + c[i]) * (1.0 / 3)));
    REQUIRE(hout[i].bits == bfloat16((float(ha[i]) + float(hb[i])) + float(hc[i])).bits);
    REQUIRE(sum[i] == a[i] + float(hb[i]));
  }
}

TEST_CASE("kernels: combine of integers wraps around and orders with signs") {
  const int32_t top = std::numeric_limits<int32_t>::max();
  std::vector<int32_t> a{top, -5, 3}, b{1, 2, -7}, out(3);
  const Part parts[] = {{a.data(), DType::i32}, {b.data(), DType::i32}};
  combine(out.data(), DType::i32, parts, 3, ReduceOp::sum);
  CHECK(out == std::vector<int32_t>{std::numeric_limits<int32_t>::min(), -3, -4});
  combine(out.data(), DType::i32, parts, 3, ReduceOp::min);
  CHECK(out == std::vector<int32_t>{1, -5, -7});
  combine(out.data(), DType::i32, parts, 3, ReduceOp::max);
  CHECK(out == std::vector<int32_t>{top, 2, 3});
  combine(out.data(), DType::i32, parts, 3, ReduceOp::prod);
  CHECK(out == std::vector<int32_t>{top, -10, -21});
}

TEST_CASE("kernels: combine may write over a part and carries NaN through min and max") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> a{1, nan, 3}, b{2, 2, nan};
  const Part parts[] = {{a.data(), DType::f32}, {b.data(), DType::f32}};
  combine(a.data(), DType::f32, parts, 3, ReduceOp::max);
  CHECK(a[0] == 2);
  CHECK(std::isnan(a[1]));
  CHECK(std::isnan(a[2]));
}

TEST_CASE("kernels: combine gives the same bits wherever it is cut, to several buffers") {
  const int64_t n = 517;
  const auto value = [](int64_t i) { return std::sin(static_cast<float>(i * i)); };
  for (ReduceOp op : {ReduceOp::sum, ReduceOp::avg, ReduceOp::min, ReduceOp::max, ReduceOp::prod}) {
    std::vector<float> a(n), b(n), whole(n), cut(n);
    std::vector<float16> ha(n), hb(n), half(n), half_cut(n);
    for (int64_t i = 0; i < n; ++i) {
      a[i] = value(i), b[i] = value(i + 7);
      ha[i] = float16(a[i]), hb[i] = float16(b[i]);
    }
    const double scale = op == ReduceOp::avg ? 0.2 : 1;
    const auto run = [&](auto* out, const auto& x, const auto& y, int64_t from, int64_t count) {
      const DType dtype = dtype_of<std::remove_pointer_t<decltype(out)>>();
      const Part parts[] = {{x.data() + from, dtype}, {y.data() + from, dtype}};
      combine(out + from, dtype, parts, count, op, scale);
    };
    run(whole.data(), a, b, 0, n), run(half.data(), ha, hb, 0, n);
    for (int64_t from = 0, step = 1; from < n; from += step, ++step) {
      run(cut.data(), a, b, from, std::min(step, n - from));
      run(half_cut.data(), ha, hb, from, std::min(step, n - from));
    }
    CHECK(std::memcmp(whole.data(), cut.data(), n * 4) == 0);
    CHECK(std::memcmp(half.data(), half_cut.data(), n * 2) == 0);

    const Part parts[] = {{a.data(), DType::f32}, {b.data(), DType::f32}};
    void* const outs[] = {a.data(), b.data()};
    kernels::combine_to_all(kCPU, std::span<void* const>(outs), DType::f32,
                            std::span<const Part>(parts), n, op, scale);
    CHECK(a == whole);
    CHECK(b == whole);
  }
}

TEST_CASE("kernels: combine in every integer and in f64") {
  const auto both = []<class T>(ReduceOp op, T x, T y) {
    const Part parts[] = {{&x, dtype_of<T>()}, {&y, dtype_of<T>()}};
    T out{};
    combine(&out, dtype_of<T>(), parts, 1, op);
    return out;
  };
  CHECK(both(ReduceOp::sum, uint8_t{200}, uint8_t{100}) == 44);
  CHECK(both(ReduceOp::prod, uint8_t{200}, uint8_t{3}) == 88);
  CHECK(both(ReduceOp::max, uint8_t{200}, uint8_t{100}) == 200);
  CHECK(both(ReduceOp::sum, int64_t{1} << 62, int64_t{1} << 62) ==
        std::numeric_limits<int64_t>::min());
  CHECK(both(ReduceOp::min, int64_t{-3}, int64_t{2}) == -3);
  CHECK(both(ReduceOp::sum, 1.0, 1e-16) == 1.0 + 1e-16);
  CHECK(both(ReduceOp::prod, 3.0, 0.1) == 3.0 * 0.1);
}
