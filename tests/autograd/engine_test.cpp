// The engine's contract, with rules written here: overwrite and add, order, hooks, version checks.
#include "cairn/autograd/engine.h"

#include <string>
#include <vector>

#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/tensor/allocator.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

namespace {

double at(const Tensor& t, int64_t i) { return raw::select(raw::flatten(t), 0, i).item(); }

// y = 2 x, with a rule that reports whether it was told to add.
Tensor twice(const Tensor& x, std::vector<bool>& adds) {
  Tensor y = empty_like(x);
  for (int64_t i = 0; i < x.numel(); ++i) y.data<float>()[i] = 2 * x.data<float>()[i];
  return record("twice", y, {x}, [&adds](Grads& g) {
    const Dst d = g.dst(0);
    adds.push_back(d.add);
    const Tensor dy = raw::contiguous(g.out());  // sum hands down one number, expanded
    for (int64_t i = 0; i < d.tensor.numel(); ++i) {
      float& out = d.tensor.data<float>()[i];
      out = 2 * dy.data<float>()[i] + (d.add ? out : 0);
    }
  });
}

std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("autograd: the first gradient overwrites, later ones add") {
  Tensor x = full({3}, 1);
  set_requires_grad(x);
  std::vector<bool> adds;
  Tensor y = add(twice(x, adds), twice(x, adds));
  backward(sum(y));
  CHECK(adds == std::vector<bool>{false, true});
  CHECK(at(grad(x), 2) == 4);
  const void* memory = grad(x).raw_data();
  zero_grad(x);
  CHECK(!grad(x).defined());
  adds.clear();
  backward(sum(twice(x, adds)));
  CHECK(adds == std::vector<bool>{false});
  CHECK(grad(x).raw_data() == memory);
  CHECK(at(grad(x), 0) == 2);
  backward(sum(twice(x, adds)));
  CHECK(at(grad(x), 0) == 4);
}

TEST_CASE("autograd: one leaf twice in one op") {
  Tensor x = full({2}, 3);
  set_requires_grad(x);
  backward(sum(mul(x, x)));
  CHECK(at(grad(x), 1) == 6);
}

TEST_CASE("autograd: a tensor used by several ops gets the sum") {
  Tensor x = full({2}, 2);
  set_requires_grad(x);
  Tensor h = mul(x, Scalar(3.0));
  backward(sum(add(mul(h, h), h)));  // d/dx (9 x^2 + 3 x) = 18 x + 3
  CHECK(at(grad(x), 0) == 39);
}

TEST_CASE("autograd: ready hooks fire once, after the last contribution") {
  Tensor x = full({2}, 1);
  set_requires_grad(x);
  std::vector<double> seen;
  on_grad_ready(x, [&](const Tensor& g) { seen.push_back(at(g, 0)); });
  std::vector<bool> adds;
  backward(sum(add(twice(x, adds), mul(x, Scalar(5.0)))));
  CHECK(seen == std::vector<double>{7});
  zero_grad(x);
  backward(sum(twice(x, adds)));
  CHECK(seen == std::vector<double>{7, 2});
}

TEST_CASE("autograd: hooks without the gradient leave its zeros known") {
  const Tensor x = full({4}, 1);
  set_requires_grad(x);
  set_grad_memory(x, zeros({4}), true);
  std::string calls;
  on_leaf_ready(x, [&] {
    CHECK(has_grad(x));
    CHECK(grad_zeros(x).ranges == kernels::ZeroRanges{{2, 4}});
    calls += "ready ";
    after_backward([&](bool finished) { calls += finished ? "end" : "failed"; });
  });
  // A rule that writes half of the gradient and knows the rest to be 0.
  const auto half = [](const Tensor& t) {
    return record("half", raw::clone(t), {t}, [](Grads& g) {
      const Dst d = g.dst_with_zeros(0);
      d.tensor.data<float>()[0] = d.tensor.data<float>()[1] = 1;
      *d.zeros = kernels::ZeroPattern{{{2, 4}}};
    });
  };
  backward(sum(half(x)));
  CHECK(calls == "ready end");
  declare_grad(x);
  CHECK(grad_zeros(x).empty());
  CHECK_THROWS_WITH(after_backward([](bool) {}),
                    "after_backward: must be called by a hook of a running backward");
}

TEST_CASE("autograd: the end of a backward is told once, whatever happens") {
  const Tensor x = full({1}, 1), y = full({1}, 1);
  set_requires_grad(x);
  set_requires_grad(y);
  std::string calls;
  on_leaf_ready(x, [&] { after_backward([&](bool ok) { calls += ok ? "end " : "failed "; }); });
  // The newest op runs first, so x is ready when y's rule throws.
  const Tensor broken =
      record("broken", raw::clone(y), {y}, [](Grads&) { fail("broken: on purpose"); });
  CHECK_THROWS_WITH(backward(add(broken, mul(x, 2))), "broken: on purpose");
  CHECK(calls == "failed ");
  backward(x);  // from a leaf
  CHECK(calls == "failed end ");
  on_leaf_ready(x, [] { after_backward([](bool ok) { check(!ok, "end: on purpose"); }); });
  CHECK_THROWS_WITH(backward(mul(x, 2)), "end: on purpose");
  CHECK(calls == "failed end end ");
}

TEST_CASE("autograd: a graph is used once") {
  Tensor x = full({2}, 1);
  set_requires_grad(x);
  std::vector<bool> adds;
  Tensor y = sum(twice(x, adds));
  backward(y);
  CHECK(message([&] { backward(y); }) ==
        "backward: graph must be used once, got a second backward through sum");
}

TEST_CASE("autograd: a saved tensor that was changed in place is an error") {
  Tensor x = full({2}, -1);
  Tensor w = full({2}, 2);
  set_requires_grad(w);
  Tensor y = mul(w, x);
  relu_(x);
  CHECK(message([&] { backward(sum(y)); }) ==
        "mul: a tensor saved for backward was changed in place by relu_");
}

TEST_CASE("autograd: in-place ops are recorded, but not on leaves and views") {
  Tensor w = full({2}, 2);
  set_requires_grad(w);
  Tensor h = mul(w, Scalar(-1.0));
  relu_(h);
  backward(sum(add(h, w)));
  CHECK(at(grad(w), 0) == 1);
  CHECK(message([&] { relu_(w); }) ==
        "relu_: input must not be a leaf that requires a gradient; wrap the call in NoGrad");
  NoGrad no_grad;
  relu_(w);
}

TEST_CASE("autograd: in-place ops are refused where a view shares the memory") {
  const std::string text =
      ": input must not share memory with a view while a gradient is recorded; use the form "
      "without "
      "underscore";
  Tensor x = full({2}, 2);
  set_requires_grad(x);
  Tensor a = mul(x, Scalar(1.0));
  Tensor v = view(a, {2, 1});
  CHECK(message([&] { mul_(v, Scalar(3.0)); }) == "mul_" + text);
  CHECK(message([&] { mul_(a, Scalar(3.0)); }) == "mul_" + text);
  Tensor whole = view(x, {2, 1});
  CHECK(message([&] { mul_(whole, Scalar(3.0)); }) == "mul_" + text);
  Tensor constant = full({2}, 1);
  Tensor other = view(constant, {2, 1});
  CHECK(message([&] { add_(constant, x); }) == "add_" + text);
  NoGrad no_grad;
  mul_(constant, Scalar(3.0));
  CHECK(at(other, 1) == 3);
}

TEST_CASE("autograd: a rule that throws leaves no half-made gradient") {
  Tensor x = full({1}, 1);
  set_requires_grad(x);
  Tensor y = record("bad", full({1}, 1), {x}, [](Grads& g) {
    g.dst(0);
    fail("bad: rule failed");
  });
  CHECK(message([&] { backward(y); }) == "bad: rule failed");
  CHECK(!grad(x).defined());
}

TEST_CASE("autograd: a factor that is another handle on the same memory") {
  Tensor x = full({1}, 2);
  set_requires_grad(x);
  Tensor a = mul(x, Scalar(3.0));
  mul_(a, detach(a));  // 3 x * 6: the factor is a constant
  backward(sum(a));
  CHECK(at(grad(x), 0) == 18);
}

TEST_CASE("autograd: backward from a leaf adds to its gradient") {
  Tensor x = full({1}, 1);
  set_requires_grad(x);
  backward(x);
  backward(x);
  CHECK(at(grad(x), 0) == 2);
}

TEST_CASE("autograd: nothing is recorded without a gradient to compute") {
  Tensor x = full({2}, 1);
  CHECK(mul(x, x).grad_meta() == nullptr);
  set_requires_grad(x);
  {
    NoGrad no_grad;
    CHECK(!requires_grad(mul(x, x)));
  }
  CHECK(requires_grad(mul(x, x)));
  CHECK(!requires_grad(detach(mul(x, x))));
}

TEST_CASE("autograd: a chain of 200,000 ops neither backward nor destruction overflows the stack") {
  Tensor x = full({1}, 1);
  set_requires_grad(x);
  for (const bool run : {true, false}) {
    Tensor y = x;
    for (int i = 0; i < 200000; ++i) y = add(y, Scalar(1.0));
    if (run) backward(y);
  }
  CHECK(at(grad(x), 0) == 1);
}

TEST_CASE("autograd: a wide graph that is dropped, in part or as a whole, leaves no tensor") {
  const int64_t before = memory_stats().allocated;
  {
    Tensor x = full({64}, 1);
    set_requires_grad(x);
    Tensor shared = mul(x, x);
    std::vector<Tensor> ends;
    for (int i = 0; i < 100; ++i) ends.push_back(mul(add(shared, shared), shared));
    Tensor kept = ends[7];
    backward(sum(add(ends[3], ends[4])));
    ends.clear();
    CHECK(message([&] { backward(sum(kept)); }) ==
          "backward: graph must be used once, got a second backward through mul");
  }
  CHECK(memory_stats().allocated == before);
}

TEST_CASE("autograd: a gradient takes the layout that its leaf has when it is recorded") {
  Tensor x = full({2, 3}, 1);
  set_requires_grad(x);
  x.set_data(raw::transpose(full({3, 2}, 2), 0, 1));
  backward(sum(mul(x, x)));
  CHECK(grad(x).strides() == Shape{1, 2});
  CHECK(at(grad(x), 5) == 4);
}

TEST_CASE("autograd: backward's errors") {
  Tensor x = full({2}, 1);
  CHECK(message([&] { backward(x); }) ==
        "backward: root must require a gradient, got a tensor that does not");
  CHECK(message([&] { backward({}); }) ==
        "backward: root must require a gradient, got an undefined tensor");
  set_requires_grad(x);
  CHECK(message([&] { backward(mul(x, x)); }) ==
        "backward: root must have one element when no grad is given, got shape [2]");
  CHECK(message([&] { backward(mul(x, x), ones({3})); }) ==
        "backward: grad must be f32 [2], got f32 [3]");
  CHECK(message([&] { set_requires_grad(full({2}, 1, {.dtype = DType::i64})); }) ==
        "set_requires_grad: dtype must be floating, got i64");
  CHECK(message([&] { set_requires_grad(mul(x, x), false); }) ==
        "set_requires_grad: tensor must be a leaf, got the output of mul");
}

TEST_CASE("autograd: an exception in a rule leaves the thread able to run another backward") {
  Tensor x = full({1}, 1);
  set_requires_grad(x);
  Tensor y = record("bad", full({1}, 1), {x}, [](Grads&) { fail("bad: rule failed"); });
  CHECK(message([&] { backward(y); }) == "bad: rule failed");
  zero_grad(x);
  backward(mul(x, Scalar(2.0)));
  CHECK(at(grad(x), 0) == 2);
}
