// Optimizers: against loops in double precision, runs, groups, thread counts, errors.
#include "cairn/optim/adam.h"
#include "cairn/optim/sgd.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "cairn/autograd/arena.h"
#include "cairn/tensor/parallel.h"
#include "tests/catch.h"
#include "tests/optim/helpers.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::leaf;
using cairn::test::values_of;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// One element's Adam in double.
struct ReferenceAdam {
  optim::AdamOptions o;
  bool decoupled = false;
  double m = 0, v = 0, u = 0;
  int t = 0;
  double operator()(double p, double g) {
    ++t;
    if (o.maximize) g = -g;
    if (decoupled)
      p *= 1 - o.lr * o.weight_decay;
    else
      g += o.weight_decay * p;
    m = o.betas[0] * m + (1 - o.betas[0]) * g;
    v = o.betas[1] * v + (1 - o.betas[1]) * g * g;
    u = o.amsgrad ? std::max(u, v) : v;
    const double denominator = std::sqrt(u) / std::sqrt(1 - std::pow(o.betas[1], t)) + o.eps;
    return p - o.lr / (1 - std::pow(o.betas[0], t)) * m / denominator;
  }
};

struct ReferenceSgd {
  optim::SgdOptions o;
  double b = 0;
  bool first = true;
  double operator()(double p, double g) {
    if (o.maximize) g = -g;
    g += o.weight_decay * p;
    if (o.momentum != 0) {
      b = first ? g : o.momentum * b + (1 - o.dampening) * g;
      first = false;
      g = o.nesterov ? g + o.momentum * b : b;
    }
    return p - o.lr * g;
  }
};

Tensor gradient_like(const Tensor& p, uint64_t seed) {
  Generator generator(seed);
  const Tensor g = empty(p.shape(), {p.dtype()});
  uniform_(g, -1, 1, generator);
  return g;
}

// Steps parameters of awkward sizes and layouts five times and compares each element with its own
// reference. Two of them have no gradient in some steps.
template <class Reference, class Make>
void compare(DType dtype, Reference reference, Make make, double tolerance) {
  const Tensor permuted = empty_strided({3, 5, 2}, {1, 6, 3}, {dtype});
  Generator generator(9);
  uniform_(permuted, -1, 1, generator);
  set_requires_grad(permuted);
  const std::vector<Tensor> params = {leaf({17}, 1, dtype), permuted, leaf({1}, 2, dtype),
                                      leaf({9000}, 3, dtype), leaf({}, 4, dtype)};
  std::vector<std::vector<double>> wanted;
  std::vector<std::vector<Reference>> references;
  for (const Tensor& p : params) {
    wanted.push_back(values_of(p));
    references.emplace_back(static_cast<size_t>(p.numel()), reference);
  }
  const std::unique_ptr<optim::Optimizer> optimizer = make(params);
  for (uint64_t step = 0; step < 5; ++step) {
    optimizer->zero_grad();
    for (size_t i = 0; i < params.size(); ++i) {
      if ((i == 2 && step == 0) || (i == 3 && step == 2)) continue;
      const Tensor g = gradient_like(params[i], 100 * step + i);
      set_grad(params[i], g);
      const auto gs = values_of(g);
      for (size_t e = 0; e < gs.size(); ++e) wanted[i][e] = references[i][e](wanted[i][e], gs[e]);
    }
    optimizer->step();
  }
  for (size_t i = 0; i < params.size(); ++i) {
    const auto got = values_of(params[i]);
    double worst = 0;
    for (size_t e = 0; e < got.size(); ++e)
      worst = std::max(worst, std::abs(got[e] - wanted[i][e]));
    INFO("parameter " << i);
    CHECK(worst <= tolerance);
  }
}

// Rounding of p itself (|p| <= 1.5, five steps), and of steps of size lr.
double tolerance_of(DType dtype) {
  if (dtype == DType::f64) return 5 * 4 * 0x1p-52;
  if (dtype == DType::f16) return 5 * 0x1p-10;
  return dtype == DType::f32 ? 5 * 4 * 0x1p-23 : 5 * 0x1p-7;
}

}  // namespace

TEST_CASE("optim: adam follows its formula in every dtype and layout") {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    for (int variant = 0; variant < 6; ++variant) {
      optim::AdamOptions o{.lr = 0.01};
      if (variant == 1) o.weight_decay = 0.1;
      if (variant == 2) o.amsgrad = true, o.betas = {0.9, 0.5};
      if (variant == 3) o.maximize = true;
      if (variant == 4) o.betas = {0, 0.9}, o.eps = 1e-3;
      if (variant == 5) o.betas = {0.3, 0.4}, o.eps = 0;  // eps 0: runs must not cross gaps
      INFO(name_of(dtype) << " variant " << variant);
      compare(
          dtype, ReferenceAdam{o}, [&](const std::vector<Tensor>& p) { return optim::adam(p, o); },
          tolerance_of(dtype));
    }
  }
}

