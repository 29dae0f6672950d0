// Autocast: which dtype every op gives, gradients, the cache of parameters, and its errors.
#include "cairn/autograd/autocast.h"

#include <cmath>
#include <cstring>
#include <functional>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/conv.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/embedding.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/autograd/ops/matmul.h"
#include "cairn/autograd/ops/norm.h"
#include "cairn/autograd/ops/pool.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/optim/helpers.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::leaf;

namespace {

struct Op {
  const char* name;
  std::function<Tensor(const Tensor& x)> run;  // x is positive, [4, 6]
};

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = raw::contiguous(a), y = raw::contiguous(b);
  return x.dtype() == y.dtype() && x.shape() == y.shape() &&
         std::memcmp(x.raw_data(), y.raw_data(), static_cast<size_t>(x.nbytes())) == 0;
}

Tensor positive(const Shape& shape, DType dtype) {
  Generator generator(5);
  const Tensor t = empty(shape, {dtype});
  uniform_(t, 0.25, 1, generator);
  return t;
}

// A weight of the other operand's size, f32.
Tensor weight(const Shape& shape) { return positive(shape, DType::f32); }

const std::vector<Op>& narrow_ops() {
  static const std::vector<Op> all = {
      {"matmul",
       [](const Tensor& x) {
         return matmul(x, weight({6, 3}));
       }},
      {"matmul, other side",
       [](const Tensor& x) {
         return matmul(weight({3, 4}), x);
       }},
      {"linear",
       [](const Tensor& x) {
         return linear(x, weight({3, 6}), weight({3}));
       }},
      {"feed_forward",
       [](const Tensor& x) {
         return feed_forward(x, weight({8, 6}), weight({8}), weight({3, 8}), weight({3}));
       }},
      {"conv2d",
       [](const Tensor& x) {
         return conv2d(reshape(x, {1, 4, 2, 3}), weight({5, 4, 1, 1}), weight({5}));
       }},
  };
  return all;
}

const std::vector<Op>& wide_ops() {
  const auto classes = [] { return zeros({4}, {DType::i64}); };
  static const std::vector<Op> all = {
      {"exp", [](const Tensor& x) { return exp(x); }},
      {"expm1", [](const Tensor& x) { return expm1(x); }},
      {"log", [](const Tensor& x) { return log(x); }},
      {"log1p", [](const Tensor& x) { return log1p(x); }},
      {"log2", [](const Tensor& x) { return log2(x); }},
      {"pow", [](const Tensor& x) { return pow(x, 2); }},
      {"pow of tensors", [](const Tensor& x) { return pow(x, x); }},
      {"reciprocal", [](const Tensor& x) { return reciprocal(x); }},
      {"rsqrt", [](const Tensor& x) { return rsqrt(x); }},
      {"softplus", [](const Tensor& x) { return softplus(x); }},
      {"tan", [](const Tensor& x) { return tan(x); }},
      {"sum", [](const Tensor& x) { return sum(x, {1}); }},
      {"prod", [](const Tensor& x) { return prod(x, 1); }},
      {"cumsum", [](const Tensor& x) { return cumsum(x, 1); }},
      {"norm", [](const Tensor& x) { return norm(x); }},
      {"softmax", [](const Tensor& x) { return softmax(x, 1); }},
      {"log_softmax", [](const Tensor& x) { return log_softmax(x, 1); }},
      {"logsumexp", [](const Tensor& x) { return logsumexp(x, 1); }},
      {"layer_norm", [](const Tensor& x) { return layer_norm(x, {6}, weight({6}), weight({6})); }},
      {"cross_entropy", [classes](const Tensor& x) { return cross_entropy(x, classes()); }},
      {"cross_entropy of probabilities",
       [](const Tensor& x) {
         return cross_entropy(x, weight({4, 6}), {.weight = raw::to(weight({6}), x.dtype())});
       }},
      {"nll_loss", [classes](const Tensor& x) { return nll_loss(x, classes()); }},
      {"mse_loss",
       [](const Tensor& x) {
         return mse_loss(x, weight({4, 6}));
       }},
      {"binary_cross_entropy_with_logits",
       [](const Tensor& x) {
         return binary_cross_entropy_with_logits(x, weight({4, 6}));
       }},
  };
  return all;
}

