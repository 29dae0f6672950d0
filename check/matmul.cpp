// matmul, linear and feed_forward in the op table.
#include "cairn/autograd/ops/matmul.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "cairn/autograd/ops/indexing.h"
#include "cairn/tensor/raw.h"
#include "check/op_table.h"

namespace cairn::check_table {
namespace {

// One matrix at a time: every output element is looked up by its own batch indices.
Tensor matmul_reference(Inputs in) {
  Tensor a = in[0], b = in[1];
  if (in[0].dim() == 1) a = raw::unsqueeze(a, 0);
  if (in[1].dim() == 1) b = raw::unsqueeze(b, 1);
  Shape batch_a = a.shape(), batch_b = b.shape();
  batch_a.resize(batch_a.size() - 2);
  batch_b.resize(batch_b.size() - 2);
  Shape batch = broadcast_shapes(batch_a, batch_b, "matmul");
  const int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  const auto joined = [&](int64_t rows, int64_t cols) {
    Shape s = batch;
    s.push_back(rows);
    s.push_back(cols);
    return s;
  };
  a = raw::contiguous(raw::expand(a, joined(m, k)));
  b = raw::contiguous(raw::expand(b, joined(k, n)));
  Tensor y = zeros(joined(m, n), {DType::f64});
  for (int64_t i = 0; i < y.numel(); ++i) {
    const int64_t col = i % n, row = i / n % m, z = i / n / m;
    for (int64_t l = 0; l < k; ++l)
      y.data<double>()[i] +=
          a.data<double>()[(z * m + row) * k + l] * b.data<double>()[(z * k + l) * n + col];
  }
  if (in[1].dim() == 1) y = raw::squeeze(y, -1);
  if (in[0].dim() == 1) y = raw::squeeze(y, in[1].dim() == 1 ? -1 : -2);
  return y;
}

Case matmul_case(const char* name, const Shape& a, const Shape& b) {
  Case c;
  c.name = name;
  c.inputs = {values(a, 1), values(b, 2)};
  c.op = [](Inputs in) { return matmul(in[0], in[1]); };
  c.reference = matmul_reference;
  c.terms = std::max<int64_t>(1, std::max(c.inputs[0].numel(), c.inputs[1].numel()));
  return c;
}

std::vector<Case> matmul_cases() {
  std::vector<Case> cases{
      matmul_case("matrices", {3, 4}, {4, 5}),
      matmul_case("larger than a tile", {70, 33}, {33, 67}),
      matmul_case("dot", {5}, {5}),
      matmul_case("matrix by vector", {3, 4}, {4}),
      matmul_case("vector by matrix", {3}, {3, 4}),
      matmul_case("batched", {3, 2, 4}, {3, 4, 2}),
      matmul_case("batched by matrix", {2, 3, 4}, {4, 5}),
      matmul_case("matrix by batched", {3, 4}, {2, 4, 5}),
      matmul_case("both broadcast", {2, 1, 3, 4}, {3, 4, 2}),
      matmul_case("crossed broadcast", {2, 1, 2, 3}, {1, 4, 3, 2}),
      matmul_case("batched by vector", {2, 3, 4}, {4}),
      matmul_case("vector by batched", {3}, {2, 3, 4}),
      matmul_case("one element", {1, 1}, {1, 1}),
      matmul_case("inner size 0", {2, 0}, {0, 3}),
      matmul_case("no rows", {0, 3}, {3, 2}),
      matmul_case("batch 0", {0, 2, 3}, {3, 2}),
      matmul_case("batch 0 by broadcast", {2, 3}, {0, 3, 2}),
  };
  Case transposed = matmul_case("transposed operands", {4, 3}, {5, 4});
  transposed.op = [](Inputs in) { return matmul(transpose(in[0], 0, 1), transpose(in[1], 0, 1)); };
  transposed.reference = [](Inputs in) {
    const Tensor turned[2] = {raw::contiguous(raw::transpose(in[0], 0, 1)),
                              raw::contiguous(raw::transpose(in[1], 0, 1))};
    return matmul_reference(turned);
  };
  cases.push_back(transposed);
  Case square = matmul_case("an operand by itself", {4, 4}, {1});
  square.inputs.pop_back();
  square.op = [](Inputs in) { return matmul(in[0], in[0]); };
  square.reference = [](Inputs in) {
    const Tensor twice[2] = {in[0], in[0]};
    return matmul_reference(twice);
  };
  cases.push_back(square);
  return cases;
}

std::vector<ErrorCase> matmul_errors() {
  return {
      {[] {
         matmul(zeros({2, 3}), zeros({4, 5}));
       },
       "matmul: inner sizes must agree, got [2, 3] and [4, 5]"},
      {[] { matmul(zeros({3}), zeros({4})); }, "matmul: inner sizes must agree, got [3] and [4]"},
      {[] {
         matmul(zeros({}), zeros({2, 2}));
       },
       "matmul: operands must be at least 1-d, got [] and [2, 2]"},
      {[] {
         matmul(zeros({2, 2}), zeros({2, 2}, {DType::f64}));
       },
       "matmul: operands must be of one floating dtype, got f32 and f64"},
      {[] {
         matmul(zeros({2, 2}, {DType::i64}), zeros({2, 2}, {DType::i64}));
       },
       "matmul: operands must be of one floating dtype, got i64 and i64"},
      {[] {
         matmul(zeros({2, 3, 4}), zeros({3, 4, 5}));
       },
       "matmul: shapes must broadcast, got [2] and [3]"},
  };
}

double activated(double v, Activation activation) {
  if (activation == Activation::relu) return std::max(v, 0.0);
  if (activation == Activation::gelu_tanh)
    return 0.5 * v *
           (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * std::pow(v, 3))));
  return v;
}

