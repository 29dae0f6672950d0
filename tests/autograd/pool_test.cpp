// Max pooling beyond the op table: who gets the gradient.
#include "cairn/autograd/ops/pool.h"

#include <cmath>
#include <limits>
#include <vector>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

namespace {

std::vector<float> list(const Tensor& t) {
  const Tensor flat = raw::contiguous(t);
  return {flat.data<float>(), flat.data<float>() + flat.numel()};
}

// The gradient of x [1, 1, H, W] when output o's own gradient is o + 1.
std::vector<float> pooled_gradient(const Tensor& x, const MaxPool2dOptions& options) {
  set_requires_grad(x);
  const Tensor y = max_pool2d(x, options);
  Tensor up = empty(y.shape());
  for (int64_t i = 0; i < up.numel(); ++i) up.data<float>()[i] = static_cast<float>(i + 1);
  backward(y, up);
  return list(grad(x));
}

}  // namespace

TEST_CASE("autograd: max_pool2d gives a tie to the first in row-major order") {
  CHECK(pooled_gradient(zeros({1, 1, 2, 4}), {.kernel_size = 2}) ==
        std::vector<float>{1, 0, 2, 0, 0, 0, 0, 0});
  // Overlapping windows with padding: taps in the padding never win.
  CHECK(pooled_gradient(zeros({1, 1, 3, 3}), {.kernel_size = 3, .stride = 2, .padding = 1}) ==
        std::vector<float>{1, 2, 0, 3, 4, 0, 0, 0, 0});
}

TEST_CASE("autograd: max_pool2d adds up windows that choose the same element") {
  const Tensor x = from_values<float>({0, 1, 0, 2, 9, 3, 0, 4, 0}, {1, 1, 3, 3});
  CHECK(pooled_gradient(x, {.kernel_size = 2, .stride = 1}) ==
        std::vector<float>{0, 0, 0, 0, 1 + 2 + 3 + 4, 0, 0, 0, 0});
}

TEST_CASE("autograd: max_pool2d lets NaN win and sends it the gradient") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor x = from_values<float>({1, nan, 5, 2}, {1, 1, 2, 2});
  CHECK(std::isnan(max_pool2d(x, {.kernel_size = 2}).item()));
  CHECK(pooled_gradient(x, {.kernel_size = 2}) == std::vector<float>{0, 1, 0, 0});
}

TEST_CASE("autograd: max_pool2d over padding alone is minus infinity and has no gradient") {
  // Both taps of the one window step over the two rows.
  const Tensor x = ones({1, 1, 2, 1});
  const MaxPool2dOptions options{
      .kernel_size = {2, 1}, .stride = 1, .padding = {1, 0}, .dilation = {3, 1}};
  CHECK(max_pool2d(x, options).item() == -std::numeric_limits<double>::infinity());
  CHECK(pooled_gradient(x, options) == std::vector<float>{0, 0});
}

TEST_CASE("autograd: pooling results lie channels-last") {
  const Tensor x = zeros({2, 3, 4, 4});
  CHECK(max_pool2d(x, {.kernel_size = 2}).is_channels_last());
  CHECK(avg_pool2d(x, {.kernel_size = 2}).is_channels_last());
  CHECK(adaptive_avg_pool2d(x, 2).is_channels_last());
}
