// Elementwise ops in the op table. One line per op; the cases are the same for all of a kind.
#include "cairn/autograd/ops/elementwise.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check/reference.h"

namespace cairn::check_table {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using UnaryOp = Tensor (*)(const Tensor&);
using UnaryRef = double (*)(double);

// How a unary op's cases are chosen.
struct Domain {
  double low = -3;
  double high = 3;
  bool special = true;  // zeros, infinities and NaN too
};

Case unary_case(const char* name, const Tensor& x, std::function<Tensor(const Tensor&)> op,
                std::function<double(double)> reference) {
  Case c;
  c.name = name;
  c.inputs = {x};
  c.op = [op](Inputs in) { return op(in[0]); };
  c.reference = [reference](Inputs in) { return mapped(in[0], reference); };
  return c;
}

std::vector<Case> unary_cases(std::function<Tensor(const Tensor&)> op,
                              std::function<double(double)> reference, Domain d) {
  std::vector<Case> cases{
      unary_case("2-d", values_in({3, 5}, 1, d.low, d.high), op, reference),
      unary_case("0-d", values_in({}, 2, d.low, d.high), op, reference),
      unary_case("one element", values_in({1}, 3, d.low, d.high), op, reference),
      unary_case("size 0", values_in({2, 0}, 4, d.low, d.high), op, reference),
      unary_case("4-d", values_in({2, 3, 2, 5}, 5, d.low, d.high), op, reference),
      unary_case("whole vectors and a rest", values_in({1037}, 6, d.low, d.high), op, reference),
      unary_case("more than one thread's share", values_in({3, 23003}, 7, d.low, d.high), op,
                 reference),
  };
  cases.back().numeric_gradient = false;  // 69,009 steps; the small cases check the rule
  if (d.special) {
    cases.push_back(
        unary_case("special values",
                   from_values(std::vector<double>{0, -0.0, 1, -1, 0.5, 2.5, -2.5, 1e-5, 80, -80,
                                                   kInfinity, -kInfinity, kNan},
                               {13}),
                   op, reference));
    cases.back().differentiable = false;
  }
  return cases;
}

Register unary(const char* name, UnaryOp op, UnaryRef reference, Domain domain = {}) {
  return Register({.op = name,
                   .family = "elementwise",
                   .cases = [=] { return unary_cases(op, reference, domain); },
                   .errors = {}});
}

double round_half_even(double x) { return std::nearbyint(x); }
double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
double cdf_of(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double gelu_tanh_of(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

// clang-format off
const Register unary_ops[] = {
    unary("neg", neg, [](double x) { return -x; }),
    unary("abs", abs, [](double x) { return std::fabs(x); }),
    unary("sign", sign, [](double x) { return double(x > 0) - double(x < 0); }),
    unary("exp", exp, [](double x) { return std::exp(x); }),
    unary("expm1", expm1, [](double x) { return std::expm1(x); }),
    unary("log", log, [](double x) { return std::log(x); }, {0.1, 4}),
    unary("log1p", log1p, [](double x) { return std::log1p(x); }, {-0.9, 4}),
    unary("log2", log2, [](double x) { return std::log2(x); }, {0.1, 4}),
    unary("sqrt", sqrt, [](double x) { return std::sqrt(x); }, {0.1, 4}),
    unary("rsqrt", rsqrt, [](double x) { return 1 / std::sqrt(x); }, {0.1, 4}),
    unary("square", square, [](double x) { return x * x; }),
    unary("reciprocal", reciprocal, [](double x) { return 1 / x; }, {0.2, 4}),
    unary("sin", sin, [](double x) { return std::sin(x); }),
    unary("cos", cos, [](double x) { return std::cos(x); }),
    unary("tan", tan, [](double x) { return std::tan(x); }, {-1.2, 1.2, false}),
    unary("erf", erf, [](double x) { return std::erf(x); }),
    unary("floor", floor, [](double x) { return std::floor(x); }),
    unary("ceil", ceil, [](double x) { return std::ceil(x); }),
    unary("round", round, round_half_even),
    unary("trunc", trunc, [](double x) { return std::trunc(x); }),
    unary("relu", relu, [](double x) { return x < 0 ? 0 : x; }),
    unary("sigmoid", sigmoid, sigmoid_of),
    unary("tanh", tanh, [](double x) { return std::tanh(x); }),
    unary("silu", silu, [](double x) { return x * sigmoid_of(x); }),
    unary("softplus", softplus, [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }, {-3, 3, false}),
};
// clang-format on

// --- unary with attributes
// -----------------------------------------------------------------------------

const Register leaky_relu_entry{{.op = "leaky_relu",
                                 .family = "elementwise",
                                 .cases =
                                     [] {
                                       auto cases = unary_cases(
                                           [](const Tensor& x) { return leaky_relu(x); },
                                           [](double x) { return x > 0 ? x : x * 0.01; }, {});
                                       cases.push_back(unary_case(
                                           "slope 0.25", values_in({4, 7}, 8, -2, 2),
                                           [](const Tensor& x) { return leaky_relu(x, 0.25); },
                                           [](double x) { return x > 0 ? x : x * 0.25; }));
                                       return cases;
                                     },
                                 .errors = {}}};

const Register gelu_entry{
    {.op = "gelu",
     .family = "elementwise",
     .cases =
         [] {
           auto cases = unary_cases([](const Tensor& x) { return gelu(x); },
                                    [](double x) { return x * cdf_of(x); }, {-4, 4, false});
           cases.push_back(unary_case(
               "tanh", values_in({4, 37}, 8, -4, 4),
               [](const Tensor& x) { return gelu(x, GeluApproximate::tanh); }, gelu_tanh_of));
           return cases;
         },
     .errors = {}}};

Case clamp_case(const char* name, const Tensor& x, std::optional<double> min,
                std::optional<double> max) {
  return unary_case(
      name, x, [=](const Tensor& t) { return clamp(t, min, max); },
      [=](double v) {
        if (min && v < *min) v = *min;
        if (max && v > *max) v = *max;
        return v;
      });
}

const Register clamp_entry{
    {.op = "clamp",
     .family = "elementwise",
     .cases =
         [] {
           const Tensor x = values_in({3, 41}, 1, -2, 2);
           std::vector<Case> cases{
               clamp_case("both", x, -0.5, 0.75),
               clamp_case("min only", x, -0.5, {}),
               clamp_case("max only", x, {}, 0.75),
               clamp_case("crossed: max wins", x, 1, -1),
               clamp_case("size 0", values({0}, 2), 0, 1),
               clamp_case("NaN and infinities",
                          from_values(std::vector<double>{kNan, kInfinity, -kInfinity, 0}, {4}),
                          -0.5, 1)};
           cases.back().differentiable = false;
           return cases;
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] { clamp(zeros({2}), {}, {}); }, "clamp: min or max must be given"}};
         }}};

