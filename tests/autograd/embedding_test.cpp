// Embedding and dropout beyond the op table.
#include "cairn/autograd/ops/embedding.h"

#include <cmath>
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

}  // namespace

TEST_CASE("autograd: embedding sums repeated rows and leaves padding_idx out") {
  const Tensor w = zeros({4, 2});
  set_requires_grad(w);
  const Tensor index = from_values<int64_t>({1, 3, 1, 0}, {4});
  backward(embedding(w, index, 3), from_values<float>({1, 2, 3, 4, 5, 6, 7, 8}, {4, 2}));
  CHECK(list(grad(w)) == std::vector<float>{7, 8, 6, 8, 0, 0, 0, 0});
}

TEST_CASE("autograd: embedding takes i32 indices") {
  const Tensor w = from_values<float>({1, 2, 3}, {3, 1});
  CHECK(list(embedding(w, from_values<int32_t>({2, 0}, {2}))) == std::vector<float>{3, 1});
}

TEST_CASE("autograd: embedding in bf16 does not lose small rows") {
  // 300 ones: added one by one in bf16 they would stop at 256.
  const Tensor w = zeros({1, 1}, {DType::bf16});
  set_requires_grad(w);
  backward(embedding(w, zeros({300}, {DType::i64})), ones({300, 1}, {DType::bf16}));
  CHECK(grad(w).item() == 300.0);
}

TEST_CASE("autograd: dropout drops the right share and sends gradients the same way") {
  Generator generator(7);
  const int64_t n = 100000;
  const Tensor x = ones({n});
  set_requires_grad(x);
  const Tensor y = dropout(x, 0.3, true, generator);
  backward(y, ones({n}));
  CHECK(list(grad(x)) == list(y));
  int64_t kept = 0;
  for (const float v : list(y)) {
    REQUIRE((v == 0.0f || v == 1.0f / 0.7f));
    kept += v != 0.0f;
  }
  // Six standard deviations of a binomial count.
  CHECK(std::abs(static_cast<double>(kept) - 0.7 * n) < 6 * std::sqrt(0.21 * n));
  CHECK(list(dropout(x, 0.3, true, generator)) != list(y));
  Generator again(7);
  CHECK(list(dropout(x, 0.3, true, again)) == list(y));
}

TEST_CASE("autograd: dropout numbers elements in row-major order whatever the layout") {
  const Tensor x = ones({3, 5});
  const Tensor turned = raw::transpose(raw::contiguous(raw::transpose(x, 0, 1)), 0, 1);
  Generator a(1), b(1);
  CHECK(list(dropout(x, 0.5, true, a)) == list(dropout(turned, 0.5, true, b)));
}
