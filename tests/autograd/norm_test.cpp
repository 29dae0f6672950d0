// Normalisation beyond the op table: running statistics and accuracy far from zero.
#include "cairn/autograd/ops/norm.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

TEST_CASE("autograd: batch_norm moves running statistics towards mean and unbiased variance") {
  const Tensor x = from_values<double>({1, 10, 3, 20, 5, 60}, {3, 2});
  const Tensor mean = from_values<double>({1, -1}, {2}), var = from_values<double>({2, 4}, {2});
  batch_norm(x, mean, var, {}, {}, {.training = true, .momentum = 0.25});
  CHECK(mean.data<double>()[0] == Approx(0.75 * 1 + 0.25 * 3).epsilon(1e-14));
  CHECK(mean.data<double>()[1] == Approx(0.75 * -1 + 0.25 * 30).epsilon(1e-14));
  CHECK(var.data<double>()[0] == Approx(0.75 * 2 + 0.25 * 4).epsilon(1e-14));
  CHECK(var.data<double>()[1] == Approx(0.75 * 4 + 0.25 * 700).epsilon(1e-14));
  batch_norm(x, mean, var, {}, {}, {.training = false});
  CHECK(mean.data<double>()[0] == Approx(1.5).epsilon(1e-14));
  // An empty batch says nothing about the data.
  batch_norm(zeros({0, 2}, {DType::f64}), mean, var, {}, {}, {.training = true});
  CHECK(mean.data<double>()[0] == Approx(1.5).epsilon(1e-14));
}

TEST_CASE("autograd: batch_norm of f32 keeps its digits at mean 1000 and spread 0.01") {
  Generator generator(3);
  const int64_t rows = 5000, channels = 3;
  const Tensor x = randn({rows, channels}, {}, generator);
  for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] = 1000 + 0.01f * x.data<float>()[i];
  const Tensor y = batch_norm(x, {}, {}, {}, {}, {.training = true, .eps = 0});
  for (int64_t c = 0; c < channels; ++c) {
    double mean = 0, var = 0, worst = 0;
    const auto at = [&](int64_t r) {
      return static_cast<double>(x.data<float>()[r * channels + c]);
    };
    for (int64_t r = 0; r < rows; ++r) mean += at(r) / rows;
    for (int64_t r = 0; r < rows; ++r) var += (at(r) - mean) * (at(r) - mean) / rows;
    for (int64_t r = 0; r < rows; ++r) {
      const double want = (at(r) - mean) / std::sqrt(var);
      const double got = static_cast<double>(y.data<float>()[r * channels + c]);
      worst = std::max(worst, std::abs(got - want));
    }
    // |y| reaches 4: a few roundings of f32, and nothing of the mean's 6e-5 steps (0.006 in y).
    CHECK(worst < 4 * 4 * 1.2e-7);
  }
}

TEST_CASE("autograd: batch_norm of bf16 takes weights and statistics of f32") {
  const Tensor x = raw::to(randn({8, 4, 3, 3}), DType::bf16);
  const Tensor w = ones({4}), b = zeros({4}), mean = zeros({4}), var = ones({4});
  for (const Tensor& t : {w, b}) set_requires_grad(t);
  const Tensor y = batch_norm(x, mean, var, w, b, {.training = true});
  CHECK(y.dtype() == DType::bf16);
  backward(y, ones_like(y));
  CHECK(grad(b).dtype() == DType::f32);
  CHECK(grad(b).data<float>()[0] == 72.0f);
}

TEST_CASE("autograd: batch_norm_relu notices that its output was changed in place") {
  const Tensor x = randn({4, 2});
  set_requires_grad(x);
  const Tensor y = batch_norm_relu(x, randn({4, 2}), {}, {}, {}, {}, {.training = true});
  y.bump_version("mul_");  // as every op that writes in place does
  std::string text;
  try {
    backward(y, ones_like(y));
  } catch (const Error& e) {
    text = e.what();
  }
  CHECK(text == "batch_norm_relu: a tensor saved for backward was changed in place by mul_");
}
