// Matrix products beyond the op table: where gradients are written.
#include "cairn/autograd/ops/matmul.h"

#include "cairn/autograd/engine.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

TEST_CASE("autograd: linear writes gradients into the leaves' own memory, of either layout") {
  const Tensor x = randn({3, 4});
  const Tensor w = randn({5, 4}), b = randn({5});
  const Tensor turned = raw::transpose(raw::contiguous(raw::transpose(w, 0, 1)), 0, 1);
  REQUIRE(turned.stride(0) == 1);
  Tensor first;
  for (const Tensor& weight : {w, turned}) {
    set_requires_grad(weight);
    const Tensor memory = empty_like(weight);
    raw::fill_(memory, 1e30);
    set_grad_memory(weight, memory);
    const Tensor y = linear(x, weight, b);
    backward(y, ones_like(y));
    CHECK(grad(weight).raw_data() == memory.raw_data());
    const Tensor got = raw::contiguous(grad(weight));
    if (!first.defined()) first = got;
    for (int64_t i = 0; i < got.numel(); ++i)
      CHECK(got.data<float>()[i] == Approx(first.data<float>()[i]).margin(1e-6));
  }
}

TEST_CASE("autograd: matmul sums the gradient of a matrix that meets a batch") {
  const Tensor a = ones({2, 3}), b = ones({4, 3, 2});
  for (const Tensor& t : {a, b}) set_requires_grad(t);
  const Tensor y = matmul(a, b);
  backward(y, ones_like(y));
  for (int64_t i = 0; i < 6; ++i) CHECK(grad(a).data<float>()[i] == 8.0f);
  for (int64_t i = 0; i < 24; ++i) CHECK(grad(b).data<float>()[i] == 2.0f);
}

TEST_CASE("autograd: matmul of no products gives gradients of zeros") {
  const Tensor a = randn({2, 3}), b = zeros({0, 3, 2});
  set_requires_grad(a);
  const Tensor y = matmul(a, b);
  CHECK(y.shape() == Shape{0, 2, 2});
  backward(y, zeros_like(y));
  for (int64_t i = 0; i < 6; ++i) CHECK(grad(a).data<float>()[i] == 0.0f);
}