TEST_CASE("optim: adamw shrinks the parameter instead") {
  for (const DType dtype : {DType::f64, DType::f32}) {
    ReferenceAdam reference{{.lr = 0.01, .weight_decay = 0.3}, true};
    compare(
        dtype, reference,
        [&](const std::vector<Tensor>& p) {
          return optim::adamw(p, {.lr = 0.01, .weight_decay = 0.3});
        },
        tolerance_of(dtype));
  }
  CHECK(optim::AdamWOptions{}.weight_decay == 0.01);
}

TEST_CASE("optim: sgd follows its formula in every dtype and layout") {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    for (int variant = 0; variant < 5; ++variant) {
      optim::SgdOptions o{.lr = 0.05};
      if (variant >= 1) o.momentum = 0.9;
      if (variant == 2) o.nesterov = true;
      if (variant == 3) o.dampening = 0.5, o.weight_decay = 0.1;
      if (variant == 4) o.maximize = true;
      INFO(name_of(dtype) << " variant " << variant);
      compare(
          dtype, ReferenceSgd{o}, [&](const std::vector<Tensor>& p) { return optim::sgd(p, o); },
          tolerance_of(dtype));
    }
  }
}

TEST_CASE("optim: gaps of the arena stay zero") {
  const std::vector<Tensor> params = {leaf({5}, 1), leaf({7}, 2), leaf({3}, 3)};
  for (const double eps : {1e-8, 0.0}) {
    auto optimizer = optim::adam(params, {.lr = 0.1, .eps = eps, .weight_decay = 0.1});
    for (const Tensor& p : params) set_grad(p, gradient_like(p, 7));
    for (int i = 0; i < 3; ++i) optimizer->step();
    const ParameterArena arena(params);
    const auto data = values_of(arena.data());
    for (size_t i = 5; i < 16; ++i) CHECK(data[i] == 0);
    for (size_t i = 23; i < 32; ++i) CHECK(data[i] == 0);
  }
}

TEST_CASE("optim: a step gives the same bits on every thread count") {
  const int before = num_threads();
  std::vector<float> expected;
  for (const int threads : {1, 2, 3, 4}) {
    set_num_threads(threads);
    const std::vector<Tensor> params = {leaf({100, 333}, 1), leaf({77}, 2), leaf({50001}, 3)};
    auto optimizer = optim::adam(params, {.lr = 0.01, .weight_decay = 0.01});
    for (uint64_t step = 0; step < 3; ++step) {
      for (const Tensor& p : params) set_grad(p, gradient_like(p, step));
      optimizer->step();
    }
    const ParameterArena arena(params);
    const float* data = arena.data().data<float>();
    const std::vector<float> got(data, data + arena.data().numel());
    if (expected.empty()) expected = got;
    CHECK(std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)) == 0);
  }
  set_num_threads(before);
}

TEST_CASE("optim: an arena gives the same bits as parameters on their own") {
  const auto train = [](bool in_arena) {
    const std::vector<Tensor> params = {leaf({33}, 1), leaf({64}, 2), leaf({7}, 3)};
    auto optimizer = optim::adam(params, {.lr = 0.01});
    if (!in_arena)
      for (const Tensor& p : params) {
        p.set_data(raw::clone(p));
        set_grad_memory(p, zeros_like(p));
      }
    for (uint64_t step = 0; step < 3; ++step) {
      for (const Tensor& p : params) set_grad(p, gradient_like(p, step));
      optimizer->step();
    }
    std::vector<double> out;
    for (const Tensor& p : params)
      for (double v : values_of(p)) out.push_back(v);
    return out;
  };
  CHECK(train(true) == train(false));
}

TEST_CASE("optim: a steady step allocates nothing") {
  const std::vector<Tensor> params = {leaf({300}, 1), leaf({5}, 2)};
  auto optimizer = optim::adamw(params);
  for (const Tensor& p : params) set_grad(p, gradient_like(p, 1));
  optimizer->step();
  const int64_t before = memory_stats().allocations;
  optimizer->step();
  CHECK(memory_stats().allocations == before);
}

