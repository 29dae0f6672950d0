// Filling parameters with their first values.
#include "cairn/nn/init.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "cairn/tensor/raw.h"

namespace cairn::nn::init {
namespace {

// The inverse of erf on (-1, 1): Winitzki's approximation, then Newton steps to double precision.
double inverse_erf(double y) {
  const double log_term = std::log1p(-y * y);
  const double half = 2 / (std::numbers::pi * 0.147) + log_term / 2;
  double x = std::copysign(std::sqrt(std::sqrt(half * half - log_term / 0.147) - half), y);
  for (int i = 0; i < 3; ++i) {
    const double slope = 2 * std::numbers::inv_sqrtpi * std::exp(-x * x);
    if (slope > 0) x -= (std::erf(x) - y) / slope;
  }
  return x;
}

double normal_cdf(double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; }

double kaiming_std(const Tensor& t, const KaimingOptions& options) {
  const Fans fans = fans_of(t.shape());
  const int64_t fan = options.mode == FanMode::fan_in ? fans.in : fans.out;
  // An empty weight has nothing to fill; keep the bound finite for it.
  return calculate_gain(options.nonlinearity, options.a) /
         std::sqrt(static_cast<double>(std::max<int64_t>(fan, 1)));
}

double xavier_std(const Tensor& t, double gain) {
  const Fans fans = fans_of(t.shape());
  return gain * std::sqrt(2.0 / static_cast<double>(std::max<int64_t>(fans.in + fans.out, 1)));
}

// A uniform distribution on [-b, b] has standard deviation b / sqrt(3).
void centred_uniform(const Tensor& t, double std, Generator& generator) {
  cairn::uniform_(t, -std::numbers::sqrt3 * std, std::numbers::sqrt3 * std, generator);
}

// Makes the `count` vectors of length `length` orthonormal in order. Each is cleared of its
// predecessors twice: once is not enough in floating point, twice always is (Kahan).
void orthonormalise(std::vector<double>& v, int64_t count, int64_t length) {
  for (int64_t i = 0; i < count; ++i) {
    double* row = v.data() + i * length;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double* other = v.data() + j * length;
        double dot = 0;
        for (int64_t k = 0; k < length; ++k) dot += row[k] * other[k];
        for (int64_t k = 0; k < length; ++k) row[k] -= dot * other[k];
      }
    }
    double square = 0;
    for (int64_t k = 0; k < length; ++k) square += row[k] * row[k];
    const double scale = 1 / std::sqrt(square);
    for (int64_t k = 0; k < length; ++k) row[k] *= scale;
  }
}

}  // namespace

Fans fans_of(const Shape& shape) {
  check(shape.size() >= 2, "init: tensor must have at least 2 dimensions for its fans, got shape ",
        shape);
  int64_t field = 1;
  for (size_t i = 2; i < shape.size(); ++i) field *= shape[i];
  return {shape[1] * field, shape[0] * field};
}

double calculate_gain(Nonlinearity nonlinearity, double slope) {
  switch (nonlinearity) {
    case Nonlinearity::linear:
    case Nonlinearity::sigmoid:
      return 1;
    case Nonlinearity::tanh:
      return 5.0 / 3;
    case Nonlinearity::relu:
      return std::numbers::sqrt2;
    case Nonlinearity::leaky_relu:
      return std::sqrt(2 / (1 + slope * slope));
    case Nonlinearity::selu:
      return 0.75;
  }
  fail("calculate_gain: unknown nonlinearity");
}

void constant_(const Tensor& t, double value) {
  raw::fill_(t, value);
  t.bump_version("constant_");
}
void zeros_(const Tensor& t) { constant_(t, 0); }
void ones_(const Tensor& t) { constant_(t, 1); }

void uniform_(const Tensor& t, double low, double high, Generator& generator) {
  cairn::uniform_(t, low, high, generator);
}

void normal_(const Tensor& t, double mean, double std, Generator& generator) {
  cairn::normal_(t, mean, std, generator);
}

void trunc_normal_(const Tensor& t, double mean, double std, double low, double high,
                   Generator& generator) {
  check(std > 0, "trunc_normal_: std must be positive, got ", std);
  check(low < high, "trunc_normal_: low must be below high, got ", low, " and ", high);
  // Uniform between the values of the distribution function at the cuts, mapped back through it.
  const double from = 2 * normal_cdf((low - mean) / std) - 1;
  const double to = 2 * normal_cdf((high - mean) / std) - 1;
  const Tensor values = rand(t.shape(), {DType::f64}, generator);
  double* v = values.data<double>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    const double y = std::clamp(from + (to - from) * v[i], -1 + 0x1p-53, 1 - 0x1p-53);
    v[i] = std::clamp(mean + std * std::numbers::sqrt2 * inverse_erf(y), low, high);
  }
  raw::copy_(t, values);
  t.bump_version("trunc_normal_");
}

void xavier_uniform_(const Tensor& t, double gain, Generator& generator) {
  centred_uniform(t, xavier_std(t, gain), generator);
}

void xavier_normal_(const Tensor& t, double gain, Generator& generator) {
  cairn::normal_(t, 0, xavier_std(t, gain), generator);
}

void kaiming_uniform_(const Tensor& t, const KaimingOptions& options, Generator& generator) {
  centred_uniform(t, kaiming_std(t, options), generator);
}

void kaiming_normal_(const Tensor& t, const KaimingOptions& options, Generator& generator) {
  cairn::normal_(t, 0, kaiming_std(t, options), generator);
}

void orthogonal_(const Tensor& t, double gain, Generator& generator) {
  check(t.dim() >= 2, "orthogonal_: tensor must have at least 2 dimensions, got shape ", t.shape());
  if (t.numel() == 0) return;
  const int64_t rows = t.size(0);
  const int64_t columns = t.numel() / rows;
  const bool tall = rows > columns;
  const int64_t count = tall ? columns : rows;
  const int64_t length = tall ? rows : columns;
  const Tensor drawn = randn({count, length}, {DType::f64}, generator);
  std::vector<double> v(drawn.data<double>(), drawn.data<double>() + drawn.numel());
  orthonormalise(v, count, length);
  for (double& x : v) x *= gain;
  const Tensor matrix = from_values(v, {count, length});
  const Tensor oriented = raw::contiguous(tall ? raw::transpose(matrix, 0, 1) : matrix);
  raw::copy_(t, raw::view(oriented, t.shape()));
  t.bump_version("orthogonal_");
}

}  // namespace cairn::nn::init
