// Elementwise ops beyond the op table: promotion, integers, layouts, in-place forms, fast maths.
#include "cairn/autograd/ops/elementwise.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/kernels/fast_math.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

namespace {

template <class T>
std::vector<T> list(const Tensor& t) {
  const Tensor c = raw::contiguous(t);
  return std::vector<T>(c.data<T>(), c.data<T>() + c.numel());
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

Tensor leaf(std::initializer_list<float> values) {
  return set_requires_grad(tensor<float>(values));
}

// Distance in units in the last place of a float.
int64_t ulps(float a, float b) {
  if (std::isnan(a) && std::isnan(b)) return 0;
  const auto key = [](float v) {
    int32_t bits = 0;
    std::memcpy(&bits, &v, 4);
    return bits < 0 ? int64_t{INT32_MIN} - bits : int64_t{bits};
  };
  return std::abs(key(a) - key(b));
}

}  // namespace

TEST_CASE("autograd: numbers promote by kind only") {
  const Tensor f = ones({2}, {DType::bf16});
  const Tensor i = ones({2}, {DType::i32});
  const Tensor b = ones({2}, {DType::boolean});
  CHECK((f + 1.5).dtype() == DType::bf16);
  CHECK((i + 1).dtype() == DType::i32);
  CHECK((i + 1.5).dtype() == DType::f32);
  CHECK((i + true).dtype() == DType::i32);
  CHECK((b + 1).dtype() == DType::i64);
  CHECK((b + b).dtype() == DType::boolean);
  CHECK(div(i, i).dtype() == DType::f32);
  CHECK(exp(i).dtype() == DType::f32);
}

TEST_CASE("autograd: 0-d tensors lose against dimensions within a kind") {
  const Tensor f32 = ones({2});
  const Tensor f64_0d = scalar_tensor(1, {DType::f64});
  const Tensor i64 = ones({2}, {DType::i64});
  CHECK((f32 + f64_0d).dtype() == DType::f32);
  CHECK((f64_0d + f32).dtype() == DType::f32);
  CHECK((i64 + f64_0d).dtype() == DType::f64);
  CHECK((scalar_tensor(1) + f64_0d).dtype() == DType::f64);
  CHECK((ones({2}, {DType::u8}) + scalar_tensor(1, {DType::i64})).dtype() == DType::u8);
}

TEST_CASE("autograd: gradients come back in the input's dtype") {
  const Tensor a = set_requires_grad(ones({3}, {DType::bf16}));
  const Tensor b = set_requires_grad(full({2, 3}, 2, {DType::f64}));
  const Tensor y = a * b;
  CHECK(y.dtype() == DType::f64);
  backward(sum(y));
  CHECK(grad(a).dtype() == DType::bf16);
  CHECK(static_cast<float>(grad(a).data<bfloat16>()[0]) == 4);
  CHECK(grad(b).dtype() == DType::f64);
}

TEST_CASE("autograd: integer division, remainder and powers") {
  const Tensor a = tensor<int64_t>({7, -7, 7, -7, 0});
  const Tensor b = tensor<int64_t>({2, 2, -2, -2, 3});
  CHECK(list<int64_t>(floor_divide(a, b)) == std::vector<int64_t>{3, -4, -4, 3, 0});
  CHECK(list<int64_t>(remainder(a, b)) == std::vector<int64_t>{1, 1, -1, -1, 0});
  CHECK(list<int64_t>(pow(a, 2)) == std::vector<int64_t>{49, 49, 49, 49, 0});
  const int64_t lowest = std::numeric_limits<int64_t>::min();
  CHECK(list<int64_t>(floor_divide(tensor<int64_t>({lowest}), -1)) == std::vector<int64_t>{lowest});
  CHECK(list<int64_t>(tensor<int64_t>({lowest}) - 1) ==
        std::vector<int64_t>{std::numeric_limits<int64_t>::max()});
  CHECK(list<uint8_t>(tensor<uint8_t>({250}) + 10) == std::vector<uint8_t>{4});
  CHECK(list<int64_t>(clamp(a, -3, {})) == std::vector<int64_t>{7, -3, 7, -3, 0});
  CHECK(list<int64_t>(relu(a)) == std::vector<int64_t>{7, 0, 7, 0, 0});
}

TEST_CASE("autograd: comparisons with numbers outside the dtype") {
  const Tensor x = tensor<uint8_t>({0, 200});
  CHECK(list<bool>(lt(x, 300)) == std::vector<bool>{true, true});
  CHECK(list<bool>(gt(x, -1)) == std::vector<bool>{true, true});
  CHECK(list<bool>(eq(x, 200)) == std::vector<bool>{false, true});
  CHECK(list<bool>(lt(tensor<int64_t>({2, 3}), 2.5)) == std::vector<bool>{true, false});
}

TEST_CASE("autograd: elementwise results keep a dense layout") {
  const Tensor images = raw::channels_last(randn({2, 3, 4, 5}));
  CHECK(relu(images).is_channels_last());
  CHECK((images + images).is_channels_last());
  CHECK((images * randn({3, 1, 1})).is_channels_last());
  CHECK((randn({3, 1, 1}) * images).is_channels_last());
  CHECK(gt(images, 0).is_channels_last());
  const Tensor t = raw::transpose(randn({3, 4}), 0, 1);
  CHECK(exp(t).strides() == t.strides());
  CHECK(exp(raw::slice(t, 0, 0, 2)).is_contiguous());
}

TEST_CASE("autograd: in-place ops write and are recorded") {
  const Tensor w = leaf({1, -2, 3});
  Tensor h = w * 2.0;
  add_(h, tensor<float>({1}));
  mul_(h, w);
  relu_(h);
  CHECK(list<float>(h) == std::vector<float>{3, 6, 21});
  backward(sum(h));  // h = (2 w + 1) w, slope 4 w + 1
  CHECK(list<float>(grad(w)) == std::vector<float>{5, -7, 13});

  const Tensor v = leaf({1, 2});
  Tensor u = v * 3.0;
  mul_(u, u);
  backward(sum(u));
  CHECK(list<float>(grad(v)) == std::vector<float>{18, 36});

  const Tensor p = leaf({1, 2});
  Tensor q = p * 1.0;
  copy_(q, tensor<float>({5, 6}));
  add_(q, p, 0.5);
  backward(sum(q));
  CHECK(list<float>(grad(p)) == std::vector<float>{0.5, 0.5});
}

TEST_CASE("autograd: in-place ops broadcast, convert and keep leaves under NoGrad") {
  const Tensor x = zeros({2, 3});
  add_(x, tensor<double>({1, 2, 3}), -1);
  CHECK(list<float>(x) == std::vector<float>{-1, -2, -3, -1, -2, -3});
  const Tensor w = leaf({1, 2});
  {
    NoGrad no_grad;
    mul_(w, 2);
    add_(w, 1);
  }
  CHECK(requires_grad(w));
  CHECK(list<float>(w) == std::vector<float>{3, 5});
  // Overlapping operands are read as they were before.
  const Tensor line = tensor<float>({1, 2, 3, 4});
  add_(raw::slice(line, 0, 1, 4), raw::slice(line, 0, 0, 3));
  CHECK(list<float>(line) == std::vector<float>{1, 3, 5, 7});
}

TEST_CASE("autograd: in-place errors") {
  const Tensor w = leaf({1, 2});
  CHECK(error_of([&] { relu_(w); }) ==
        "relu_: input must not be a leaf that requires a gradient; wrap the call in NoGrad");
  CHECK(error_of([&] {
          add_(zeros({2}), zeros({3, 2}));
        }) == "add_: other must broadcast to [2], got [3, 2]");
  CHECK(error_of([&] { add_(zeros({2}, {DType::i64}), 0.5); }) ==
        "add_: result must fit the input's dtype i64, got a floating number");
  CHECK(error_of([&] { mul_(zeros({2}, {DType::i64}), zeros({2})); }) ==
        "mul_: result must fit the input's dtype i64, got f32");
  CHECK(error_of([&] { add_(raw::expand(zeros({1}), {3}), 1.0); }) ==
        "add_: input must not be an expanded view, got strides [0]");
  CHECK(error_of([&] { add_(raw::slice(zeros({4}), 0, 0, 2), w); }) ==
        "add_: input must not be a view while a gradient is recorded; use the form without "
        "underscore");

  Tensor h = w * 1.0;
  const Tensor y = exp(h);
  relu_(y);
  CHECK(error_of([&] { backward(sum(y)); }) ==
        "exp: a tensor saved for backward was changed in place by relu_");
  Tensor k = w * 1.0;
  const Tensor squared = k * k;
  zero_(k);
  CHECK(error_of([&] { backward(sum(squared)); }) ==
        "mul: a tensor saved for backward was changed in place by zero_");
}

TEST_CASE("autograd: errors of elementwise ops") {
  const Tensor b = zeros({2}, {DType::boolean});
  CHECK(error_of([&] { neg(b); }) == "neg: dtype must not be bool");
  CHECK(error_of([&] { sub(b, b); }) == "sub: dtype must not be bool");
  CHECK(error_of([&] { pow(zeros({2}, {DType::i64}), -1); }) ==
        "pow: exponent must not be negative for integers, got -1");
  CHECK(error_of([&] { add(zeros({2}, {DType::u8}), 256); }) == "add: number must fit u8, got 256");
  CHECK(error_of([&] { remainder(ones({2}, {DType::i64}), zeros({2}, {DType::i64})); }) ==
        "remainder: divisor must not be 0 for integers");
}

TEST_CASE("autograd: float maths is within a few ulp of the true values") {
  struct Function {
    float (*fast)(float);
    double (*truth)(double);
    int64_t allowed;
  };
  const Function functions[] = {
      {[](float x) { return fast::exp(x); }, [](double x) { return std::exp(x); }, 2},
      {[](float x) { return fast::expm1(x); }, [](double x) { return std::expm1(x); }, 4},
      {[](float x) { return fast::tanh(x); }, [](double x) { return std::tanh(x); }, 4},
      {[](float x) { return fast::log(x); }, [](double x) { return std::log(x); }, 4},
      {[](float x) { return fast::log2(x); }, [](double x) { return std::log2(x); }, 4},
      {[](float x) { return fast::log1p(x); }, [](double x) { return std::log1p(x); }, 4},
      {[](float x) { return fast::erf(x); }, [](double x) { return std::erf(x); }, 4},
  };
  // All binades, several mantissas each, both signs; and the ends.
  std::vector<float> points{0,
                            -0.0f,
                            1e-45f,
                            -1e-45f,
                            88.7f,
                            88.73f,
                            -87.4f,
                            -103.9f,
                            0.95f,
                            std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::max()};
  for (int e = -140; e < 128; ++e)
    for (int m = 0; m < 97; ++m)
      for (const float sign : {1.0f, -1.0f})
        points.push_back(sign * std::ldexp(1.0f + static_cast<float>(m) / 97.0f, e));
  for (size_t f = 0; f < std::size(functions); ++f) {
    int64_t worst = 0;
    float where = 0;
    for (const float x : points) {
      const auto want = static_cast<float>(functions[f].truth(x));
      if (std::fabs(want) < std::numeric_limits<float>::min()) continue;  // subnormal: absolute
      const int64_t distance = ulps(functions[f].fast(x), want);
      if (distance > worst) worst = distance, where = x;
    }
    INFO("function " << f << " is worst at " << where);
    CHECK(worst <= functions[f].allowed);
  }
}
