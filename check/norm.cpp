// Normalisation in the op table.
#include "cairn/autograd/ops/norm.h"

#include <algorithm>
#include <cmath>

#include "cairn/tensor/factory.h"
#include "check/op_table.h"

namespace cairn::check_table {
namespace {

// The inputs of a batch_norm case, in this order; those left out are undefined.
struct BatchNormCase {
  const char* name;
  Shape shape;
  BatchNormOptions options{.training = true};
  bool affine = true;
  double scale = 1, shift = 0;
  bool relu = false;
  bool residual = false;
};

struct BatchNormInputs {
  Tensor x, residual, weight, bias, mean, var;
  BatchNormInputs(Inputs in, const BatchNormCase& c) {
    size_t i = 0;
    x = in[i++];
    if (c.residual) residual = in[i++];
    if (c.affine) weight = in[i++], bias = in[i++];
    if (!c.options.training) mean = in[i++], var = in[i++];
  }
};

Tensor run_batch_norm(Inputs in, const BatchNormCase& c) {
  BatchNormInputs t(in, c);
  if (c.relu) return batch_norm_relu(t.x, t.residual, t.mean, t.var, t.weight, t.bias, c.options);
  return batch_norm(t.x, t.mean, t.var, t.weight, t.bias, c.options);
}

Tensor batch_norm_reference(Inputs in, const BatchNormCase& c) {
  const BatchNormInputs t(in, c);
  const int64_t channels = t.x.size(1);
  const int64_t inner = t.x.numel() == 0 ? 1 : t.x.numel() / (t.x.size(0) * channels);
  const double* x = t.x.data<double>();
  Tensor y = empty(t.x.shape(), {DType::f64});
  for (int64_t ch = 0; ch < channels; ++ch) {
    const auto each = [&](auto&& fn) {
      for (int64_t n = 0; n < t.x.size(0); ++n)
        for (int64_t i = 0; i < inner; ++i) fn((n * channels + ch) * inner + i);
    };
    double mean = 0, var = 0;
    const double count = static_cast<double>(t.x.size(0) * inner);
    if (c.options.training) {
      each([&](int64_t i) { mean += x[i]; });
      mean /= count;
      double rest = 0;  // what rounding of the large sum left out
      each([&](int64_t i) { rest += x[i] - mean; });
      mean += rest / count;
      each([&](int64_t i) { var += (x[i] - mean) * (x[i] - mean); });
      var /= count;
    } else {
      mean = t.mean.data<double>()[ch];
      var = t.var.data<double>()[ch];
    }
    each([&](int64_t i) {
      double v = (x[i] - mean) / std::sqrt(var + c.options.eps);
      if (c.affine) v = v * t.weight.data<double>()[ch] + t.bias.data<double>()[ch];
      if (c.residual) v += t.residual.data<double>()[i];
      y.data<double>()[i] = c.relu && v < 0 ? 0 : v;
    });
  }
  return y;
}

Tensor scaled(Tensor t, double scale, double shift) {
  for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = t.data<double>()[i] * scale + shift;
  return t;
}

Case make_case(const BatchNormCase& b) {
  Case c;
  c.name = b.name;
  const Shape channels{b.shape[1]};
  c.inputs = {scaled(values(b.shape, 1), b.scale, b.shift)};
  c.grads = {true};
  const auto add = [&](Tensor t, bool wants) {
    c.inputs.push_back(std::move(t));
    c.grads.push_back(wants);
  };
  if (b.residual) add(values(b.shape, 2), true);
  if (b.affine) {
    add(scaled(values(channels, 3), 1, 1), true);
    add(values(channels, 4), true);
  }
  if (!b.options.training) {
    add(values(channels, 5), false);
    add(scaled(values(channels, 6), 0.5, 1), false);
  }
  c.op = [b](Inputs in) { return run_batch_norm(in, b); };
  c.reference = [b](Inputs in) { return batch_norm_reference(in, b); };
  c.terms = std::max<int64_t>(1, b.shape[1] == 0 ? 1 : c.inputs[0].numel() / b.shape[1]);
  // A deviation is divided by the spread: rounding of x counts that much more.
  c.amplification = 4;
  return c;
}

std::vector<Case> batch_norm_cases() {
  const BatchNormOptions train{.training = true}, eval{};
  std::vector<BatchNormCase> list{
      {"training", {4, 3, 3, 2}, train},
      {"training, whole vectors and a rest", {3, 83, 2, 2}, train},
      {"training, several blocks of rows", {9, 3, 17, 19}, train},
      {"training, no weight and bias", {3, 2, 2, 3}, train, false},
      {"training, batch 1", {1, 3, 3, 3}, train},
      {"training, one pixel", {5, 3, 1, 1}, train},
      {"training, large eps", {3, 2, 2, 2}, {.training = true, .eps = 0.25}},
      {"training, whole vectors", {3, 16, 3, 2}, train},
      {"training, 2-d", {6, 4}, train},
      {"training, 3-d", {2, 3, 5}, train},
      {"training, batch 0", {0, 3, 2, 2}, train},
      {"evaluation", {3, 3, 2, 2}, eval},
      {"evaluation, no weight and bias", {2, 2, 2, 2}, eval, false},
      {"evaluation, 3-d", {2, 3, 5}, eval},
      {"evaluation, one value per channel", {1, 3, 1, 1}, eval},
  };
  std::vector<Case> cases;
  for (const BatchNormCase& b : list) cases.push_back(make_case(b));
  // Far from zero the spread survives in f64 and f32; bf16 has no digits left for it.
  Case far =
      make_case({"training, mean 1000 and spread 0.01", {16, 2, 8, 8}, train, true, 0.017, 1000});
  // A step of 1e-6 is large beside the spread: the rule is checked by the other cases.
  far.numeric_gradient = false;
  // A mean of 1000 is rounded to 1e-13 in f64, which is 1e-11 of the spread. (What f32 keeps is
  // pinned more tightly in tests/autograd.)
  far.amplification = 400;
  // The gradient takes that error times rstd = 100, of two devices that round the mean differently,
  // against values of about 15.
  far.gradient_amplification = 400 * 10;
  cases.push_back(far);
  return cases;
}

std::vector<Case> batch_norm_relu_cases() {
  const BatchNormOptions train{.training = true}, eval{};
  std::vector<BatchNormCase> list{
      {"training", {4, 3, 3, 2}, train, true, 1, 0, true},
      {"training, residual", {4, 70, 3, 2}, train, true, 1, 0, true, true},
      {"training, whole vectors", {3, 8, 2, 3}, train, true, 1, 0, true},
      {"training, residual, whole vectors", {3, 16, 3, 2}, train, true, 1, 0, true, true},
      {"training, residual, no weight and bias", {3, 2, 2, 3}, train, false, 1, 0, true, true},
      {"evaluation, residual", {3, 3, 2, 2}, eval, true, 1, 0, true, true},
      {"evaluation, 2-d", {5, 3}, eval, true, 1, 0, true},
      {"training, 3-d, residual", {2, 3, 5}, train, true, 1, 0, true, true},
      {"training, residual, batch 0", {0, 3, 2, 2}, train, true, 1, 0, true, true},
  };
  std::vector<Case> cases;
  for (const BatchNormCase& b : list) cases.push_back(make_case(b));
  Case self = make_case({"its own residual", {4, 3, 3, 2}, train, false, 1, 0, true});
  self.op = [](Inputs in) {
    return batch_norm_relu(in[0], in[0], {}, {}, {}, {}, {.training = true});
  };
  self.reference = [](Inputs in) {
    const Tensor twice[2] = {in[0], in[0]};
    return batch_norm_reference(twice, {"", {}, {.training = true}, false, 1, 0, true, true});
  };
  cases.push_back(self);
  return cases;
}

std::vector<ErrorCase> batch_norm_errors() {
  const Tensor x = zeros({2, 3, 4, 4}), v = ones({3});
  const BatchNormOptions train{.training = true};
  return {
      {[=] { batch_norm(zeros({3}), v, v, v, v, {}); },
       "batch_norm: input must be 2-d to 4-d [N, C, ...], got [3]"},
      {[=] {
         batch_norm(zeros({2, 3}, {DType::i64}), v, v, v, v, {});
       },
       "batch_norm: input must be floating, got i64"},
      {[=] { batch_norm(x, {}, {}, v, v, {}); },
       "batch_norm: running_mean and running_var must be defined when not training, got none"},
      {[=] { batch_norm(x, v, {}, v, v, train); },
       "batch_norm: running_mean and running_var must be given together, got only running_mean"},
      {[=] {
         batch_norm(zeros({1, 3, 1, 1}), v, v, v, v, train);
       },
       "batch_norm: input must have more than 1 value per channel when training, got [1, 3, 1, 1]"},
      {[=] { batch_norm(x, v, v, ones({4}), v, train); },
       "batch_norm: weight must be of shape [3], got [4]"},
      {[=] { batch_norm(x, v, v, v, zeros({3}, {DType::f64}), train); },
       "batch_norm: bias must be f32, got f64"},
      {[=] { batch_norm(x, v, v, v, v, {.training = true, .momentum = 2}); },
       "batch_norm: momentum must be in [0, 1], got 2"},
      {[=] { batch_norm(x, v, v, v, v, {.eps = -1}); },
       "batch_norm: eps must not be negative, got -1"},
  };
}

std::vector<ErrorCase> batch_norm_relu_errors() {
  const Tensor x = zeros({2, 3, 4, 4}), v = ones({3});
  return {
      {[=] {
         batch_norm_relu(x, zeros({2, 3, 4, 5}), v, v, v, v, {});
       },
       "batch_norm_relu: residual must be of shape [2, 3, 4, 4], got [2, 3, 4, 5]"},
      {[=] {
         batch_norm_relu(x, zeros({2, 3, 4, 4}, {DType::f64}), v, v, v, v, {});
       },
       "batch_norm_relu: residual must be f32, got f64"},
  };
}

Case layer_norm_case(const char* name, const Tensor& x, const Shape& normalized, bool weight = true,
                     bool bias = true, double eps = 1e-5) {
  Case c;
  c.name = name;
  c.inputs = {x};
  if (weight) c.inputs.push_back(scaled(values(normalized, 2), 1, 1));
  if (weight && bias) c.inputs.push_back(values(normalized, 3));
  c.op = [normalized, eps](Inputs in) {
    return layer_norm(in[0], normalized, in.size() > 1 ? in[1] : Tensor{},
                      in.size() > 2 ? in[2] : Tensor{}, eps);
  };
  c.reference = [normalized, eps](Inputs in) {
    const int64_t width = numel_of(normalized);
    Tensor y = empty(in[0].shape(), {DType::f64});
    for (int64_t start = 0; start < y.numel(); start += width) {
      const double* row = in[0].data<double>() + start;
      double mean = 0, var = 0;
      for (int64_t i = 0; i < width; ++i) mean += row[i] / static_cast<double>(width);
      for (int64_t i = 0; i < width; ++i)
        var += (row[i] - mean) * (row[i] - mean) / static_cast<double>(width);
      for (int64_t i = 0; i < width; ++i) {
        double v = (row[i] - mean) / std::sqrt(var + eps);
        if (in.size() > 1) v *= in[1].data<double>()[i];
        if (in.size() > 2) v += in[2].data<double>()[i];
        y.data<double>()[start + i] = v;
      }
    }
    return y;
  };
  c.terms = std::max<int64_t>(1, x.numel());
  c.amplification = 4;
  return c;
}

std::vector<Case> layer_norm_cases() {
  Case constant = layer_norm_case("constant rows", full({2, 4}, 3, {DType::f64}), {4});
  // Around a spread of zero the function bends within any step.
  constant.numeric_gradient = false;
  return {
      layer_norm_case("last dimension", values({3, 4, 7}, 1), {7}),
      layer_norm_case("whole vectors and a rest", values({5, 75}, 1), {75}),
      layer_norm_case("several blocks of rows", values({150, 5}, 1), {5}),
      layer_norm_case("two dimensions", values({2, 3, 4}, 1), {3, 4}),
      layer_norm_case("whole tensor", values({3, 4}, 1), {3, 4}),
      layer_norm_case("no weight and bias", values({2, 5}, 1), {5}, false),
      layer_norm_case("no bias", values({2, 5}, 1), {5}, true, false),
      layer_norm_case("one row", values({9}, 1), {9}),
      layer_norm_case("width 1", values({3, 1}, 1), {1}, true, true, 0.01),
      layer_norm_case("no rows", values({0, 4}, 1), {4}),
      constant,
  };
}

std::vector<ErrorCase> layer_norm_errors() {
  const Tensor x = zeros({2, 3});
  return {
      {[=] { layer_norm(x, {4}); }, "layer_norm: input must end in the sizes [4], got [2, 3]"},
      {[=] { layer_norm(x, {}); },
       "layer_norm: normalized_shape must have at least one size, got []"},
      {[=] { layer_norm(x, {3}, ones({2})); }, "layer_norm: weight must be of shape [3], got [2]"},
      {[=] { layer_norm(x, {3}, {}, zeros({3}, {DType::f64})); },
       "layer_norm: bias must be f32, got f64"},
      {[=] { layer_norm(zeros({2}, {DType::i32}), {2}); },
       "layer_norm: input must be floating, got i32"},
  };
}

const Register batch_norm_entry{
    {.op = "batch_norm", .family = "norm", .cases = batch_norm_cases, .errors = batch_norm_errors}};
const Register batch_norm_relu_entry{{.op = "batch_norm_relu",
                                      .family = "norm",
                                      .cases = batch_norm_relu_cases,
                                      .errors = batch_norm_relu_errors}};
const Register layer_norm_entry{
    {.op = "layer_norm", .family = "norm", .cases = layer_norm_cases, .errors = layer_norm_errors}};

}  // namespace
}  // namespace cairn::check_table
