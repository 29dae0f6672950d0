// Matrix products beyond the op table: where gradients are written.
#include "cairn/autograd/ops/matmul.h"

#include <algorithm>
#include <string>
#include <vector>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/tensor/profiler.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/tensor/elements.h"

using namespace cairn;
using test::elements;

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

TEST_CASE("autograd: linear with an activation is the two ops, bit for bit, in fewer kernels") {
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const Activation activation : {Activation::relu, Activation::gelu_tanh}) {
      const Tensor x = randn({33, 20}, {dtype}), w = randn({17, 20}, {dtype});
      const Tensor b = randn({17}, {dtype}), slope = randn({33, 17}, {dtype});
      for (const Tensor& t : {x, w, b}) set_requires_grad(t);
      const Tensor plain = linear(x, w, b);
      const Tensor two =
          activation == Activation::relu ? relu(plain) : gelu(plain, GeluApproximate::tanh);
      backward(two, slope);
      std::vector<std::vector<double>> gradients;
      for (const Tensor& t : {x, w, b}) {
        gradients.push_back(elements(grad(t)));
        zero_grad(t);
      }
      profiler::Profile profile;
      const Tensor one = linear(x, w, b, {.activation = activation});
      backward(one, slope);
      profile.stop();
      CHECK(elements(one) == elements(two));
      size_t i = 0;
      for (const Tensor& t : {x, w, b}) CHECK(elements(grad(t)) == gradients[i++]);
      std::string kernels;
      for (const auto& row : profile.rows())
        if (row.kind == profiler::Kind::kernel) kernels += row.name + " ";
      CHECK(kernels.find("linear_bwd_activation ") != std::string::npos);
      for (const char* other : {"sum_rows", "relu_", "gelu_"})
        CHECK(kernels.find(other) == std::string::npos);
    }
  }
}

TEST_CASE("autograd: linear with an activation adds to the bias's gradient, of any stride") {
  const Tensor x = randn({6, 4}), w = randn({5, 4});
  const Tensor b = raw::slice(randn({10}), 0, 0, 10, 2);
  set_requires_grad(b);
  const Tensor y = linear(x, w, b, {.activation = Activation::relu});
  backward(y, ones_like(y));
  const auto once = elements(grad(b));
  const Tensor again = linear(x, w, b, {.activation = Activation::relu});
  backward(again, ones_like(again));
  for (size_t i = 0; i < 5; ++i) {
    double above = 0;
    for (int64_t r = 0; r < 6; ++r) above += y.data<float>()[r * 5 + static_cast<int64_t>(i)] > 0;
    CHECK(once[i] == above);
    CHECK(elements(grad(b))[i] == 2 * above);
  }
}

namespace {

Tensor two_layers(const std::vector<Tensor>& t, Activation activation) {
  return linear(linear(t[0], t[1], t[2], {.activation = activation}), t[3], t[4]);
}

// x, weight1, bias1, weight2, bias2.
std::vector<Tensor> feed_forward_inputs(DType dtype) {
  return {randn({3, 11, 20}, {dtype}), randn({33, 20}, {dtype}), randn({33}, {dtype}),
          randn({17, 33}, {dtype}), randn({17}, {dtype})};
}

}  // namespace

TEST_CASE("autograd: feed_forward is its two layers, bit for bit, whatever is trained") {
  for (const DType dtype : {DType::f64, DType::f32})
    for (const Activation activation : {Activation::relu, Activation::gelu_tanh})
      for (unsigned trained = 0; trained < 32; ++trained) {
        INFO(name_of(dtype) << " " << trained);
        const std::vector<Tensor> t = feed_forward_inputs(dtype);
        for (size_t i = 0; i < 5; ++i)
          if (trained >> i & 1) set_requires_grad(t[i]);
        const Tensor slope = randn({3, 11, 17}, {dtype});
        const Tensor two = two_layers(t, activation);
        const Tensor one = feed_forward(t[0], t[1], t[2], t[3], t[4], {.activation = activation});
        CHECK(elements(one) == elements(two));
        CHECK(requires_grad(one) == (trained != 0));
        if (trained == 0) continue;
        backward(two, slope);
        std::vector<std::vector<double>> wanted(5);
        for (size_t i = 0; i < 5; ++i) {
          if (!(trained >> i & 1)) continue;
          wanted[i] = elements(grad(t[i]));
          zero_grad(t[i]);
        }
        backward(one, slope);
        for (size_t i = 0; i < 5; ++i)
          if (trained >> i & 1) CHECK(elements(grad(t[i])) == wanted[i]);
      }
}

TEST_CASE("autograd: feed_forward's backward goes through the activation in one kernel") {
  for (const Activation activation : {Activation::relu, Activation::gelu_tanh}) {
    const std::vector<Tensor> t = feed_forward_inputs(DType::f32);
    for (const Tensor& one : t) set_requires_grad(one);
    const Tensor y = feed_forward(t[0], t[1], t[2], t[3], t[4], {.activation = activation});
    const Tensor slope = ones_like(y);
    profiler::Profile profile;
    backward(y, slope);
    profile.stop();
    std::vector<std::string> kernels;
    for (const auto& row : profile.rows({.sort_by = "name"}))
      if (row.kind == profiler::Kind::kernel)
        kernels.push_back(row.name + " " + std::to_string(row.calls));
    std::sort(kernels.begin(), kernels.end());
    CHECK(kernels ==
          std::vector<std::string>{"linear_bwd_input 1", "linear_bwd_weight 2", "matmul 1"});
  }
}

TEST_CASE("autograd: feed_forward trains one weight that is both layers'") {
  const Tensor w = set_requires_grad(randn({6, 6}, {DType::f64}));
  const Tensor x = randn({4, 6}, {DType::f64});
  const Tensor two = linear(linear(x, w, {}, {.activation = Activation::relu}), w);
  backward(two, ones_like(two));
  const auto wanted = elements(grad(w));
  zero_grad(w);
  const Tensor one = feed_forward(x, w, {}, w, {});
  backward(one, ones_like(one));
  CHECK(elements(grad(w)) == wanted);
}
