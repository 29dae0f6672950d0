// Filling parameters with their first values. Formulas: PyTorch's torch.nn.init; Glorot & Bengio
// 2010 (xavier), He et al. 2015 (kaiming), Saxe et al. 2013 (orthogonal).
// Invariant: in place, never recorded; element i of the row-major order always gets the same number
// of the generator's stream, whatever the memory layout.
#pragma once

#include <cstdint>

#include "cairn/tensor/random.h"
#include "cairn/tensor/tensor.h"

namespace cairn::nn::init {

enum class FanMode { fan_in, fan_out };
enum class Nonlinearity { linear, sigmoid, tanh, relu, leaky_relu, selu };

struct Fans {
  int64_t in = 0;
  int64_t out = 0;
};
// fan_in = shape[1] * receptive field, fan_out = shape[0] * receptive field; at least 2-d.
Fans fans_of(const Shape& shape);
// What a nonlinearity asks the standard deviation to be multiplied by; `slope` is leaky_relu's.
double calculate_gain(Nonlinearity nonlinearity, double slope = 0.01);

void constant_(const Tensor& t, double value);
void zeros_(const Tensor& t);
void ones_(const Tensor& t);
void uniform_(const Tensor& t, double low = 0, double high = 1,
              Generator& generator = default_generator());
void normal_(const Tensor& t, double mean = 0, double std = 1,
             Generator& generator = default_generator());
// A normal distribution cut off outside [low, high].
void trunc_normal_(const Tensor& t, double mean = 0, double std = 1, double low = -2,
                   double high = 2, Generator& generator = default_generator());

// Variance 2 gain^2 / (fan_in + fan_out).
void xavier_uniform_(const Tensor& t, double gain = 1, Generator& generator = default_generator());
void xavier_normal_(const Tensor& t, double gain = 1, Generator& generator = default_generator());

struct KaimingOptions {
  double a = 0;  // the slope of leaky_relu
  FanMode mode = FanMode::fan_in;
  Nonlinearity nonlinearity = Nonlinearity::leaky_relu;
};
// Variance gain^2 / fan.
void kaiming_uniform_(const Tensor& t, const KaimingOptions& options = {},
                      Generator& generator = default_generator());
void kaiming_normal_(const Tensor& t, const KaimingOptions& options = {},
                     Generator& generator = default_generator());

// Rows (or columns, whichever are fewer) of t as [shape[0], rest] become orthonormal, times gain;
// uniformly distributed over such matrices. At least 2-d.
void orthogonal_(const Tensor& t, double gain = 1, Generator& generator = default_generator());

}  // namespace cairn::nn::init
