// Reductions over lists of dimensions in the op table.
#include "cairn/autograd/ops/reduce.h"

#include <algorithm>
#include <cmath>

#include "check/reference.h"

namespace cairn::check_table {
namespace {

// The elements behind each result, in row-major order, folded by `fold`.
using Fold = double (*)(const std::vector<double>&);

bool is_reduced(const Shape& dims, int64_t d, int64_t rank) {
  return dims.empty() || std::any_of(dims.begin(), dims.end(), [&](int64_t dim) {
           return (dim < 0 ? dim + rank : dim) == d;
         });
}

Tensor folded(const Tensor& x, const Shape& dims, bool keepdim, Fold fold) {
  Shape kept = x.shape();
  Shape result;
  for (int64_t d = 0; d < x.dim(); ++d) {
    const bool gone = is_reduced(dims, d, x.dim());
    if (gone) kept[static_cast<size_t>(d)] = 1;
    if (!gone || keepdim) result.push_back(kept[static_cast<size_t>(d)]);
  }
  Tensor y = empty(kept, {DType::f64});
  std::vector<std::vector<double>> groups(static_cast<size_t>(y.numel()));
  for_each_index(x.shape(), [&](const Shape& i) {
    groups[static_cast<size_t>(offset_at(y, i))].push_back(at(x, i));
  });
  for (size_t g = 0; g < groups.size(); ++g) y.data<double>()[g] = fold(groups[g]);
  return from_values(std::span<const double>(y.data<double>(), groups.size()), result);
}

using Reduction = Tensor (*)(const Tensor& x, const Shape& dims, bool keepdim);

struct Plan {
  const char* name;
  Shape shape;
  Shape dims;
  bool keepdim = false;
  bool numeric = true;
};

const std::vector<Plan>& plans() {
  static const std::vector<Plan> list{
      {"all", {3, 4, 2}, {}},
      {"all, keepdim", {3, 4, 2}, {}, true},
      {"last", {3, 4, 5}, {-1}},
      {"first, keepdim", {3, 4, 2}, {0}, true},
      {"middle", {3, 4, 6}, {1}},
      {"two that are apart", {3, 4, 2}, {0, 2}},
      {"two neighbours, keepdim", {3, 4, 2}, {1, -1}, true},
      {"0-d", {}, {}},
      {"one element", {1, 1}, {0}},
      {"no rows", {0, 3}, {1}},
      {"channels of images", {4, 6, 5, 3}, {0, 2, 3}},
      {"long rows", {3, 9001}, {1}, false, false},
      {"long columns", {9001, 7}, {0}, false, false},
      {"many columns", {300, 517}, {0}, false, false},
      {"one long sum", {70001}, {}, false, false},
      {"many short rows", {30011, 3}, {1}, false, false},
      {"two outputs from far apart", {2, 300, 2, 300}, {1, 3}, false, false},
  };
  return list;
}

Case reduction_case(const Plan& p, const Tensor& x, Reduction op, Fold fold) {
  Case c;
  c.name = p.name;
  c.inputs = {x};
  c.op = [op, p](Inputs in) { return op(in[0], p.dims, p.keepdim); };
  c.reference = [fold, p](Inputs in) { return folded(in[0], p.dims, p.keepdim, fold); };
  c.terms = std::max<int64_t>(1, x.numel());
  c.numeric_gradient = p.numeric;
  return c;
}

std::vector<Case> reduction_cases(Reduction op, Fold fold, bool distinct, double low, double high) {
  std::vector<Case> cases;
  for (const Plan& p : plans()) {
    const Tensor x = distinct ? distinct_values(p.shape, 1) : values_in(p.shape, 1, low, high);
    cases.push_back(reduction_case(p, x, op, fold));
    // bf16 cannot tell that many values apart, so ties share a gradient that f64 gives to one.
    if (distinct && x.numel() > 60) cases.back().differentiable = false;
  }
  return cases;
}

double sum_of(const std::vector<double>& v) {
  double s = 0;
  for (double x : v) s += x;
  return s;
}
double mean_of(const std::vector<double>& v) { return sum_of(v) / static_cast<double>(v.size()); }
double variance_of(const std::vector<double>& v, int correction) {
  const double m = mean_of(v);
  double s = 0;
  for (double x : v) s += (x - m) * (x - m);
  return s / std::max(0.0, static_cast<double>(v.size()) - correction);
}
double max_of(const std::vector<double>& v) { return *std::max_element(v.begin(), v.end()); }
double min_of(const std::vector<double>& v) { return *std::min_element(v.begin(), v.end()); }

std::vector<ErrorCase> dim_errors(const char* name, Reduction op) {
  return {{[=] {
             op(zeros({2, 3}), {2}, false);
           },
           std::string(name) + ": dim must be in [-2, 1], got 2"},
          {[=] {
             op(zeros({2, 3}), {0, -2}, false);
           },
           std::string(name) + ": dims must name each dimension once, got [0, -2]"}};
}

std::vector<ErrorCase> floating_errors(const char* name, Reduction op) {
  auto errors = dim_errors(name, op);
  errors.push_back({[=] { op(zeros({2}, {DType::i64}), {}, false); },
                    std::string(name) + ": dtype must be floating, got i64"});
  return errors;
}

std::vector<ErrorCase> empty_errors(const char* name, Reduction op) {
  auto errors = dim_errors(name, op);
  errors.push_back({[=] {
                      op(zeros({2, 0}), {1}, false);
                    },
                    std::string(name) + ": reduced part must not be empty, got shape [2, 0]"});
  return errors;
}

Tensor run_sum(const Tensor& x, const Shape& dims, bool keep) { return sum(x, dims, keep); }
Tensor run_mean(const Tensor& x, const Shape& dims, bool keep) { return mean(x, dims, keep); }
Tensor run_var(const Tensor& x, const Shape& dims, bool keep) { return var(x, dims, 1, keep); }
Tensor run_var0(const Tensor& x, const Shape& dims, bool keep) { return var(x, dims, 0, keep); }
Tensor run_std(const Tensor& x, const Shape& dims, bool keep) { return std(x, dims, 1, keep); }
Tensor run_amax(const Tensor& x, const Shape& dims, bool keep) { return amax(x, dims, keep); }
Tensor run_amin(const Tensor& x, const Shape& dims, bool keep) { return amin(x, dims, keep); }

const Register sum_entry{{.op = "sum",
                          .family = "reduce",
                          .cases =
                              [] {
                                auto cases = reduction_cases(run_sum, sum_of, false, -1, 1);
                                cases.push_back(reduction_case({"empty sum", {}, {1}},
                                                               zeros({2, 0}, {DType::f64}), run_sum,
                                                               sum_of));
                                return cases;
                              },
                          .errors = [] { return dim_errors("sum", run_sum); }}};

const Register mean_entry{{.op = "mean",
                           .family = "reduce",
                           .cases = [] { return reduction_cases(run_mean, mean_of, false, -1, 1); },
                           .errors = [] { return floating_errors("mean", run_mean); }}};

// Deviations of single elements: one element has none, and its variance (by n - 1) is NaN.
std::vector<Case> spread_cases(Reduction op, Fold fold) {
  auto cases = reduction_cases(op, fold, false, 1, 3);
  for (Case& c : cases) {
    c.amplification = 8;  // squares of deviations from a rounded mean
    if (c.inputs[0].numel() <= 1) c.differentiable = false;
  }
  return cases;
}

const Register var_entry{
    {.op = "var",
     .family = "reduce",
     .cases =
         [] {
           auto cases = spread_cases(
               run_var, [](const std::vector<double>& v) { return variance_of(v, 1); });
           for (Case& c : spread_cases(
                    run_var0, [](const std::vector<double>& v) { return variance_of(v, 0); }))
             cases.push_back(std::move(c));
           return cases;
         },
     .errors = [] { return floating_errors("var", run_var); }}};

const Register std_entry{{.op = "std",
                          .family = "reduce",
                          .cases =
                              [] {
                                return spread_cases(run_std, [](const std::vector<double>& v) {
                                  return std::sqrt(variance_of(v, 1));
                                });
                              },
                          .errors = [] { return floating_errors("std", run_std); }}};

std::vector<Case> extreme_cases(Reduction op, Fold fold) {
  auto cases = reduction_cases(op, fold, true, 0, 0);
  Case ties = reduction_case({"ties share the gradient", {}, {1}},
                             from_values(std::vector<double>{2, 1, 2, 1, 1, 1}, {2, 3}), op, fold);
  ties.numeric_gradient = false;
  cases.push_back(ties);
  return cases;
}

const Register amax_entry{{.op = "amax",
                           .family = "reduce",
                           .cases = [] { return extreme_cases(run_amax, max_of); },
                           .errors = [] { return empty_errors("amax", run_amax); }}};
const Register amin_entry{{.op = "amin",
                           .family = "reduce",
                           .cases = [] { return extreme_cases(run_amin, min_of); },
                           .errors = [] { return empty_errors("amin", run_amin); }}};

// --- all elements
// ------------------------------------------------------------------------------------------

std::vector<Case> all_cases(Tensor (*op)(const Tensor&), Fold fold, bool coarse) {
  std::vector<Case> cases;
  for (const Shape& shape :
       {Shape{3, 4}, Shape{}, Shape{1}, Shape{0}, Shape{70001}, Shape{2, 3, 50}}) {
    Case c;
    c.name = "shape";
    c.inputs = {values(shape, 3)};
    if (coarse) c.inputs = {mapped(c.inputs[0], [](double v) { return v > 0.9 ? 1.0 : 0.0; })};
    c.op = [op](Inputs in) { return op(in[0]); };
    c.reference = [fold](Inputs in) { return folded(in[0], {}, false, fold); };
    c.terms = std::max<int64_t>(1, c.inputs[0].numel());
    c.differentiable = !coarse;
    c.numeric_gradient = c.terms < 1000 && c.inputs[0].numel() > 0;
    cases.push_back(std::move(c));
  }
  return cases;
}

const Register norm_entry{{.op = "norm",
                           .family = "reduce",
                           .cases =
                               [] {
                                 return all_cases(
                                     norm,
                                     [](const std::vector<double>& v) {
                                       double s = 0;
                                       for (double x : v) s += x * x;
                                       return std::sqrt(s);
                                     },
                                     false);
                               },
                           .errors = {}}};
const Register any_entry{
    {.op = "any",
     .family = "reduce",
     .cases =
         [] {
           return all_cases(
               any,
               [](const std::vector<double>& v) {
                 return std::any_of(v.begin(), v.end(), [](double x) { return x != 0; }) ? 1.0
                                                                                         : 0.0;
               },
               true);
         },
     .errors = {}}};
const Register all_entry{
    {.op = "all",
     .family = "reduce",
     .cases =
         [] {
           return all_cases(
               all,
               [](const std::vector<double>& v) {
                 return std::all_of(v.begin(), v.end(), [](double x) { return x != 0; }) ? 1.0
                                                                                         : 0.0;
               },
               true);
         },
     .errors = {}}};

}  // namespace
}  // namespace cairn::check_table
