// Picking, sorting and triangles in the op table.
#include "cairn/autograd/ops/indexing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "check/reference.h"

namespace cairn::check_table {
namespace {

Tensor indices(std::vector<int64_t> values, const Shape& shape) {
  return from_values(values, shape);
}

// Indices in [0, size), some of them more than once.
Tensor some_indices(const Shape& shape, int64_t size, uint64_t seed) {
  const Tensor v = values(shape, seed);
  Tensor out = empty(shape, {DType::i64});
  for (int64_t i = 0; i < v.numel(); ++i)
    out.data<int64_t>()[i] =
        static_cast<int64_t>((v.data<double>()[i] + 1) / 2 * static_cast<double>(size));
  return out;
}

Case pick_case(const char* name, const Shape& shape, int64_t dim, const Tensor& index) {
  Case c;
  c.name = name;
  c.inputs = {values(shape, 1), index};
  c.op = [dim](Inputs in) { return index_select(in[0], dim, in[1]); };
  c.reference = [dim](Inputs in) {
    const auto d = static_cast<size_t>(dim < 0 ? dim + in[0].dim() : dim);
    Shape result = in[0].shape();
    result[d] = in[1].numel();
    Tensor y = empty(result, {DType::f64});
    for_each_index(result, [&](const Shape& i) {
      Shape from = i;
      from[d] =
          in[1].dtype() == DType::i64 ? in[1].data<int64_t>()[i[d]] : in[1].data<int32_t>()[i[d]];
      at(y, i) = at(in[0], from);
    });
    return y;
  };
  c.terms = std::max<int64_t>(1, index.numel());
  c.numeric_gradient = c.inputs[0].numel() < 2000;
  return c;
}

const Register index_select_entry{
    {.op = "index_select",
     .family = "indexing",
     .cases =
         [] {
           return std::vector<Case>{
               pick_case("first, repeats", {4, 3}, 0, indices({3, 0, 3}, {3})),
               pick_case("middle", {2, 4, 3}, 1, indices({1, 1, 2, 0, 3}, {5})),
               pick_case("last", {2, 5}, -1, indices({4}, {1})),
               pick_case("i32", {5}, 0, from_values(std::vector<int32_t>{4, 1, 4}, {3})),
               pick_case("nothing", {2, 3}, 0, indices({}, {0})),
               pick_case("wide rows", {7, 600}, 0, some_indices({90}, 7, 3)),
               pick_case("many", {50, 20}, 0, some_indices({5000}, 50, 4))};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] {
                  index_select(zeros({5, 2}), 0, indices({0, 1, 7}, {3}));
                },
                "index_select: index must be in [0, 5), got 7 at position 2"},
               {[] {
                  index_select(zeros({5, 2}), 0, indices({0, -1}, {2}));
                },
                "index_select: index must be in [0, 5), got -1 at position 1"},
               {[] { index_select(zeros({5}), 0, zeros({2})); },
                "index_select: index must be i64 or i32, got f32"},
               {[] {
                  index_select(zeros({5}), 0, indices({0, 1}, {1, 2}));
                },
                "index_select: index must be 1-d, got shape [1, 2]"}};
         }}};

Case gather_case(const char* name, const Shape& shape, int64_t dim, const Tensor& index) {
  Case c;
  c.name = name;
  c.inputs = {values(shape, 1), index};
  c.op = [dim](Inputs in) { return gather(in[0], dim, in[1]); };
  c.reference = [dim](Inputs in) {
    Tensor y = empty(in[1].shape(), {DType::f64});
    for_each_index(y.shape(), [&](const Shape& i) {
      Shape from = i;
      if (in[0].dim() > 0)
        from[static_cast<size_t>(dim < 0 ? dim + in[0].dim() : dim)] = at<int64_t>(in[1], i);
      at(y, i) = at(in[0], from);
    });
    return y;
  };
  c.terms = std::max<int64_t>(1, index.numel());
  c.numeric_gradient = c.inputs[0].numel() < 2000;
  return c;
}

