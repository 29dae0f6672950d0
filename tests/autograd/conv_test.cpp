// conv2d beyond the op table: the layout of weights and what a steady step allocates.
#include "cairn/autograd/ops/conv.h"

#include <cmath>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/allocator.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

namespace {

// [O, I, KH, KW] with the bytes of [KH, KW, I, O].
Tensor hwio(const Tensor& w) {
  const Shape s = w.shape();
  Tensor out = empty_strided(s, {1, s[0], s[3] * s[1] * s[0], s[1] * s[0]}, {w.dtype()});
  raw::copy_(out, w);
  return out;
}

bool same_values(const Tensor& a, const Tensor& b) {
  const Tensor x = raw::contiguous(a), y = raw::contiguous(b);
  if (x.shape() != y.shape()) return false;
  for (int64_t i = 0; i < x.numel(); ++i)
    if (x.data<float>()[i] != y.data<float>()[i]) return false;
  return true;
}

}  // namespace

TEST_CASE("autograd: conv2d gives the same bits for weights of both layouts") {
  Generator generator(1);
  const Tensor x = randn({2, 6, 7, 7}, {}, generator);
  const Tensor plain = randn({8, 3, 3, 3}, {}, generator);
  const Tensor dense = hwio(plain);
  const Conv2dOptions options{.stride = 2, .padding = 1, .groups = 2};
  for (const Tensor& w : {plain, dense}) set_requires_grad(w);
  const Tensor y = conv2d(x, plain, {}, options), z = conv2d(x, dense, {}, options);
  CHECK(same_values(y, z));
  CHECK(y.is_channels_last());
  const Tensor up = randn(y.shape(), {}, generator);
  backward(y, up);
  backward(z, up);
  CHECK(same_values(grad(plain), grad(dense)));
  CHECK(grad(dense).strides() == dense.strides());
}

TEST_CASE("autograd: conv2d writes a weight's gradient into the leaf's own memory") {
  const Tensor w = hwio(randn({8, 4, 3, 3}));
  set_requires_grad(w);
  const Tensor memory = empty_like(w);
  raw::fill_(memory, std::nan(""));
  set_grad_memory(w, memory);
  const Tensor y = conv2d(randn({2, 4, 5, 5}), w);
  backward(y, ones_like(y));
  CHECK(grad(w).raw_data() == memory.raw_data());
  for (int64_t i = 0; i < memory.numel(); ++i) REQUIRE(std::isfinite(memory.data<float>()[i]));
}

TEST_CASE("autograd: conv2d asks the system for no memory in a steady step") {
  const Tensor w = hwio(randn({16, 8, 3, 3}));
  const Tensor b = zeros({16});
  const Tensor x = raw::channels_last(randn({4, 8, 9, 9}));
  for (const Tensor& t : {w, b, x}) set_requires_grad(t);
  int64_t before = 0;
  for (int step = 0; step < 6; ++step) {
    if (step == 3) before = memory_stats().system_allocations;
    const Tensor y = conv2d(x, w, b, {.padding = 1});
    backward(y, y);
  }
  CHECK(memory_stats().system_allocations == before);
}

TEST_CASE("autograd: conv2d gives an empty batch's weights a gradient of zeros") {
  const Tensor w = randn({3, 2, 3, 3}), b = randn({3});
  for (const Tensor& t : {w, b}) set_requires_grad(t);
  const Tensor y = conv2d(zeros({0, 2, 5, 5}), w, b);
  CHECK(y.shape() == Shape{0, 3, 3, 3});
  backward(y, zeros_like(y));
  CHECK(same_values(grad(w), zeros({3, 2, 3, 3})));
  CHECK(same_values(grad(b), zeros({3})));
}
