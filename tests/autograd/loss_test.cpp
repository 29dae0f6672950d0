// Losses beyond the op table: ignored targets, index dtypes, values that are not finite.
#include "cairn/autograd/ops/loss.h"

#include <cmath>
#include <limits>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

TEST_CASE("autograd: cross_entropy with every target ignored is NaN with a gradient of zero") {
  const Tensor x = ones({2, 3});
  set_requires_grad(x);
  const Tensor loss = cross_entropy(x, full({2}, -100, {DType::i64}));
  CHECK(std::isnan(loss.item()));
  backward(loss);
  for (int64_t i = 0; i < 6; ++i) CHECK(grad(x).data<float>()[i] == 0.0f);
}

TEST_CASE("autograd: nll_loss with every target ignored is NaN with a gradient of zero") {
  const Tensor x = ones({2, 3});
  set_requires_grad(x);
  const Tensor loss = nll_loss(x, full({2}, -100, {DType::i64}));
  CHECK(std::isnan(loss.item()));
  backward(loss);
  for (int64_t i = 0; i < 6; ++i) CHECK(grad(x).data<float>()[i] == 0.0f);
}

TEST_CASE("autograd: cross_entropy shows a NaN among the logits") {
  const Tensor x = zeros({1, 40});
  x.data<float>()[37] = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(cross_entropy(x, zeros({1}, {DType::i64})).item()));
}

TEST_CASE("autograd: cross_entropy takes i32 and u8 classes") {
  const Tensor x = randn({3, 4});
  const Tensor target = from_values<int64_t>({3, 0, 2}, {3});
  const double want = cross_entropy(x, target).item();
  CHECK(cross_entropy(x, raw::to(target, DType::i32)).item() == want);
  CHECK(cross_entropy(x, raw::to(target, DType::u8)).item() == want);
}

TEST_CASE("autograd: cross_entropy of a large vocabulary in f32") {
  const int64_t classes = 50257;
  const Tensor x = randn({2, classes});
  double want = 0;
  for (int64_t r = 0; r < 2; ++r) {
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c)
      sum += std::exp(static_cast<double>(x.data<float>()[r * classes + c]));
    want += (std::log(sum) - static_cast<double>(x.data<float>()[r * classes + 9])) / 2;
  }
  const double got = cross_entropy(x, full({2}, 9, {DType::i64})).item();
  CHECK(std::abs(got - want) < 4 * 1.2e-7 * want);
}