const Register gather_entry{
    {.op = "gather",
     .family = "indexing",
     .cases =
         [] {
           return std::vector<Case>{
               gather_case("last, repeats", {2, 4}, 1, indices({0, 2, 2, 1, 1, 0}, {2, 3})),
               gather_case("first, smaller", {3, 4}, 0, indices({0, 2, 2, 1, 1, 0}, {2, 3})),
               gather_case("0-d", {}, 0, indices({0}, {})),
               gather_case("nothing", {2, 3}, 1, indices({}, {2, 0})),
               gather_case("3-d", {3, 50, 7}, -2, some_indices({3, 400, 7}, 50, 5))};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] {
                  gather(zeros({2, 3}), 1, indices({0, 3}, {2, 1}));
                },
                "gather: index must be in [0, 3), got 3 at position [1, 0]"},
               {[] {
                  gather(zeros({2, 3}), 1, indices({0, 1}, {2}));
                },
                "gather: index must have 2 dimensions as the input has, got 1"},
               {[] {
                  gather(zeros({2, 3}), 1, indices({0, 1, 2}, {3, 1}));
                },
                "gather: index must not be larger than the input in dimension 0, got 3 and 2"},
               {[] {
                  gather(zeros({2, 3}), 1, zeros({2, 1}));
                },
                "gather: index must be i64, got f32"}};
         }}};

Case scatter_case(const char* name, const Shape& shape, int64_t dim, const Tensor& index,
                  const Shape& src) {
  Case c;
  c.name = name;
  c.inputs = {values(shape, 1), index, values(src, 2)};
  c.grads = {true, false, true};
  c.op = [dim](Inputs in) { return scatter_add(in[0], dim, in[1], in[2]); };
  c.reference = [dim](Inputs in) {
    Tensor y = mapped(in[0], [](double v) { return v; });
    for_each_index(in[1].shape(), [&](const Shape& i) {
      Shape to = i;
      to[static_cast<size_t>(dim)] = at<int64_t>(in[1], i);
      at(y, to) += at(in[2], i);
    });
    return y;
  };
  // Sums of bf16 are rounded after every addition here, because the result is where they are kept.
  c.terms = std::max<int64_t>(1, index.numel());
  c.amplification = 4;
  return c;
}

const Register scatter_add_entry{
    {.op = "scatter_add",
     .family = "indexing",
     .cases =
         [] {
           return std::vector<Case>{
               scatter_case("repeats", {2, 4}, 1, indices({0, 2, 2, 1, 1, 0}, {2, 3}), {2, 3}),
               scatter_case("larger source", {3, 4}, 0, indices({0, 2, 2}, {1, 3}), {4, 5}),
               scatter_case("nothing", {2, 3}, 1, indices({}, {2, 0}), {2, 0})};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] {
                  scatter_add(zeros({2, 3}), 1, indices({5}, {1, 1}), zeros({1, 1}));
                },
                "scatter_add: index must be in [0, 3), got 5 at position [0, 0]"},
               {[] {
                  scatter_add(zeros({2, 3}), 1, indices({0}, {1, 1}), zeros({1, 1}, {DType::f64}));
                },
                "scatter_add: src must be f32 as the input, got f64"},
               {[] {
                  scatter_add(zeros({2, 3}), 1, indices({0, 0}, {1, 2}), zeros({1, 1}));
                },
                "scatter_add: index must not be larger than src in dimension 1, got 2 and 1"}};
         }}};

// --- sorting
// -----------------------------------------------------------------------------------------------

// Positions of a line in order: NaN is the largest, ties by position.
std::vector<size_t> order_of(const std::vector<double>& v, bool descending) {
  std::vector<size_t> order(v.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto key = [&](size_t i) {
    return std::isnan(v[i]) ? std::pair(1, 0.0) : std::pair(0, v[i]);
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return descending ? key(a) > key(b) : key(a) < key(b);
  });
  return order;
}

struct SortPlan {
  const char* name;
  Tensor x;
  int64_t k;  // -1: a whole sort
  int64_t dim;
  bool descending;
  bool differentiable = true;
};

enum class Wanted { values, indices };

Case sort_case(const SortPlan& p, Wanted wanted) {
  Case c;
  c.name = p.name;
  c.inputs = {p.x};
  c.op = [p, wanted](Inputs in) {
    const auto [v, i] =
        p.k < 0 ? sort(in[0], p.dim, p.descending) : topk(in[0], p.k, p.dim, p.descending);
    return wanted == Wanted::values ? v : i;
  };
  c.reference = [p, wanted](Inputs in) {
    const Tensor& x = in[0];
    if (x.dim() == 0)
      return wanted == Wanted::values ? mapped(x, [](double v) { return v; })
                                      : zeros({}, {DType::f64});
    const auto d = static_cast<size_t>(p.dim < 0 ? p.dim + x.dim() : p.dim);
    Shape result = x.shape();
    if (p.k >= 0) result[d] = p.k;
    Shape lines = x.shape();
    lines[d] = 1;
    Tensor y = empty(result, {DType::f64});
    for_each_index(lines, [&](const Shape& line) {
      Shape i = line;
      std::vector<double> v;
      for (i[d] = 0; i[d] < x.shape()[d]; ++i[d]) v.push_back(at(x, i));
      const auto order = order_of(v, p.descending);
      for (i[d] = 0; i[d] < result[d]; ++i[d]) {
        const size_t from = order[static_cast<size_t>(i[d])];
        at(y, i) = wanted == Wanted::values ? v[from] : static_cast<double>(from);
      }
    });
    return y;
  };
  c.differentiable = p.differentiable && wanted == Wanted::values;
  return c;
}

