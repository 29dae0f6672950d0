// Initialisation: bounds, moments, orthogonality, repeatability.
#include "cairn/nn/init.h"

#include <cmath>

#include "tests/catch.h"
#include "tests/nn/helpers.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::moments_of;
using cairn::test::values_of;
namespace init = nn::init;

namespace {

// The mean and variance of n draws stray by a few sigma / sqrt(n): 5 of them here.
void check_moments(const Tensor& t, double mean, double std) {
  const auto m = moments_of(t);
  const double n = static_cast<double>(t.numel());
  CHECK(std::abs(m.mean - mean) < 5 * std / std::sqrt(n));
  CHECK(std::abs(std::sqrt(m.variance) - std) < 5 * std / std::sqrt(n));
}

}  // namespace

TEST_CASE("nn: init has PyTorch's fans and gains") {
  const init::Fans fans = init::fans_of({64, 3, 7, 5});
  CHECK(fans.in == 3 * 35);
  CHECK(fans.out == 64 * 35);
  CHECK(init::fans_of({10, 20}).in == 20);
  CHECK(error_of([] { init::fans_of({10}); }) ==
        "init: tensor must have at least 2 dimensions for its fans, got shape [10]");
  CHECK(init::calculate_gain(init::Nonlinearity::relu) == std::sqrt(2.0));
  CHECK(init::calculate_gain(init::Nonlinearity::tanh) == 5.0 / 3);
  CHECK(init::calculate_gain(init::Nonlinearity::leaky_relu, std::sqrt(5.0)) ==
        Approx(std::sqrt(1.0 / 3)));
}

TEST_CASE("nn: init draws have the variance they promise") {
  manual_seed(1);
  const Tensor w = empty({200, 50, 3, 2});
  init::kaiming_normal_(w,
                        {.mode = init::FanMode::fan_out, .nonlinearity = init::Nonlinearity::relu});
  check_moments(w, 0, std::sqrt(2.0 / (200 * 6)));
  init::kaiming_uniform_(w, {.a = std::sqrt(5.0)});
  const double bound = 1 / std::sqrt(50.0 * 6);
  check_moments(w, 0, bound / std::sqrt(3.0));
  CHECK(moments_of(w).high < bound);
  CHECK(moments_of(w).low >= -bound);
  init::xavier_uniform_(w, 2);
  check_moments(w, 0, 2 * std::sqrt(2.0 / (250 * 6)));
  init::xavier_normal_(w);
  check_moments(w, 0, std::sqrt(2.0 / (250 * 6)));
  init::normal_(w, 3, 0.5);
  check_moments(w, 3, 0.5);
  init::uniform_(w, 1, 2);
  check_moments(w, 1.5, 1 / std::sqrt(12.0));
  init::constant_(w, 4);
  CHECK(moments_of(w).low == 4);
  CHECK(moments_of(w).high == 4);
}

TEST_CASE("nn: trunc_normal_ stays inside its cuts") {
  manual_seed(2);
  const Tensor w = empty({100000}, {DType::f64});
  init::trunc_normal_(w);
  // Variance of the standard normal cut at +-2: 1 - 4 phi(2) / (2 Phi(2) - 1).
  const double phi = std::exp(-2.0) / std::sqrt(2 * 3.14159265358979323846);
  check_moments(w, 0, std::sqrt(1 - 4 * phi / std::erf(std::sqrt(2.0))));
  CHECK(moments_of(w).low >= -2);
  CHECK(moments_of(w).high <= 2);
  CHECK(moments_of(w).high > 1.99);
  init::trunc_normal_(w, 1, 0.02, -10, 10);
  check_moments(w, 1, 0.02);
  CHECK(error_of([&] { init::trunc_normal_(w, 0, 1, 2, 2); }) ==
        "trunc_normal_: low must be below high, got 2 and 2");
}

TEST_CASE("nn: orthogonal_ gives orthonormal rows or columns") {
  manual_seed(3);
  for (const Shape& shape : {Shape{20, 30}, Shape{30, 20}, Shape{8, 2, 2, 2}, Shape{1, 5}}) {
    const Tensor w = empty(shape, {DType::f64});
    init::orthogonal_(w, 2);
    const auto v = values_of(w);
    const int64_t rows = shape[0], columns = w.numel() / rows;
    const bool tall = rows > columns;
    const int64_t count = tall ? columns : rows, length = tall ? rows : columns;
    const auto at = [&](int64_t i, int64_t k) {
      return v[static_cast<size_t>(tall ? k * columns + i : i * columns + k)];
    };
    double worst = 0;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < count; ++j) {
        double dot = 0;
        for (int64_t k = 0; k < length; ++k) dot += at(i, k) * at(j, k);
        worst = std::max(worst, std::abs(dot - (i == j ? 4 : 0)));
      }
    CHECK(worst < 1e-13);
  }
}

TEST_CASE("nn: init does not depend on the memory layout") {
  const Tensor plain = empty({8, 4, 3, 3});
  const Tensor permuted = empty_strided({8, 4, 3, 3}, {1, 8, 96, 32});
  manual_seed(4);
  init::kaiming_normal_(plain);
  manual_seed(4);
  init::kaiming_normal_(permuted);
  CHECK(values_of(plain) == values_of(permuted));
}