Tensor linear_reference(const Tensor& x, const Tensor& w, const Tensor& bias,
                        Activation activation) {
  const int64_t width = w.size(1), out = w.size(0);
  Shape shape = x.shape();
  shape[shape.size() - 1] = out;
  const Tensor y = zeros(shape, {DType::f64});
  for (int64_t i = 0; i < y.numel(); ++i) {
    double sum = bias.defined() ? bias.data<double>()[i % out] : 0;
    for (int64_t l = 0; l < width; ++l)
      sum += x.data<double>()[i / out * width + l] * w.data<double>()[i % out * width + l];
    y.data<double>()[i] = activated(sum, activation);
  }
  return y;
}

Case linear_case(const char* name, const Shape& x, int64_t out, bool bias,
                 Activation activation = Activation::none) {
  Case c;
  c.name = name;
  const int64_t in_features = x.back();
  c.inputs = {values(x, 1), values({out, in_features}, 2)};
  if (bias) c.inputs.push_back(values({out}, 3));
  c.op = [activation](Inputs in) {
    return linear(in[0], in[1], in.size() > 2 ? in[2] : Tensor{}, {.activation = activation});
  };
  c.reference = [activation](Inputs in) {
    return linear_reference(in[0], in[1], in.size() > 2 ? in[2] : Tensor{}, activation);
  };
  c.terms = std::max<int64_t>({c.inputs[0].numel(), out, 1});
  return c;
}

std::vector<Case> linear_cases() {
  return {
      linear_case("bias", {3, 4}, 5, true),
      linear_case("no bias", {3, 4}, 2, false),
      linear_case("larger than a tile", {20, 70}, 35, true),
      linear_case("1-d", {4}, 3, true),
      linear_case("3-d", {2, 3, 4}, 5, true),
      linear_case("one output", {4, 3}, 1, true),
      linear_case("batch 1", {1, 3}, 2, true),
      linear_case("batch 0", {0, 3}, 2, true),
      linear_case("no input features", {2, 0}, 3, true),
      linear_case("relu", {3, 4}, 5, true, Activation::relu),
      linear_case("relu, no bias, 3-d", {2, 3, 4}, 5, false, Activation::relu),
      linear_case("relu, larger than a tile", {20, 70}, 35, true, Activation::relu),
      linear_case("relu, batch 0", {0, 3}, 2, true, Activation::relu),
      linear_case("gelu", {3, 4}, 5, true, Activation::gelu_tanh),
      linear_case("gelu, no bias, 1-d", {4}, 3, false, Activation::gelu_tanh),
      linear_case("gelu, larger than a tile", {20, 70}, 35, true, Activation::gelu_tanh),
      linear_case("gelu, batch 0", {0, 3}, 2, true, Activation::gelu_tanh),
  };
}

std::vector<ErrorCase> linear_errors() {
  return {
      {[] {
         linear(zeros({3, 4}), zeros({5, 3}));
       },
       "linear: input must end in 3 features for weight [5, 3], got [3, 4]"},
      {[] {
         linear(zeros({3, 4}), zeros({4}));
       },
       "linear: weight must be 2-d [out, in], got [4]"},
      {[] {
         linear(zeros({3, 4}), zeros({5, 4}), zeros({4}));
       },
       "linear: bias must be of shape [5], got [4]"},
      {[] {
         linear(zeros({3, 4}, {DType::i64}), zeros({5, 4}));
       },
       "linear: input must be floating, got i64"},
      {[] {
         linear(zeros({3, 4}), zeros({5, 4}, {DType::bf16}));
       },
       "linear: weight must be f32 like the input, got bf16"},
  };
}