std::vector<Case> sort_cases(const std::vector<SortPlan>& plans) {
  std::vector<Case> cases;
  for (const SortPlan& p : plans) {
    cases.push_back(sort_case(p, Wanted::values));
    cases.push_back(sort_case(p, Wanted::indices));
  }
  return cases;
}

Tensor with_ties() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  return from_values(std::vector<double>{2, 1, 2, 1, 3, 1, nan, -inf, inf, nan, 0, -0.0}, {2, 6});
}

const Register sort_entry{
    {.op = "sort",
     .family = "indexing",
     .cases =
         [] {
           return sort_cases({{"ascending", distinct_values({3, 7}, 1), -1, -1, false},
                              {"descending, first", distinct_values({5, 4}, 2), -1, 0, true},
                              {"middle", distinct_values({2, 5, 3}, 3), -1, 1, false},
                              {"0-d", values({}, 1), -1, 0, true},
                              {"size 0", values({2, 0}, 1), -1, 1, true},
                              {"ties and NaN", with_ties(), -1, 1, false, false},
                              {"ties and NaN, descending", with_ties(), -1, 1, true, false},
                              {"long", values({2, 3001}, 5), -1, 1, true, false}});
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] { sort(zeros({2}), 1); }, "sort: dim must be in [-1, 0], got 1"}};
         }}};

const Register topk_entry{
    {.op = "topk",
     .family = "indexing",
     .cases =
         [] {
           return sort_cases({{"largest", distinct_values({3, 7}, 1), 2, -1, true},
                              {"smallest", distinct_values({3, 7}, 1), 3, 1, false},
                              {"first dimension", distinct_values({5, 4}, 2), 1, 0, true},
                              {"all", distinct_values({3, 5}, 3), 5, 1, true},
                              {"none", distinct_values({3, 5}, 3), 0, 1, true},
                              {"0-d", values({}, 1), 1, 0, true},
                              {"ties and NaN", with_ties(), 4, 1, true, false},
                              {"long", values({2, 3001}, 5), 17, 1, false, false}});
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{{[] {
                                            topk(zeros({2, 3}), 4);
                                          },
                                          "topk: k must be in [0, 3], got 4"}};
         }}};

// --- triangles
// ---------------------------------------------------------------------------------------------

Case triangle_case(const Shape& shape, int64_t diagonal, bool upper) {
  Case c;
  c.name = "diagonal";
  c.inputs = {values(shape, 1)};
  c.op = [=](Inputs in) { return upper ? triu(in[0], diagonal) : tril(in[0], diagonal); };
  c.reference = [=](Inputs in) {
    Tensor y = mapped(in[0], [](double v) { return v; });
    for_each_index(y.shape(), [&](const Shape& i) {
      const int64_t offset = i.back() - i[i.size() - 2];
      if (upper ? offset < diagonal : offset > diagonal) at(y, i) = 0;
    });
    return y;
  };
  return c;
}

std::vector<Case> triangle_cases(bool upper) {
  std::vector<Case> cases;
  for (const int64_t diagonal : {0, 1, -2, 10, -10})
    for (const Shape& shape : {Shape{4, 5}, Shape{2, 5, 3}})
      cases.push_back(triangle_case(shape, diagonal, upper));
  cases.push_back(triangle_case({0, 3}, 0, upper));
  return cases;
}

const Register tril_entry{
    {.op = "tril",
     .family = "indexing",
     .cases = [] { return triangle_cases(false); },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] { tril(zeros({3})); }, "tril: input must have at least 2 dimensions, got [3]"}};
         }}};
const Register triu_entry{{.op = "triu",
                           .family = "indexing",
                           .cases = [] { return triangle_cases(true); },
                           .errors = {}}};

}  // namespace
}  // namespace cairn::check_table