const std::vector<Op>& other_ops() {
  static const std::vector<Op> all = {
      {"relu", [](const Tensor& x) { return relu(x); }},
      {"gelu", [](const Tensor& x) { return gelu(x); }},
      {"sqrt", [](const Tensor& x) { return sqrt(x); }},
      {"add", [](const Tensor& x) { return add(x, x); }},
      {"mean", [](const Tensor& x) { return mean(x, {1}); }},
      {"amax", [](const Tensor& x) { return amax(x, {1}); }},
      {"cat",
       [](const Tensor& x) {
         return cat({x, x}, 0);
       }},
      {"dropout", [](const Tensor& x) { return dropout(x, 0.5, true); }},
      {"max_pool2d",
       [](const Tensor& x) {
         return max_pool2d(reshape(x, {1, 1, 4, 6}), {.kernel_size = {2, 2}});
       }},
      {"batch_norm",
       [](const Tensor& x) {
         return batch_norm(x, zeros({6}), ones({6}), weight({6}), weight({6}), {.training = true});
       }},
  };
  return all;
}

void check_dtypes(const std::vector<Op>& ops, DType given, DType wanted) {
  for (const Op& op : ops) {
    INFO(op.name << " of " << name_of(given));
    const Tensor x = set_requires_grad(positive({4, 6}, given));
    const Tensor y = op.run(x);
    CHECK(y.dtype() == wanted);
    backward(y, ones_like(y));
    CHECK(grad(x).dtype() == given);
    CHECK(std::isfinite(sum(raw::to(grad(x), DType::f64)).item()));
  }
}

}  // namespace

TEST_CASE("autograd: autocast gives every op its dtype, and gradients the input's") {
  for (const DType half : {DType::bf16, DType::f16}) {
    const Autocast scope(half);
    check_dtypes(narrow_ops(), DType::f32, half);
    check_dtypes(narrow_ops(), half, half);
    check_dtypes(narrow_ops(), half == DType::bf16 ? DType::f16 : DType::bf16, half);
    check_dtypes(wide_ops(), half, DType::f32);
    check_dtypes(wide_ops(), DType::f32, DType::f32);
    check_dtypes(other_ops(), half, half);
    check_dtypes(other_ops(), DType::f32, DType::f32);
    const Tensor wide = positive({4, 6}, DType::f64);
    CHECK(matmul(wide, raw::transpose(wide, 0, 1)).dtype() == DType::f64);
    CHECK(softmax(wide, 1).dtype() == DType::f64);
    CHECK(sum(ones({3}, {DType::i64})).dtype() == DType::i64);
  }
}

TEST_CASE("autograd: autocast ends with its scope and can be off inside it") {
  const Tensor x = positive({4, 6}, DType::f32);
  const auto dtype = [&] { return matmul(x, weight({6, 3})).dtype(); };
  CHECK(dtype() == DType::f32);
  {
    const Autocast outer(DType::bf16);
    CHECK(dtype() == DType::bf16);
    {
      const Autocast inner(DType::f16);
      CHECK(dtype() == DType::f16);
      const Autocast off(DType::bf16, false);
      CHECK(dtype() == DType::f32);
      CHECK(softmax(raw::to(x, DType::bf16), 1).dtype() == DType::bf16);
    }
    CHECK(dtype() == DType::bf16);
    CHECK(autocast::dtype() == DType::bf16);
  }
  CHECK(dtype() == DType::f32);
  CHECK(!autocast::enabled());
  CHECK(error_of([] { const Autocast scope(DType::f32); }) ==
        "autocast: dtype must be bf16 or f16, got f32");
}