Case feed_forward_case(const char* name, const Shape& x, int64_t width, int64_t out, bool biases,
                       Activation activation) {
  Case c;
  c.name = name;
  c.inputs = {values(x, 1), values({width, x.back()}, 2), values({out, width}, 3)};
  if (biases) {
    c.inputs.push_back(values({width}, 4));
    c.inputs.push_back(values({out}, 5));
  }
  c.op = [activation](Inputs in) {
    const bool biases = in.size() > 3;
    return feed_forward(in[0], in[1], biases ? in[3] : Tensor{}, in[2], biases ? in[4] : Tensor{},
                        {.activation = activation});
  };
  c.reference = [activation](Inputs in) {
    const bool biases = in.size() > 3;
    return linear_reference(linear_reference(in[0], in[1], biases ? in[3] : Tensor{}, activation),
                            in[2], biases ? in[4] : Tensor{}, Activation::none);
  };
  c.terms = std::max<int64_t>({c.inputs[0].numel(), width, out, 1});
  return c;
}

std::vector<Case> feed_forward_cases() {
  const Activation relu = Activation::relu, gelu = Activation::gelu_tanh;
  return {
      feed_forward_case("relu", {3, 4}, 16, 5, true, relu),
      feed_forward_case("gelu", {3, 4}, 16, 5, true, gelu),
      feed_forward_case("relu, no biases, 3-d", {2, 3, 4}, 8, 4, false, relu),
      feed_forward_case("gelu, no biases, 3-d", {2, 3, 4}, 8, 4, false, gelu),
      feed_forward_case("relu, odd width", {5, 3}, 7, 2, true, relu),
      feed_forward_case("gelu, odd width", {5, 3}, 7, 2, true, gelu),
      feed_forward_case("relu, larger than a tile", {20, 37}, 136, 24, true, relu),
      feed_forward_case("gelu, larger than a tile", {20, 37}, 136, 24, true, gelu),
      feed_forward_case("relu, 1-d, one output", {4}, 3, 1, true, relu),
      feed_forward_case("gelu, 1-d, one output", {4}, 8, 1, true, gelu),
      feed_forward_case("relu, width 1", {4, 3}, 1, 5, true, relu),
      feed_forward_case("relu, batch 0", {0, 3}, 8, 2, true, relu),
      feed_forward_case("gelu, batch 0", {0, 3}, 8, 2, true, gelu),
      feed_forward_case("relu, no input features", {2, 0}, 8, 3, true, relu),
      feed_forward_case("gelu, no output features", {2, 3}, 8, 0, true, gelu),
  };
}

std::vector<ErrorCase> feed_forward_errors() {
  return {
      {[] {
         feed_forward(zeros({3, 4}), zeros({6, 4}), {}, zeros({5, 7}), {});
       },
       "feed_forward: weight2 must take the 6 features of weight1 [6, 4], got [5, 7]"},
      {[] {
         feed_forward(zeros({3, 5}), zeros({6, 4}), {}, zeros({5, 6}), {});
       },
       "feed_forward: input must end in 4 features for weight1 [6, 4], got [3, 5]"},
      {[] {
         feed_forward(zeros({3, 4}), zeros({6, 4}), zeros({6}), zeros({5, 6}), zeros({6}));
       },
       "feed_forward: bias2 must be of shape [5], got [6]"},
      {[] {
         feed_forward(zeros({3, 4}), zeros({6, 4}), {}, zeros({5, 6}, {DType::f64}), {});
       },
       "feed_forward: weight2 must be f32 like the input, got f64"},
      {[] {
         feed_forward(zeros({3, 4}), zeros({6, 4}), {}, zeros({5, 6}), {},
                      {.activation = Activation::none});
       },
       "feed_forward: activation must be relu or gelu_tanh, got none"},
  };
}

const Register matmul_entry{
    {.op = "matmul", .family = "matmul", .cases = matmul_cases, .errors = matmul_errors}};
const Register linear_entry{
    {.op = "linear", .family = "matmul", .cases = linear_cases, .errors = linear_errors}};
const Register feed_forward_entry{{.op = "feed_forward",
                                   .family = "matmul",
                                   .cases = feed_forward_cases,
                                   .errors = feed_forward_errors}};

}  // namespace
}  // namespace cairn::check_table
