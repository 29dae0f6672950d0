// Clipping by norm and by value.
#include "cairn/optim/clip.h"

#include <cmath>
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

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Parameters of awkward sizes with gradients; the last has none.
std::vector<Tensor> make_params(DType dtype, bool in_arena) {
  std::vector<Tensor> params = {leaf({10001}, 1, dtype), leaf({3, 7}, 2, dtype), leaf({}, 3, dtype),
                                leaf({50}, 4, dtype)};
  if (in_arena) pack_parameters(params);
  for (size_t i = 0; i < 3; ++i) {
    Generator generator(20 + i);
    const Tensor g = empty(params[i].shape(), {dtype});
    uniform_(g, -1, 1, generator);
    set_grad(params[i], g);
  }
  return params;
}

std::vector<double> gradients_of(const std::vector<Tensor>& params) {
  std::vector<double> out;
  for (const Tensor& p : params)
    if (grad(p).defined())
      for (double v : values_of(grad(p))) out.push_back(v);
  return out;
}

double norm_of(const std::vector<double>& g, double p) {
  long double sum = 0;
  for (double v : g)
    sum = std::isinf(p) ? std::max<long double>(sum, std::abs(v)) : sum + std::pow(std::abs(v), p);
  return static_cast<double>(std::isinf(p) ? sum : std::pow(sum, 1 / p));
}

}  // namespace

TEST_CASE("optim: clip_grad_norm_ scales to the norm, in an arena or not") {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    for (const bool in_arena : {false, true}) {
      for (const double p : {2.0, 1.0, kInfinity, 3.0, 0.5}) {
        INFO(name_of(dtype) << " norm " << p << " arena " << in_arena);
        const auto params = make_params(dtype, in_arena);
        const auto before = gradients_of(params);
        const double expected = norm_of(before, p);
        // Sums are kept in f64: 1e4 terms of one sign.
        CHECK(optim::grad_norm(params, p).item() == Approx(expected).epsilon(1e-13));
        const Tensor total = optim::clip_grad_norm_(params, expected / 4, p);
        CHECK(total.item() == Approx(expected).epsilon(1e-13));
        CHECK(total.dtype() == DType::f64);
        const auto after = gradients_of(params);
        const double factor = expected / 4 / (expected + 1e-6);
        const double eps = dtype == DType::f64   ? 0x1p-51
                           : dtype == DType::f32 ? 0x1p-22
                           : dtype == DType::f16 ? 0x1p-10
                                                 : 0x1p-7;
        double worst = 0;
        for (size_t i = 0; i < after.size(); ++i)
          worst = std::max(worst, std::abs(after[i] - factor * before[i]));
        CHECK(worst <= eps);
      }
    }
  }
}

TEST_CASE("optim: clip_grad_norm_ leaves small gradients alone") {
  const auto params = make_params(DType::f32, true);
  const auto before = gradients_of(params);
  optim::clip_grad_norm_(params, 1e4);
  CHECK(gradients_of(params) == before);
  CHECK_FALSE(grad(params[3]).defined());
}

TEST_CASE("optim: clip_grad_norm_ without gradients is 0") {
  const std::vector<Tensor> params = {leaf({3}, 1)};
  CHECK(optim::clip_grad_norm_(params, 1).item() == 0);
}

TEST_CASE("optim: the total norm is the same on every thread count") {
  const int before = num_threads();
  const auto params = make_params(DType::f32, true);
  set_num_threads(1);
  const double one = optim::grad_norm(params).item();
  for (const int threads : {2, 3, 4}) {
    set_num_threads(threads);
    CHECK(optim::grad_norm(params).item() == one);
  }
  set_num_threads(before);
}

TEST_CASE("optim: norms that are not finite") {
  for (const double bad : {kInfinity, std::numeric_limits<double>::quiet_NaN()}) {
    for (const double p : {2.0, 1.0, kInfinity}) {
      const Tensor w = leaf({20}, 1);
      const Tensor g = ones({20});
      raw::fill_(raw::slice(g, 0, 3, 4), bad);
      set_grad(w, g);
      const std::vector<Tensor> params = {w};
      CHECK(error_of([&] { optim::clip_grad_norm_(params, 1, p, true); }) ==
            cat("clip_grad_norm_: total norm must be finite, got ", bad));
      CHECK(values_of(grad(w))[0] == 1);
      const double total = optim::clip_grad_norm_(params, 1, p).item();
      CHECK((std::isnan(bad) ? std::isnan(total) : std::isinf(total)));
      // PyTorch: 1 / inf is 0, and NaN spreads.
      CHECK((std::isnan(bad) ? std::isnan(values_of(grad(w))[0]) : values_of(grad(w))[0] == 0));
      CHECK(std::isnan(values_of(grad(w))[3]));
    }
  }
}

TEST_CASE("optim: clip_grad_value_ clamps each element") {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    const auto params = make_params(dtype, true);
    const auto before = gradients_of(params);
    optim::clip_grad_value_(params, 0.25);
    const auto after = gradients_of(params);
    for (size_t i = 0; i < after.size(); ++i)
      if (after[i] != std::min(std::max(before[i], -0.25), 0.25)) FAIL("element " << i);
  }
}

TEST_CASE("optim: clipping checks its arguments") {
  const std::vector<Tensor> params = {leaf({3}, 1)};
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(error_of([&] { optim::clip_grad_norm_(params, nan); }) ==
        "clip_grad_norm_: max_norm must not be negative, got nan");
  CHECK(error_of([&] { optim::clip_grad_norm_(params, 1, 0); }) ==
        "clip_grad_norm_: norm_type must be positive, got 0");
  CHECK(error_of([&] { optim::clip_grad_value_(params, -1); }) ==
        "clip_grad_value_: clip_value must not be negative, got -1");
}
