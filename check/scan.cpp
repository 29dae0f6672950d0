// Ops along one dimension in the op table: softmax, scans, products and extremes with their index.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cairn/autograd/ops/reduce.h"
#include "cairn/tensor/raw.h"
#include "check/reference.h"

namespace cairn::check_table {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using AlongRef = std::function<std::vector<double>(const std::vector<double>&)>;

// Replaces every line along dim by ref(line), which may be shorter (1: kept dimension).
Tensor along(const Tensor& x, int64_t dim, const AlongRef& ref, int64_t length) {
  if (dim < 0) dim += std::max<int64_t>(x.dim(), 1);
  Shape lines = x.shape();
  Shape out = x.shape();
  if (x.dim() > 0) {
    lines[static_cast<size_t>(dim)] = 1;
    if (length >= 0) out[static_cast<size_t>(dim)] = length;
  }
  Tensor y = empty(out, {DType::f64});
  const int64_t n = x.dim() == 0 ? 1 : x.size(dim);
  for_each_index(lines, [&](const Shape& line) {
    Shape i = line;
    std::vector<double> values;
    for (int64_t k = 0; k < n; ++k) {
      if (x.dim() > 0) i[static_cast<size_t>(dim)] = k;
      values.push_back(at(x, i));
    }
    const std::vector<double> result = ref(values);
    for (size_t k = 0; k < result.size(); ++k) {
      if (x.dim() > 0) i[static_cast<size_t>(dim)] = static_cast<int64_t>(k);
      at(y, i) = result[k];
    }
  });
  return y;
}

// f over all elements as one line.
template <class F>
Tensor whole(const Tensor& x, F&& f) {
  const std::vector<double> all(x.data<double>(), x.data<double>() + x.numel());
  return scalar_tensor(f(all), {DType::f64});
}

struct AlongPlan {
  const char* name;
  Shape shape;
  int64_t dim;
  bool numeric = true;
};

const std::vector<AlongPlan>& along_plans() {
  static const std::vector<AlongPlan> list{
      {"last", {3, 5}, -1},
      {"last, longer than a vector", {2, 45}, 1},
      {"first", {4, 3}, 0},
      {"middle", {2, 4, 3}, 1},
      {"0-d", {}, 0},
      {"one element", {3, 1}, 1},
      {"no lines", {0, 3}, 1},
      {"4-d, channels", {2, 5, 3, 2}, 1},
      {"long line", {2, 5003}, 1, false},
      {"many side by side", {3, 11, 301}, 1, false},
  };
  return list;
}

std::vector<Case> along_cases(std::function<Tensor(const Tensor&, int64_t)> op, AlongRef ref,
                              int64_t length, double low, double high) {
  std::vector<Case> cases;
  for (const AlongPlan& p : along_plans()) {
    Case c;
    c.name = p.name;
    c.inputs = {values_in(p.shape, 1, low, high)};
    c.op = [op, p](Inputs in) { return op(in[0], p.dim); };
    c.reference = [ref, p, length](Inputs in) { return along(in[0], p.dim, ref, length); };
    c.terms = p.shape.empty() ? 1 : p.shape[static_cast<size_t>(p.dim < 0 ? p.dim + 2 : p.dim)];
    c.numeric_gradient = p.numeric;
    cases.push_back(std::move(c));
  }
  return cases;
}

std::vector<double> softmax_of(const std::vector<double>& v) {
  const double top = v.empty() ? 0 : *std::max_element(v.begin(), v.end());
  double sum = 0;
  for (double x : v) sum += std::exp(x - top);
  std::vector<double> y;
  for (double x : v) y.push_back(std::exp(x - top) / sum);
  return y;
}
std::vector<double> log_softmax_of(const std::vector<double>& v) {
  const double top = v.empty() ? 0 : *std::max_element(v.begin(), v.end());
  double sum = 0;
  for (double x : v) sum += std::exp(x - top);
  std::vector<double> y;
  for (double x : v) y.push_back(x - top - std::log(sum));
  return y;
}
std::vector<double> logsumexp_of(const std::vector<double>& v) {
  double top = *std::max_element(v.begin(), v.end());
  if (std::isinf(top)) top = 0;
  double sum = 0;
  for (double x : v) sum += std::exp(x - top);
  return {top + std::log(sum)};
}

using AlongOp = Tensor (*)(const Tensor&, int64_t);

std::vector<Case> softmax_cases(AlongOp op,
                                std::vector<double> (*ref)(const std::vector<double>&)) {
  auto cases = along_cases(op, ref, -1, -4, 4);
  const auto add = [&](const char* name, std::vector<double> v, Shape shape) {
    Case c;
    c.name = name;
    c.inputs = {from_values(v, shape)};
    c.op = [op](Inputs in) { return op(in[0], -1); };
    c.reference = [ref](Inputs in) { return along(in[0], -1, ref, -1); };
    c.differentiable = false;
    cases.push_back(std::move(c));
  };
  add("large values", {1000, 1001, -1000, -1000, -1001, 999}, {2, 3});
  add("an entry of -infinity", {1, -kInfinity, 2}, {1, 3});
  add("only -infinity", {-kInfinity, -kInfinity}, {1, 2});
  add("NaN", {1, kNan, 2, 3, 4, 5}, {2, 3});
  return cases;
}

std::vector<ErrorCase> along_errors(const char* name, AlongOp op) {
  return {{[=] {
             op(zeros({2, 3}), 2);
           },
           std::string(name) + ": dim must be in [-2, 1], got 2"},
          {[=] { op(zeros({2}, {DType::i64}), 0); },
           std::string(name) + ": dtype must be floating, got i64"}};
}

Tensor run_logsumexp(const Tensor& x, int64_t dim) { return logsumexp(x, dim, true); }

const Register softmax_entry{{.op = "softmax",
                              .family = "reduce",
                              .cases = [] { return softmax_cases(softmax, softmax_of); },
                              .errors = [] { return along_errors("softmax", softmax); }}};
const Register log_softmax_entry{
    {.op = "log_softmax",
     .family = "reduce",
     .cases = [] { return softmax_cases(log_softmax, log_softmax_of); },
     .errors = [] { return along_errors("log_softmax", log_softmax); }}};
const Register logsumexp_entry{
    {.op = "logsumexp",
     .family = "reduce",
     .cases =
         [] {
           auto cases = along_cases(run_logsumexp, logsumexp_of, 1, -4, 4);
           Case c;
           c.name = "infinities";
           c.inputs = {from_values(
               std::vector<double>{-kInfinity, -kInfinity, kInfinity, 1, kNan, 1}, {3, 2})};
           c.op = [](Inputs in) { return logsumexp(in[0], 1); };
           c.reference = [](Inputs in) {
             return raw::squeeze(along(in[0], 1, logsumexp_of, 1), 1);
           };
           c.differentiable = false;
           cases.push_back(std::move(c));
           return cases;
         },
     .errors = [] { return along_errors("logsumexp", run_logsumexp); }}};

const Register cumsum_entry{{.op = "cumsum",
                             .family = "reduce",
                             .cases =
                                 [] {
                                   return along_cases(
                                       cumsum,
                                       [](std::vector<double> v) {
                                         for (size_t i = 1; i < v.size(); ++i) v[i] += v[i - 1];
                                         return v;
                                       },
                                       -1, -1, 1);
                                 },
                             .errors = {}}};

double product_of(const std::vector<double>& v) {
  double p = 1;
  for (double x : v) p *= x;
  return p;
}

const Register prod_entry{
    {.op = "prod",
     .family = "reduce",
     .cases =
         [] {
           const auto ref = [](const std::vector<double>& v) {
             return std::vector<double>{product_of(v)};
           };
           auto cases = along_cases([](const Tensor& x, int64_t d) { return prod(x, d, true); },
                                    ref, 1, 0.98, 1.02);
           for (Case& c : cases) c.amplification = 8;  // every factor's rounding counts in full
           Case zero = cases[0];
           zero.name = "zeros";
           zero.inputs = {from_values(std::vector<double>{2, 0, 3, 0, 4, 0, 1, 2, 3}, {3, 3})};
           cases.push_back(zero);
           Case all = cases[0];
           all.name = "all elements";
           all.op = [](Inputs in) { return prod(in[0]); };
           all.reference = [](Inputs in) { return whole(in[0], product_of); };
           cases.push_back(all);
           return cases;
         },
     .errors = {}}};

// --- extremes with their index
// -----------------------------------------------------------------------------

// First extreme of a line; NaN wins.
template <bool kLargest>
size_t extreme_index(const std::vector<double>& v) {
  size_t best = 0;
  for (size_t i = 1; i < v.size(); ++i) {
    if (std::isnan(v[best])) break;
    if (std::isnan(v[i]) || (kLargest ? v[i] > v[best] : v[i] < v[best])) best = i;
  }
  return best;
}

template <bool kLargest>
std::vector<Case> arg_cases() {
  const auto ref = [](const std::vector<double>& v) {
    return std::vector<double>{static_cast<double>(extreme_index<kLargest>(v))};
  };
  auto cases = along_cases(
      [](const Tensor& x, int64_t d) { return kLargest ? argmax(x, d, true) : argmin(x, d, true); },
      ref, 1, -4, 4);
  Case ties = cases[0];
  ties.name = "ties and NaN";
  ties.inputs = {from_values(std::vector<double>{1, 3, 3, 5, 5, 5, 1, kNan, kNan}, {3, 3})};
  cases.push_back(ties);
  Case all = cases[3];
  all.name = "all elements";
  all.op = [](Inputs in) { return kLargest ? argmax(in[0]) : argmin(in[0]); };
  all.reference = [](Inputs in) {
    return whole(in[0], [](const std::vector<double>& v) {
      return static_cast<double>(extreme_index<kLargest>(v));
    });
  };
  cases.push_back(all);
  for (Case& c : cases) c.differentiable = false;
  return cases;
}

template <bool kLargest>
std::vector<Case> extreme_pair_cases() {
  const auto ref = [](const std::vector<double>& v) {
    return std::vector<double>{v[extreme_index<kLargest>(v)]};
  };
  auto cases = along_cases(
      [](const Tensor& x, int64_t d) {
        return kLargest ? max(x, d, true).first : min(x, d, true).first;
      },
      ref, 1, 0, 0);
  for (Case& c : cases) {
    c.inputs = {distinct_values(c.inputs[0].shape(), 1)};
    if (c.inputs[0].numel() > 60) c.differentiable = false;  // ties in bf16
  }
  return cases;
}

const Register argmax_entry{
    {.op = "argmax", .family = "reduce", .cases = arg_cases<true>, .errors = [] {
       return std::vector<ErrorCase>{
           {[] { argmax(zeros({0})); }, "argmax: input must not be empty, got shape [0]"},
           {[] {
              argmax(zeros({2, 0}), 1);
            },
            "argmax: dimension must not be empty, got shape [2, 0]"}};
     }}};
const Register argmin_entry{
    {.op = "argmin", .family = "reduce", .cases = arg_cases<false>, .errors = {}}};
const Register max_entry{
    {.op = "max", .family = "reduce", .cases = extreme_pair_cases<true>, .errors = {}}};
const Register min_entry{
    {.op = "min", .family = "reduce", .cases = extreme_pair_cases<false>, .errors = {}}};

}  // namespace
}  // namespace cairn::check_table