// --- binary
// ------------------------------------------------------------------------------------------------

using BinaryOp = Tensor (*)(const Tensor&, const Tensor&);

struct Operands {
  double low_a = -2, high_a = 2;
  double low_b = -2, high_b = 2;
};

std::vector<Case> binary_cases(std::function<Tensor(const Tensor&, const Tensor&)> op,
                               std::function<double(double, double)> reference, Operands r) {
  const std::pair<const char*, std::pair<Shape, Shape>> shapes[] = {
      {"same shape", {{2, 3}, {2, 3}}},
      {"row", {{4, 3}, {3}}},
      {"column", {{2, 3}, {2, 1}}},
      {"0-d on the right", {{2, 3}, {}}},
      {"0-d on the left", {{}, {2, 3}}},
      {"both 0-d", {{}, {}}},
      {"both expand", {{3, 1}, {2, 1, 4}}},
      {"one element of two dimensions", {{5}, {1, 1}}},
      {"size 0", {{0, 3}, {1, 3}}},
      {"per channel", {{2, 3, 4, 2}, {3, 1, 1}}},
      {"whole vectors and a rest", {{1037}, {1037}}},
      {"long rows", {{3, 40001}, {40001}}},
  };
  std::vector<Case> cases;
  for (const auto& [name, shape] : shapes) {
    Case c;
    c.name = name;
    c.inputs = {values_in(shape.first, 1, r.low_a, r.high_a),
                values_in(shape.second, 2, r.low_b, r.high_b)};
    c.op = [op](Inputs in) { return op(in[0], in[1]); };
    c.reference = [reference](Inputs in) { return mapped(in[0], in[1], reference); };
    // A broadcast operand's gradient is a sum.
    const int64_t total = numel_of(broadcast_shapes(shape.first, shape.second, "cases"));
    const int64_t least = std::min(c.inputs[0].numel(), c.inputs[1].numel());
    c.terms = least > 0 ? total / least : 1;
    c.numeric_gradient = total < 2000;
    cases.push_back(std::move(c));
  }
  return cases;
}