TEST_CASE("autograd: autocast is what converting by hand would be, backward inside or outside") {
  for (const DType half : {DType::bf16, DType::f16})
    for (const bool inside : {false, true}) {
      const auto run = [&](bool by_hand) {
        const Tensor w = leaf({5, 6}, 1), b = leaf({5}, 2), x = leaf({4, 6}, 3);
        Tensor loss;
        const auto half_of = [&](const Tensor& t) { return by_hand ? to(t, half) : t; };
        {
          const Autocast scope(half, !by_hand);
          const Tensor y = relu(linear(half_of(x), half_of(w), half_of(b)));
          const Tensor z = by_hand ? exp(to(y, DType::f32)) : exp(y);
          loss = mean(z);
          if (inside) backward(loss);
        }
        if (!inside) backward(loss);
        return std::vector<Tensor>{loss, grad(w), grad(b), grad(x)};
      };
      const auto cast = run(false), wanted = run(true);
      for (size_t i = 0; i < cast.size(); ++i) {
        INFO(i);
        CHECK(same_bits(detach(cast[i]), detach(wanted[i])));
      }
    }
}

TEST_CASE("autograd: autocast keeps a parameter's copy until the outermost scope ends") {
  const Tensor w = leaf({3, 6}, 1), x = positive({4, 6}, DType::f32);
  {
    const Autocast scope(DType::bf16);
    const Tensor copy = autocast::narrowed(w);
    CHECK(copy.dtype() == DType::bf16);
    {
      const Autocast inner(DType::bf16);
      CHECK(autocast::narrowed(w).same_as(copy));
    }
    CHECK(autocast::narrowed(w).same_as(copy));
    CHECK(!w.unique());
    // What is no parameter is converted each time.
    CHECK(!autocast::narrowed(x).same_as(autocast::narrowed(x)));
    // Another half type, a change of the values, and a graph that is used up: a new copy.
    {
      const Autocast inner(DType::f16);
      CHECK(autocast::narrowed(w).dtype() == DType::f16);
    }
    const Tensor again = autocast::narrowed(w);
    raw::fill_(w, 0.5);
    w.bump_version("fill_");
    CHECK(!autocast::narrowed(w).same_as(again));
    CHECK(raw::to(detach(autocast::narrowed(w)), DType::f64).data<double>()[0] == 0.5);
    for (int pass = 1; pass <= 2; ++pass) {
      backward(sum(linear(x, w)));
      CHECK(grad(w).dtype() == DType::f32);
    }
  }
  CHECK(w.unique());
}

TEST_CASE("autograd: a copy that autocast made without a graph is not used with one") {
  const Tensor w = leaf({3, 6}, 1), x = positive({4, 6}, DType::f32);
  const Autocast scope(DType::bf16);
  {
    const NoGrad no_grad;
    linear(x, w);
    CHECK(!requires_grad(autocast::narrowed(w)));
  }
  const Tensor y = linear(x, w);
  REQUIRE(requires_grad(y));
  backward(sum(y));
  CHECK(grad(w).defined());
}

// A product of halves is exact in f32, so against f64 there is the rounding of the result, 2^-8 or
// 2^-11 of it, and that of an f32 sum of 1000 positive terms.
TEST_CASE("autograd: products under autocast are rounded once") {
  for (const DType half : {DType::bf16, DType::f16}) {
    const Tensor a = positive({3, 1000}, half), b = positive({1000, 5}, half);
    const Tensor wanted = matmul(raw::to(a, DType::f64), raw::to(b, DType::f64));
    const Autocast scope(half);
    const Tensor got = raw::to(matmul(raw::to(a, DType::f32), raw::to(b, DType::f32)), DType::f64);
    const double eps = (half == DType::bf16 ? 0x1p-8 : 0x1p-11) + 1000 * 0x1p-24;
    for (int64_t i = 0; i < got.numel(); ++i)
      CHECK(std::abs(got.data<double>()[i] / wanted.data<double>()[i] - 1) <= eps);
  }
}