TEST_CASE("optim: groups have options of their own") {
  const Tensor a = leaf({4}, 1, DType::f64), b = leaf({3}, 2, DType::f64);
  const auto a0 = values_of(a), b0 = values_of(b);
  auto optimizer = optim::sgd({{{a}, {.lr = 0.5}}, {{b}, {.lr = 0.25, .momentum = 0.5}}});
  CHECK(optimizer->group_count() == 2);
  CHECK(optimizer->lr(1) == 0.25);
  CHECK(optimizer->momentum(1) == 0.5);
  set_grad(a, ones({4}, {DType::f64}));
  set_grad(b, ones({3}, {DType::f64}));
  optimizer->step();
  CHECK(values_of(a)[0] == a0[0] - 0.5);
  CHECK(values_of(b)[0] == b0[0] - 0.25);
  optimizer->set_lr(0, 0);
  optimizer->step();
  CHECK(values_of(a)[0] == a0[0] - 0.5);
  CHECK(values_of(b)[0] == b0[0] - 0.25 - 0.25 * 1.5);
  CHECK(optimizer->parameters().size() == 2);
  CHECK(optimizer->parameters(1)[0].same_as(b));
}

TEST_CASE("optim: momentum that is switched on later starts with the gradient") {
  const Tensor w = leaf({1}, 1, DType::f64);
  auto optimizer = optim::sgd({w}, {.lr = 1, .momentum = 0, .dampening = 0.5});
  set_grad(w, ones({1}, {DType::f64}));
  optimizer->step();
  optimizer->set_momentum(0, 0.9);
  const double before = w.item();
  optimizer->step();
  CHECK(w.item() == before - 1);  // not 0.5: the first buffer is the gradient, undamped
}

TEST_CASE("optim: parameters unfrozen later join in") {
  const Tensor a = leaf({3}, 1), frozen = empty_strided({2, 2}, {4, 1});
  raw::fill_(frozen, 1);
  auto optimizer = optim::adam({a, frozen}, {.lr = 0.1});
  set_grad(a, ones({3}));
  optimizer->step();
  CHECK(values_of(frozen) == std::vector<double>(4, 1.0));
  set_requires_grad(frozen);
  set_grad(frozen, ones({2, 2}));
  optimizer->step();
  CHECK(values_of(frozen)[3] == Approx(0.9));
}

TEST_CASE("optim: the closure runs with recording on") {
  const Tensor a = leaf({2}, 1);
  auto optimizer = optim::sgd({a});
  NoGrad no_grad;
  bool recorded = false;
  const Tensor loss = optimizer->step([&] {
    recorded = grad_enabled();
    return ones({});
  });
  CHECK(recorded);
  CHECK_FALSE(grad_enabled());
  CHECK(loss.item() == 1);
}

TEST_CASE("optim: bad options are named") {
  const Tensor w = leaf({2}, 1);
  const auto adam_error = [&](const optim::AdamOptions& o) {
    return error_of([&] { optim::adam({w}, o); });
  };
  const auto sgd_error = [&](const optim::SgdOptions& o) {
    return error_of([&] { optim::sgd({w}, o); });
  };
  CHECK(adam_error({.lr = kNan}) == "adam: lr must be finite and not negative, got nan");
  CHECK(adam_error({.lr = -1}) == "adam: lr must be finite and not negative, got -1");
  CHECK(adam_error({.betas = {1, 0.9}}) == "adam: beta1 must be at least 0 and below 1, got 1");
  CHECK(adam_error({.betas = {0.9, -0.1}}) ==
        "adam: beta2 must be at least 0 and below 1, got -0.1");
  CHECK(adam_error({.eps = -1}) == "adam: eps must be finite and not negative, got -1");
  CHECK(adam_error({.weight_decay = -0.5}) ==
        "adam: weight_decay must be finite and not negative, got -0.5");
  CHECK(error_of([&] { optim::adamw({w}, {.lr = kNan}); }) ==
        "adamw: lr must be finite and not negative, got nan");
  CHECK(sgd_error({.momentum = -1}) == "sgd: momentum must be finite and not negative, got -1");
  CHECK(sgd_error({.dampening = kNan}) == "sgd: dampening must be finite, got nan");
  CHECK(sgd_error({.nesterov = true}) ==
        "sgd: nesterov must come with momentum above 0 and dampening 0, got momentum 0 and "
        "dampening 0");
  auto optimizer = optim::sgd({w});
  CHECK(error_of([&] { optimizer->set_lr(0, kNan); }) ==
        "sgd: lr must be finite and not negative, got nan");
}

TEST_CASE("optim: bad parameters are named") {
  const Tensor w = leaf({2}, 1);
  CHECK(error_of([&] { optim::sgd(std::vector<Tensor>{}); }) ==
        "sgd: parameters must number at least 1, got 0");
  CHECK(error_of([&] {
          optim::sgd({w, w});
        }) == "sgd: parameters must be given once, got one twice");
  CHECK(error_of([&] { optim::sgd({arange(0, 3)}); }) ==
        "sgd: parameters must be floating tensors, got i64");
  CHECK(error_of([&] {
          optim::sgd({w, Tensor{}});
        }) == "sgd: parameters must be floating tensors, got an undefined tensor");
}
