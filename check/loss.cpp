// Losses in the op table; references follow the definitions literally.
#include "cairn/autograd/ops/loss.h"

#include <algorithm>
#include <cmath>

#include "cairn/tensor/factory.h"
#include "check/op_table.h"

namespace cairn::check_table {
namespace {

// Scores [N, C, D] of any input of the class losses.
struct Scores {
  explicit Scores(const Tensor& x) {
    const bool batch = x.dim() > 1;
    n = batch ? x.size(0) : 1;
    c = batch ? x.size(1) : x.size(0);
    for (size_t i = 2; i < x.shape().size(); ++i) d *= x.shape()[i];
  }
  int64_t n, c, d = 1;
};

Shape without_classes(const Shape& x) {
  Shape out = x;
  out.erase(x.size() == 1 ? 0 : 1);
  return out;
}

// The output for one loss and one weight per target: as they are, summed, or their quotient.
Tensor reduced(const std::vector<double>& losses, const std::vector<double>& weights,
               const Shape& shape, Reduction reduction) {
  if (reduction == Reduction::none) return from_values(losses, shape);
  double sum = 0, weight = 0;
  for (const double v : losses) sum += v;
  for (const double v : weights) weight += v;
  return scalar_tensor(reduction == Reduction::mean ? sum / weight : sum, {DType::f64});
}

double weight_of(const Tensor& weight, int64_t c) {
  return weight.defined() ? weight.data<double>()[c] : 1.0;
}

// log_probs(n, c, d) by the definition of the loss on them.
template <class LogProbs>
Tensor class_loss(const Scores& s, const Shape& shape, const Tensor& target, const Tensor& weight,
                  int64_t ignore, double smoothing, Reduction reduction, LogProbs&& log_prob) {
  std::vector<double> losses, weights;
  for (int64_t i = 0; i < s.n * s.d; ++i) {
    const int64_t hot = target.data<int64_t>()[i], n = i / s.d, d = i % s.d;
    if (hot == ignore) {
      losses.push_back(0);
      weights.push_back(0);
      continue;
    }
    double loss = -(1 - smoothing) * weight_of(weight, hot) * log_prob(n, hot, d);
    for (int64_t c = 0; smoothing > 0 && c < s.c; ++c)
      loss -= smoothing / static_cast<double>(s.c) * weight_of(weight, c) * log_prob(n, c, d);
    losses.push_back(loss);
    weights.push_back(weight_of(weight, hot));
  }
  return reduced(losses, weights, without_classes(shape), reduction);
}

// log softmax of x at (n, c, d).
double log_softmax_at(const Tensor& x, const Scores& s, int64_t n, int64_t c, int64_t d) {
  const auto at = [&](int64_t k) { return x.data<double>()[(n * s.c + k) * s.d + d]; };
  double top = at(0), sum = 0;
  for (int64_t k = 1; k < s.c; ++k) top = std::max(top, at(k));
  for (int64_t k = 0; k < s.c; ++k) sum += std::exp(at(k) - top);
  return at(c) - top - std::log(sum);
}

struct ClassCase {
  const char* name;
  Shape shape;
  std::vector<int64_t> target;
  bool weighted = false;
  int64_t ignore = -100;
  Reduction reduction = Reduction::mean;
  double smoothing = 0;
  double scale = 2;
};

Tensor scaled(Tensor t, double scale, double shift) {
  for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = t.data<double>()[i] * scale + shift;
  return t;
}

Case class_case(const ClassCase& k, bool cross) {
  Case c;
  c.name = k.name;
  const Tensor x = scaled(values(k.shape, 1), k.scale, 0);
  const Scores s(x);
  c.inputs = {x, from_values(k.target, without_classes(k.shape))};
  c.grads = {true, false};
  if (k.weighted) {
    c.inputs.push_back(scaled(values({s.c}, 2), 0.5, 1));
    c.grads.push_back(false);
  }
  c.op = [k, cross](Inputs in) {
    const Tensor weight = in.size() > 2 ? in[2] : Tensor{};
    if (!cross) return nll_loss(in[0], in[1], {weight, k.ignore, k.reduction});
    return cross_entropy(in[0], in[1], {weight, k.ignore, k.reduction, k.smoothing});
  };
  c.reference = [k, cross](Inputs in) {
    const Scores s(in[0]);
    return class_loss(s, k.shape, in[1], in.size() > 2 ? in[2] : Tensor{}, k.ignore, k.smoothing,
                      k.reduction, [&](int64_t n, int64_t c, int64_t d) {
                        return cross ? log_softmax_at(in[0], s, n, c, d)
                                     : in[0].data<double>()[(n * s.c + c) * s.d + d];
                      });
  };
  c.terms = x.numel();
  c.amplification = k.scale;
  return c;
}

std::vector<ClassCase> class_list() {
  const std::vector<int64_t> six{0, 2, 1, 4, 3, 2};
  const std::vector<int64_t> ignoring{0, -100, 1, 4, -100, 2};
  return {
      {"mean", {6, 5}, six},
      {"sum", {6, 5}, six, false, -100, Reduction::sum},
      {"none", {6, 5}, six, false, -100, Reduction::none},
      {"weight", {6, 5}, six, true},
      {"weight, sum", {6, 5}, six, true, -100, Reduction::sum},
      {"weight, none", {6, 5}, six, true, -100, Reduction::none},
      {"ignore_index", {6, 5}, ignoring},
      {"ignore_index and weight", {6, 5}, ignoring, true},
      {"ignore_index and weight, none", {6, 5}, ignoring, true, -100, Reduction::none},
      {"ignore_index is a class", {6, 5}, six, true, 2},
      {"no batch", {5}, {3}},
      {"no batch, none", {5}, {3}, true, -100, Reduction::none},
      {"images", {2, 3, 2, 2}, {0, 1, 2, -100, 1, 1, 0, 2}, true},
      {"images, none", {2, 3, 2, 2}, {0, 1, 2, -100, 1, 1, 0, 2}, true, -100, Reduction::none},
      {"one class", {3, 1}, {0, 0, 0}},
      {"batch 0, sum", {0, 4}, {}, false, -100, Reduction::sum},
      {"batch 0, none", {0, 4}, {}, false, -100, Reduction::none},
  };
}

std::vector<Case> cross_entropy_cases() {
  const std::vector<int64_t> ignoring{0, -100, 1, 4, -100, 2};
  std::vector<ClassCase> list = class_list();
  for (const ClassCase& k : std::vector<ClassCase>{
           {"label smoothing", {6, 5}, ignoring, false, -100, Reduction::mean, 0.1},
           {"label smoothing and weight", {6, 5}, ignoring, true, -100, Reduction::mean, 0.3},
           {"label smoothing and weight, none", {6, 5}, ignoring, true, -100, Reduction::none, 0.3},
           {"label smoothing 1", {6, 5}, ignoring, true, -100, Reduction::sum, 1.0},
           {"77 classes", {3, 77}, {76, 0, 40}, true, -100, Reduction::mean, 0.1},
           {"large logits", {6, 5}, ignoring, false, -100, Reduction::none, 0, 300}})
    list.push_back(k);
  std::vector<Case> cases;
  for (const ClassCase& k : list) cases.push_back(class_case(k, true));
  Case ignored = class_case({"every target ignored: NaN", {2, 3}, {-100, -100}}, true);
  ignored.differentiable = false;
  ignored.grads.clear();
  cases.push_back(ignored);
  return cases;
}

// Probabilities as targets; they have a gradient, too.
Case probability_case(const char* name, const Shape& shape, bool weighted, double smoothing,
                      Reduction reduction) {
  Case c;
  c.name = name;
  const Scores s(values(shape, 1));
  c.inputs = {scaled(values(shape, 1), 2, 0), scaled(values(shape, 3), 0.5, 0.5)};
  c.grads = {true, true};
  if (weighted) {
    c.inputs.push_back(scaled(values({s.c}, 2), 0.5, 1));
    c.grads.push_back(false);
  }
  c.op = [=](Inputs in) {
    return cross_entropy(in[0], in[1],
                         {in.size() > 2 ? in[2] : Tensor{}, -100, reduction, smoothing});
  };
  c.reference = [=](Inputs in) {
    std::vector<double> losses, ones;
    for (int64_t i = 0; i < s.n * s.d; ++i) {
      double loss = 0;
      for (int64_t k = 0; k < s.c; ++k) {
        const double p = in[1].data<double>()[(i / s.d * s.c + k) * s.d + i % s.d];
        loss -= weight_of(in.size() > 2 ? in[2] : Tensor{}, k) *
                (p * (1 - smoothing) + smoothing / static_cast<double>(s.c)) *
                log_softmax_at(in[0], s, i / s.d, k, i % s.d);
      }
      losses.push_back(loss);
      ones.push_back(1);
    }
    return reduced(losses, ones, without_classes(shape), reduction);
  };
  c.terms = c.inputs[0].numel();
  c.amplification = 4;
  return c;
}

std::vector<Case> cross_entropy_probability_cases() {
  return {
      probability_case("mean", {4, 5}, false, 0, Reduction::mean),
      probability_case("weight and smoothing, sum", {4, 5}, true, 0.2, Reduction::sum),
      probability_case("images, none", {2, 3, 2, 2}, true, 0.1, Reduction::none),
      probability_case("no batch", {5}, false, 0, Reduction::mean),
  };
}

std::vector<ErrorCase> cross_entropy_errors() {
  const Tensor x = zeros({4, 10});
  const auto classes = [](std::vector<int64_t> t) {
    return from_values(t, {static_cast<int64_t>(t.size())});
  };
  return {
      {[=] {
         cross_entropy(x, classes({0, 1, 2, 10}));
       },
       "cross_entropy: target must be in [0, 10), got 10 at position 3"},
      {[=] {
         cross_entropy(x, classes({0, -1, 2, 10}));
       },
       "cross_entropy: target must be in [0, 10), got -1 at position 1"},
      {[=] {
         cross_entropy(x, classes({0, 1, 2}));
       },
       "cross_entropy: target must be of shape [4], got [3]"},
      {[=] {
         cross_entropy(x, zeros({4, 9}));
       },
       "cross_entropy: target probabilities must be f32 [4, 10], got f32 [4, 9]"},
      {[=] { cross_entropy(x, zeros({4}, {DType::boolean})); },
       "cross_entropy: target must be i64, i32 or u8 class indices, got bool"},
      {[=] {
         cross_entropy(zeros({4, 10}, {DType::i64}), classes({0, 1, 2, 3}));
       },
       "cross_entropy: logits must be floating, got i64"},
      {[=] { cross_entropy(zeros({}), classes({0})); },
       "cross_entropy: logits must be [C], [N, C] or [N, C, d1, ...], got []"},
      {[=] {
         cross_entropy(x, classes({0, 1, 2, 3}), {.weight = ones({9})});
       },
       "cross_entropy: weight must be of shape [10], got [9]"},
      {[=] {
         cross_entropy(x, classes({0, 1, 2, 3}), {.weight = {}, .label_smoothing = 1.5});
       },
       "cross_entropy: label_smoothing must be in [0, 1], got 1.5"},
  };
}

std::vector<Case> nll_cases() {
  std::vector<Case> cases;
  for (const ClassCase& k : class_list()) cases.push_back(class_case(k, false));
  return cases;
}

std::vector<ErrorCase> nll_errors() {
  return {
      {[] {
         nll_loss(zeros({2, 3}), from_values<int64_t>({0, 3}, {2}));
       },
       "nll_loss: target must be in [0, 3), got 3 at position 1"},
      {[] {
         nll_loss(zeros({2, 3}), zeros({2}));
       },
       "nll_loss: target must be i64, i32 or u8 class indices, got f32"},
      {[] {
         nll_loss(zeros({2, 0}), from_values<int64_t>({0, 1}, {2}));
       },
       "nll_loss: log_probs must have at least 1 class, got [2, 0]"},
  };
}

Case mse_case(const char* name, const Shape& a, const Shape& b, Reduction reduction) {
  Case c;
  c.name = name;
  c.inputs = {values(a, 1), values(b, 2)};
  c.op = [reduction](Inputs in) { return mse_loss(in[0], in[1], reduction); };
  c.reference = [reduction](Inputs in) {
    // Every broadcast case here stretches whole leading dimensions, so indices repeat.
    const Shape shape = broadcast_shapes(in[0].shape(), in[1].shape(), "mse_loss");
    std::vector<double> losses, ones;
    for (int64_t i = 0; i < numel_of(shape); ++i) {
      const double d =
          in[0].data<double>()[i % in[0].numel()] - in[1].data<double>()[i % in[1].numel()];
      losses.push_back(d * d);
      ones.push_back(1);
    }
    return reduced(losses, ones, shape, reduction);
  };
  c.terms = std::max<int64_t>({1, c.inputs[0].numel(), c.inputs[1].numel()});
  c.amplification = 4;
  return c;
}

std::vector<Case> mse_cases() {
  Case empty_mean = mse_case("no elements: NaN", {0}, {0}, Reduction::mean);
  empty_mean.differentiable = false;
  Case blocks = mse_case("several blocks of a sum", {100, 100}, {100, 100}, Reduction::mean);
  blocks.numeric_gradient = false;  // 40,000 calls; the small cases check the same rule
  return {
      mse_case("mean", {3, 4}, {3, 4}, Reduction::mean),
      mse_case("sum", {3, 4}, {3, 4}, Reduction::sum),
      mse_case("none", {3, 4}, {3, 4}, Reduction::none),
      mse_case("target broadcasts", {3, 4}, {4}, Reduction::mean),
      mse_case("input broadcasts", {1, 4}, {3, 4}, Reduction::none),
      mse_case("0-d", {}, {}, Reduction::mean),
      blocks,
      mse_case("no elements, none", {0, 3}, {0, 3}, Reduction::none),
      empty_mean,
  };
}

std::vector<ErrorCase> mse_errors() {
  return {
      {[] {
         mse_loss(zeros({2, 3}), zeros({2, 4}));
       },
       "mse_loss: shapes must broadcast, got [2, 3] and [2, 4]"},
      {[] { mse_loss(zeros({2}), zeros({2}, {DType::f64})); },
       "mse_loss: target must be f32 like the input, got f64"},
      {[] { mse_loss(zeros({2}, {DType::i64}), zeros({2}, {DType::i64})); },
       "mse_loss: input must be floating, got i64"},
  };
}

Case bce_case(const char* name, const Shape& shape, bool weighted, bool pos_weighted,
              Reduction reduction, double scale = 4) {
  Case c;
  c.name = name;
  c.inputs = {scaled(values(shape, 1), scale, 0), scaled(values(shape, 2), 0.5, 0.5)};
  c.grads = {true, true};
  const int64_t last = shape.empty() ? 1 : shape.back();
  if (weighted) c.inputs.push_back(scaled(values({last}, 3), 0.5, 1)), c.grads.push_back(false);
  if (pos_weighted) c.inputs.push_back(scaled(values({last}, 4), 1, 2)), c.grads.push_back(false);
  const auto at = [=](Inputs in, bool pos) {
    const size_t i = pos && weighted ? 3 : 2;
    return (pos ? pos_weighted : weighted) ? in[i] : Tensor{};
  };
  c.op = [=](Inputs in) {
    return binary_cross_entropy_with_logits(in[0], in[1], {at(in, false), at(in, true), reduction});
  };
  c.reference = [=](Inputs in) {
    std::vector<double> losses, ones;
    for (int64_t i = 0; i < in[0].numel(); ++i) {
      const double x = in[0].data<double>()[i], t = in[1].data<double>()[i];
      const auto log_sigmoid = [](double v) {
        return v < 0 ? v - std::log1p(std::exp(v)) : -std::log1p(std::exp(-v));
      };
      losses.push_back(
          -weight_of(at(in, false), i % last) *
          (weight_of(at(in, true), i % last) * t * log_sigmoid(x) + (1 - t) * log_sigmoid(-x)));
      ones.push_back(1);
    }
    return reduced(losses, ones, shape, reduction);
  };
  c.terms = std::max<int64_t>(1, c.inputs[0].numel());
  c.amplification = 4;
  return c;
}

std::vector<Case> bce_cases() {
  return {
      bce_case("mean", {3, 4}, false, false, Reduction::mean),
      bce_case("sum", {3, 4}, false, false, Reduction::sum),
      bce_case("none", {3, 4}, false, false, Reduction::none),
      bce_case("weight", {3, 4}, true, false, Reduction::mean),
      bce_case("pos_weight", {3, 4}, false, true, Reduction::mean),
      bce_case("weight and pos_weight, none", {3, 4}, true, true, Reduction::none),
      bce_case("large logits", {3, 4}, false, true, Reduction::none, 500),
      bce_case("one element", {1}, false, false, Reduction::mean),
      bce_case("no elements, sum", {0, 4}, false, false, Reduction::sum),
  };
}

std::vector<ErrorCase> bce_errors() {
  return {
      {[] {
         binary_cross_entropy_with_logits(zeros({2, 3}), zeros({3}));
       },
       "binary_cross_entropy_with_logits: target must be of shape [2, 3], got [3]"},
      {[] {
         binary_cross_entropy_with_logits(zeros({2}), zeros({2}),
                                          {.weight = ones({3, 2}), .pos_weight = {}});
       },
       "binary_cross_entropy_with_logits: weight must broadcast to [2], got [3, 2]"},
      {[] { binary_cross_entropy_with_logits(zeros({2}), zeros({2}, {DType::i64})); },
       "binary_cross_entropy_with_logits: target must be f32 like the input, got i64"},
  };
}

const Register cross_entropy_entry{{.op = "cross_entropy",
                                    .family = "loss",
                                    .cases = cross_entropy_cases,
                                    .errors = cross_entropy_errors}};
const Register probability_entry{{.op = "cross_entropy (probabilities)",
                                  .family = "loss",
                                  .cases = cross_entropy_probability_cases,
                                  .errors = {}}};
const Register nll_entry{
    {.op = "nll_loss", .family = "loss", .cases = nll_cases, .errors = nll_errors}};
const Register mse_entry{
    {.op = "mse_loss", .family = "loss", .cases = mse_cases, .errors = mse_errors}};
const Register bce_entry{{.op = "binary_cross_entropy_with_logits",
                          .family = "loss",
                          .cases = bce_cases,
                          .errors = bce_errors}};

}  // namespace
}  // namespace cairn::check_table
