// Reductions beyond the op table: integers, accuracy of long sums, layouts.
#include "cairn/autograd/ops/reduce.h"

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/tensor/parallel.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

TEST_CASE("autograd: integers and bool sum to i64") {
  CHECK(sum(tensor<uint8_t>({200, 100})).item<int64_t>() == 300);
  CHECK(sum(tensor<bool>({true, true, false})).item<int64_t>() == 2);
  CHECK(sum(tensor<int32_t>({1, 2})).dtype() == DType::i64);
  CHECK(prod(tensor<int32_t>({1 << 20, 1 << 20})).item<int64_t>() == int64_t{1} << 40);
  CHECK(amax(tensor<bool>({false, true})).item<bool>());
  CHECK(cumsum(tensor<int32_t>({1, 2, 3}), 0).data<int64_t>()[2] == 6);
  CHECK(argmax(tensor<int64_t>({1, 5, 5})).item<int64_t>() == 1);
}

TEST_CASE("autograd: long float sums are as exact as a tree") {
  // A running f32 sum of 0.1 would be off by more than 1e-3 after 10 million terms.
  const Tensor x = full({10'000'000}, 0.1);
  const double truth = 10'000'000 * static_cast<double>(0.1f);
  CHECK(sum(x).item<double>() == Approx(truth).epsilon(1e-6));
  const Tensor columns = full({1'000'000, 5}, 0.1);
  CHECK(sum(columns, {0}).data<float>()[3] ==
        Approx(1'000'000 * static_cast<double>(0.1f)).epsilon(1e-6));
  CHECK(mean(full({3'000'000}, 0.1, {DType::bf16})).item<double>() == Approx(0.1001).epsilon(4e-3));
}

TEST_CASE("autograd: sums over any layout agree on any number of threads") {
  const Tensor images = raw::channels_last(randn({5, 37, 33, 31}));
  const Tensor expected = sum(raw::contiguous(images), {0, 2, 3});
  const int before = num_threads();
  Tensor first;
  for (const int threads : {1, 2, 4}) {
    set_num_threads(threads);
    const Tensor got = sum(images, {0, 2, 3});
    if (!first.defined()) first = got;
    for (int64_t c = 0; c < 37; ++c) {
      CHECK(got.data<float>()[c] == first.data<float>()[c]);
      CHECK(got.data<float>()[c] == Approx(expected.data<float>()[c]).margin(1e-3));
    }
  }
  set_num_threads(before);
}

TEST_CASE("autograd: accumulate_to adds, converts and sums where the destination was broadcast") {
  using kernels::Dst;
  const Tensor ones_f64 = ones({2, 3, 4}, {DType::f64});
  for (const DType dst : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (const DType src : {DType::f64, DType::f32, DType::bf16, DType::i64, DType::boolean}) {
      const Tensor from = raw::to(ones_f64, src);
      for (const Shape& shape : {Shape{2, 3, 4}, Shape{3, 1}, Shape{4}, Shape{2, 1, 1}, Shape{}}) {
        const Tensor to = full(shape, 5, {dst});
        const double terms = 24.0 / static_cast<double>(to.numel());
        kernels::accumulate_to(kCPU, Dst{to, true}, from);
        CHECK(raw::to(to, DType::f64).data<double>()[0] == 5 + terms);
        kernels::accumulate_to(kCPU, Dst{to, false}, from);
        CHECK(raw::to(to, DType::f64).data<double>()[0] == terms);
      }
    }
  // A transposed source and a channels-last destination.
  const Tensor x = randn({2, 3, 4, 5});
  const Tensor to = zeros_like(raw::channels_last(x));
  kernels::accumulate_to(kCPU, Dst{to, true}, x);
  CHECK(sum(abs(sub(to, x))).item<double>() == 0);
}

TEST_CASE("autograd: max and min hand the gradient to the index they return") {
  const Tensor x = set_requires_grad(from_values(std::vector<float>{1, 3, 3, 5, 5, 2}, {2, 3}));
  const auto [values, indices] = max(x, 1);
  CHECK(indices.data<int64_t>()[0] == 1);
  CHECK(indices.data<int64_t>()[1] == 0);
  backward(sum(values));
  const std::vector<float> expected{0, 1, 0, 1, 0, 0};
  for (int64_t i = 0; i < 6; ++i)
    CHECK(grad(x).data<float>()[i] == expected[static_cast<size_t>(i)]);
}

TEST_CASE("autograd: softmax of a transposed input gives its gradient in the input's layout") {
  const Tensor x = set_requires_grad(raw::clone(raw::transpose(randn({4, 3}), 0, 1)));
  CHECK(!x.is_contiguous());
  backward(sum(square(softmax(x, 1))));
  const Tensor flat = set_requires_grad(raw::contiguous(detach(x)));
  backward(sum(square(softmax(flat, 1))));
  CHECK(amax(abs(sub(grad(x), grad(flat)))).item<double>() < 1e-6);
}