template <class Scalars>
Case number_case(const char* name, Scalars op, std::function<double(double)> reference,
                 double low = -2, double high = 2) {
  return unary_case(name, values_in({3, 41}, 9, low, high), op, reference);
}

std::vector<ErrorCase> binary_errors(const char* name, BinaryOp op) {
  return {{[=] {
             op(zeros({2, 3}), zeros({4}));
           },
           std::string(name) + ": shapes must broadcast, got [2, 3] and [4]"},
          {[=] { op(Tensor{}, zeros({4})); },
           std::string(name) + ": input must be defined, got an undefined tensor"}};
}

Register binary(const char* name, BinaryOp op, double (*reference)(double, double), Operands r,
                std::vector<Case> (*more)() = nullptr) {
  return Register({.op = name,
                   .family = "elementwise",
                   .cases =
                       [=] {
                         std::vector<Case> cases = binary_cases(op, reference, r);
                         if (more)
                           for (Case& c : more()) cases.push_back(std::move(c));
                         return cases;
                       },
                   .errors = [=] { return binary_errors(name, op); }});
}

double floor_mod(double a, double b) {
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

std::vector<Case> add_numbers() {
  return {
      number_case(
          "number", [](const Tensor& x) { return x + 1.5; }, [](double x) { return x + 1.5; }),
      number_case(
          "whole number", [](const Tensor& x) { return 2 + x; }, [](double x) { return x + 2; })};
}
std::vector<Case> sub_numbers() {
  return {
      number_case(
          "number", [](const Tensor& x) { return x - 1.5; }, [](double x) { return x - 1.5; }),
      number_case(
          "from a number", [](const Tensor& x) { return 2 - x; }, [](double x) { return 2 - x; })};
}
std::vector<Case> mul_numbers() {
  return {number_case(
      "number", [](const Tensor& x) { return x * -1.5; }, [](double x) { return x * -1.5; })};
}
std::vector<Case> div_numbers() {
  return {number_case(
              "number", [](const Tensor& x) { return x / 1.5; }, [](double x) { return x / 1.5; }),
          number_case(
              "of a number", [](const Tensor& x) { return 2 / x; }, [](double x) { return 2 / x; },
              0.5, 2)};
}
std::vector<Case> pow_numbers() {
  std::vector<Case> cases;
  for (const double e : {2.0, 3.0, 0.5, -1.0, 0.0, 1.5, 1.0})
    cases.push_back(number_case(
        "number", [e](const Tensor& x) { return pow(x, e); },
        [e](double x) { return std::pow(x, e); }, 0.3, 2));
  cases.push_back(number_case(
      "cube of negatives", [](const Tensor& x) { return pow(x, 3); },
      [](double x) { return x * x * x; }));
  return cases;
}

const Register binary_ops[] = {
    binary(
        "add", add, [](double a, double b) { return a + b; }, {}, add_numbers),
    binary(
        "sub", sub, [](double a, double b) { return a - b; }, {}, sub_numbers),
    binary(
        "mul", mul, [](double a, double b) { return a * b; }, {}, mul_numbers),
    binary(
        "div", div, [](double a, double b) { return a / b; }, {-2, 2, 0.5, 2}, div_numbers),
    binary(
        "pow", pow, [](double a, double b) { return std::pow(a, b); }, {0.3, 2, -2, 2},
        pow_numbers),
    binary("maximum", maximum, [](double a, double b) { return std::max(a, b); }, {}),
    binary("minimum", minimum, [](double a, double b) { return std::min(a, b); }, {}),
};

// Results jump where a / b is whole, so inputs lie on a grid that every dtype holds.
std::vector<Case> division_cases(BinaryOp op, double (*reference)(double, double)) {
  std::vector<Case> cases;
  const auto grid = [](const Shape& shape, uint64_t seed, double offset) {
    return mapped(values(shape, seed), [=](double v) { return std::round(v * 7) + offset; });
  };
  const std::pair<Shape, Shape> shapes[] = {{{5, 9}, {5, 9}}, {{5, 9}, {9}}, {{0}, {1}}, {{}, {3}}};
  for (const auto& [a, b] : shapes) {
    Case c;
    c.name = "grid";
    c.inputs = {grid(a, 1, 0.125), grid(b, 2, 0.5)};
    c.op = [op](Inputs in) { return op(in[0], in[1]); };
    c.reference = [reference](Inputs in) { return mapped(in[0], in[1], reference); };
    c.terms = 16;
    cases.push_back(std::move(c));
  }
  return cases;
}

const Register remainder_entry{{.op = "remainder",
                                .family = "elementwise",
                                .cases = [] { return division_cases(remainder, floor_mod); },
                                .errors = [] { return binary_errors("remainder", remainder); }}};

const Register floor_divide_entry{
    {.op = "floor_divide",
     .family = "elementwise",
     .cases =
         [] {
           auto cases =
               division_cases(floor_divide, [](double a, double b) { return std::floor(a / b); });
           for (Case& c : cases) c.differentiable = false;
           return cases;
         },
     .errors =
         [] {
           auto errors = binary_errors("floor_divide", floor_divide);
           errors.push_back({[] { floor_divide(ones({2}, {DType::i64}), 0); },
                             "floor_divide: divisor must not be 0 for integers"});
           return errors;
         }}};

// --- comparison, logic, choice
// ---------------------------------------------------------------------------

std::vector<Case> compare_cases(BinaryOp op, bool (*reference)(double, double)) {
  const Tensor special_a =
      from_values(std::vector<double>{1, 2, kNan, kInfinity, -0.0, 1, kNan, -kInfinity}, {8});
  const Tensor special_b =
      from_values(std::vector<double>{1, 1, kNan, kInfinity, 0, kNan, 1, kInfinity}, {8});
  const auto coarse = [](const Shape& shape, uint64_t seed) {  // with equal pairs among them
    return mapped(values(shape, seed), [](double v) { return std::round(v * 3); });
  };
  const std::pair<Tensor, Tensor> inputs[] = {
      {special_a, special_b},
      {coarse({5, 67}, 1), coarse({5, 67}, 2)},
      {coarse({5, 67}, 1), coarse({67}, 2)},
      {coarse({5, 1}, 1), coarse({}, 2)},
      {coarse({0, 3}, 1), coarse({3}, 2)},
      {coarse({}, 1), coarse({40}, 2)},
  };
  std::vector<Case> cases;
  for (const auto& [a, b] : inputs) {
    Case c;
    c.name = "pairs";
    c.inputs = {a, b};
    c.op = [op](Inputs in) { return op(in[0], in[1]); };
    c.reference = [reference](Inputs in) { return mapped(in[0], in[1], reference); };
    c.differentiable = false;
    cases.push_back(std::move(c));
  }
  return cases;
}

Register comparison(const char* name, BinaryOp op, bool (*reference)(double, double)) {
  return Register({.op = name,
                   .family = "elementwise",
                   .cases = [=] { return compare_cases(op, reference); },
                   .errors = [=] { return binary_errors(name, op); }});
}

const Register comparisons[] = {
    comparison("eq", eq, [](double a, double b) { return a == b; }),
    comparison("ne", ne, [](double a, double b) { return a != b; }),
    comparison("lt", lt, [](double a, double b) { return a < b; }),
    comparison("le", le, [](double a, double b) { return a <= b; }),
    comparison("gt", gt, [](double a, double b) { return a > b; }),
    comparison("ge", ge, [](double a, double b) { return a >= b; }),
    comparison("logical_and", logical_and, [](double a, double b) { return a != 0 && b != 0; }),
    comparison("logical_or", logical_or, [](double a, double b) { return a != 0 || b != 0; }),
};

Register test(const char* name, UnaryOp op, double (*reference)(double)) {
  return Register({.op = name,
                   .family = "elementwise",
                   .cases =
                       [=] {
                         auto cases = unary_cases(op, reference, {});
                         for (Case& c : cases) c.differentiable = false;
                         return cases;
                       },
                   .errors = {}});
}

const Register tests[] = {
    test("logical_not", logical_not, [](double x) { return x == 0 ? 1.0 : 0.0; }),
    test("isnan", isnan, [](double x) { return std::isnan(x) ? 1.0 : 0.0; }),
    test("isfinite", isfinite, [](double x) { return std::isfinite(x) ? 1.0 : 0.0; }),
};

Tensor mask_of(const Shape& shape, uint64_t seed) { return gt(values(shape, seed), 0.0); }

const Register where_entry{
    {.op = "where",
     .family = "elementwise",
     .cases =
         [] {
           const Shape shapes[][3] = {{{3, 41}, {3, 41}, {3, 41}}, {{2, 1}, {3}, {2, 2, 1}},
                                      {{2, 3}, {}, {2, 3}},        {{}, {4}, {4}},
                                      {{0, 2}, {0, 2}, {2}},       {{70001}, {70001}, {1}}};
           std::vector<Case> cases;
           for (const auto& s : shapes) {
             Case c;
             c.name = "broadcast";
             c.inputs = {mask_of(s[0], 3), values(s[1], 1), values(s[2], 2)};
             c.op = [](Inputs in) { return where(in[0], in[1], in[2]); };
             c.reference = [](Inputs in) {
               const Shape shape = broadcast_shapes(
                   broadcast_shapes(in[1].shape(), in[2].shape(), "where"), in[0].shape(), "where");
               Tensor y = empty(shape, {DType::f64});
               for_each_index(shape, [&](const Shape& i) {
                 at(y, i) = at<bool>(in[0], i) ? at(in[1], i) : at(in[2], i);
               });
               return y;
             };
             c.terms = s[0] == Shape{70001} ? 70001 : 8;
             c.numeric_gradient = c.terms == 8;
             cases.push_back(std::move(c));
           }
           return cases;
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{{[] { where(zeros({2}), zeros({2}), zeros({2})); },
                                          "where: condition must be bool, got f32"},
                                         {[] { where(mask_of({2}, 1), zeros({3}), zeros({3})); },
                                          "where: shapes must broadcast, got [3] and [2]"}};
         }}};

const Register masked_fill_entry{
    {.op = "masked_fill",
     .family = "elementwise",
     .cases =
         [] {
           const Shape shapes[][2] = {
               {{3, 41}, {3, 41}}, {{3, 41}, {41}}, {{3, 1}, {4}}, {{}, {}}, {{0}, {1}}};
           std::vector<Case> cases;
           for (const auto& s : shapes) {
             Case c;
             c.name = "broadcast";
             c.inputs = {values(s[0], 1), mask_of(s[1], 2)};
             c.op = [](Inputs in) { return masked_fill(in[0], in[1], -2.5); };
             c.reference = [](Inputs in) {
               Tensor y = empty(broadcast_shapes(in[0].shape(), in[1].shape(), "masked_fill"),
                                {DType::f64});
               for_each_index(y.shape(), [&](const Shape& i) {
                 at(y, i) = at<bool>(in[1], i) ? -2.5 : at(in[0], i);
               });
               return y;
             };
             c.terms = 4;
             cases.push_back(std::move(c));
           }
           return cases;
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] { masked_fill(zeros({2}), zeros({2}), 0); },
                "masked_fill: mask must be bool, got f32"},
               {[] { masked_fill(zeros({2}, {DType::i64}), mask_of({2}, 1), 0.5); },
                "masked_fill: value must be whole for i64, got 0.5"}};
         }}};

}  // namespace
}  // namespace cairn::check_table
