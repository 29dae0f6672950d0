// Views and joins in the op table.
#include "cairn/autograd/ops/indexing.h"

#include "check/reference.h"

namespace cairn::check_table {
namespace {

// Output element `index` of the result comes from this index of the input.
using Source = std::function<Shape(const Shape&)>;

Case view_case(const char* name, const Shape& shape, std::function<Tensor(const Tensor&)> op,
               const Shape& result, Source source, int64_t terms = 1) {
  Case c;
  c.name = name;
  c.inputs = {values(shape, 1)};
  c.op = [op](Inputs in) { return op(in[0]); };
  c.reference = [result, source](Inputs in) {
    Tensor y = empty(result, {DType::f64});
    for_each_index(result, [&](const Shape& i) { at(y, i) = at(in[0], source(i)); });
    return y;
  };
  c.terms = terms;
  return c;
}

// The index of `shape` at the same row-major position.
Source same_position(const Shape& from, const Shape& shape) {
  return [from, shape](const Shape& index) {
    int64_t flat = 0;
    for (size_t d = 0; d < from.size(); ++d) flat = flat * from[d] + index[d];
    Shape out(shape.size(), 0);
    for (size_t d = shape.size(); d-- > 0;) {
      out[d] = flat % shape[d];
      flat /= shape[d];
    }
    return out;
  };
}

Case reshape_case(const char* name, const Shape& shape, const Shape& result,
                  std::function<Tensor(const Tensor&)> op) {
  return view_case(name, shape, op, result, same_position(result, shape));
}

Source reversed_dims() {
  return [](const Shape& i) {
    Shape out = i;
    for (size_t d = 0; d < i.size(); ++d) out[d] = i[i.size() - 1 - d];
    return out;
  };
}

const Register reshape_entry{
    {.op = "reshape",
     .family = "views",
     .cases =
         [] {
           const auto to = [](Shape s) { return [s](const Tensor& x) { return reshape(x, s); }; };
           return std::vector<Case>{reshape_case("merge", {2, 3, 4}, {6, 4}, to({6, 4})),
                                    reshape_case("split", {6, 4}, {2, 3, 2, 2}, to({2, 3, -1, 2})),
                                    reshape_case("cut anew", {4, 6}, {3, 8}, to({3, 8})),
                                    reshape_case("to one element", {1, 1}, {}, to({})),
                                    reshape_case("size 0", {0, 3}, {3, 0}, to({3, 0})),
                                    view_case(
                                        "of a transposed view", {3, 4},
                                        [](const Tensor& x) {
                                          return reshape(transpose(x, 0, 1), {2, 6});
                                        },
                                        {2, 6},
                                        [](const Shape& i) {
                                          const Shape t = same_position({2, 6}, {4, 3})(i);
                                          return Shape{t[1], t[0]};
                                        })};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{{[] {
                                            reshape(zeros({2, 3}), {4});
                                          },
                                          "reshape: shape must hold 6 elements, got [4]"},
                                         {[] {
                                            reshape(zeros({2, 3}), {-1, -1});
                                          },
                                          "reshape: shape must have at most one -1, got [-1, -1]"}};
         }}};

const Register view_entry{
    {.op = "view",
     .family = "views",
     .cases =
         [] {
           // Through contiguous, because a view of scattered memory does not exist.
           return std::vector<Case>{reshape_case("merge", {2, 3, 4}, {6, 4},
                                                 [](const Tensor& x) {
                                                   return view(contiguous(x), {6, 4});
                                                 }),
                                    reshape_case("0-d", {}, {1, 1}, [](const Tensor& x) {
                                      return view(contiguous(x), {1, 1});
                                    })};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] {
                  view(transpose(zeros({2, 3}), 0, 1), {6});
                },
                "view: shape must fit the layout, got [6] for a tensor of shape [3, 2] and strides "
                "[1, 3]; use reshape"}};
         }}};

const Register flatten_entry{
    {.op = "flatten",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{
               reshape_case("all", {2, 3, 2}, {12}, [](const Tensor& x) { return flatten(x); }),
               reshape_case("middle", {2, 3, 2, 2}, {2, 6, 2},
                            [](const Tensor& x) { return flatten(x, 1, 2); }),
               reshape_case("0-d", {}, {1}, [](const Tensor& x) { return flatten(x); })};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] {
                  flatten(zeros({2, 3}), 1, 0);
                },
                "flatten: start_dim must not come after end_dim, got 1 and 0"}};
         }}};

const Register permute_entry{
    {.op = "permute",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{view_case(
                                        "3-d", {2, 3, 4},
                                        [](const Tensor& x) {
                                          return permute(x, {2, 0, -2});
                                        },
                                        {4, 2, 3},
                                        [](const Shape& i) {
                                          return Shape{i[1], i[2], i[0]};
                                        }),
                                    view_case(
                                        "0-d", {}, [](const Tensor& x) { return permute(x, {}); },
                                        {}, [](const Shape& i) { return i; }),
                                    view_case(
                                        "size 0", {2, 0},
                                        [](const Tensor& x) {
                                          return permute(x, {1, 0});
                                        },
                                        {0, 2}, reversed_dims())};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] {
                  permute(zeros({2, 3}), {0});
                },
                "permute: dims must name each of 2 dimensions once, got [0]"},
               {[] {
                  permute(zeros({2, 3}), {0, 0});
                },
                "permute: dims must name each dimension once, got [0, 0]"}};
         }}};

const Register transpose_entry{
    {.op = "transpose",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{
               view_case(
                   "swap", {2, 3, 4}, [](const Tensor& x) { return transpose(x, 0, -1); },
                   {4, 3, 2}, reversed_dims()),
               view_case(
                   "with itself", {2, 3}, [](const Tensor& x) { return transpose(x, 1, 1); },
                   {2, 3}, [](const Shape& i) { return i; })};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{{[] {
                                            transpose(zeros({2, 3}), 0, 2);
                                          },
                                          "transpose: dim must be in [-2, 1], got 2"}};
         }}};

const Register slice_entry{
    {.op = "slice",
     .family = "views",
     .cases =
         [] {
           const auto shifted = [](int64_t dim, int64_t start, int64_t step) {
             return [=](const Shape& i) {
               Shape out = i;
               out[static_cast<size_t>(dim)] = start + i[static_cast<size_t>(dim)] * step;
               return out;
             };
           };
           return std::vector<Case>{
               view_case(
                   "step 2", {2, 7}, [](const Tensor& x) { return slice(x, 1, 1, 6, 2); }, {2, 3},
                   shifted(1, 1, 2)),
               view_case(
                   "from the end", {5, 2}, [](const Tensor& x) { return slice(x, 0, -3, 100); },
                   {3, 2}, shifted(0, 2, 1)),
               view_case(
                   "nothing", {5, 2}, [](const Tensor& x) { return slice(x, 0, 3, 3); }, {0, 2},
                   shifted(0, 3, 1))};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] { slice(zeros({3}), 0, 0, 3, 0); }, "slice: step must be at least 1, got 0"},
               {[] { slice(zeros({}), 0, 0, 1); },
                "slice: input must have a dimension, got a 0-d tensor"}};
         }}};

const Register narrow_entry{
    {.op = "narrow",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{
               view_case(
                   "middle", {2, 7}, [](const Tensor& x) { return narrow(x, 1, 2, 3); }, {2, 3},
                   [](const Shape& i) {
                     return Shape{i[0], i[1] + 2};
                   }),
               view_case(
                   "negative start", {4}, [](const Tensor& x) { return narrow(x, 0, -2, 2); }, {2},
                   [](const Shape& i) { return Shape{i[0] + 2}; })};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] { narrow(zeros({4}), 0, 2, 3); },
                "narrow: start and length must lie inside dimension 0 of size 4, got 2 and 3"}};
         }}};

const Register select_entry{
    {.op = "select",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{
               view_case(
                   "last row", {2, 3}, [](const Tensor& x) { return select(x, 0, -1); }, {3},
                   [](const Shape& i) {
                     return Shape{1, i[0]};
                   }),
               view_case(
                   "to 0-d", {3}, [](const Tensor& x) { return select(x, 0, 1); }, {},
                   [](const Shape&) { return Shape{1}; })};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] {
                  select(zeros({2, 3}), 1, 3);
                },
                "select: index must be in [-3, 3) of dimension 1, got 3"}};
         }}};

const Register expand_entry{
    {.op = "expand",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{view_case(
                                        "new and old", {3, 1},
                                        [](const Tensor& x) {
                                          return expand(x, {2, 3, 4});
                                        },
                                        {2, 3, 4},
                                        [](const Shape& i) {
                                          return Shape{i[1], 0};
                                        },
                                        8),
                                    view_case(
                                        "0-d", {},
                                        [](const Tensor& x) {
                                          return expand(x, {2, 2});
                                        },
                                        {2, 2}, [](const Shape&) { return Shape{}; }, 4),
                                    view_case(
                                        "keep with -1", {1, 3},
                                        [](const Tensor& x) {
                                          return expand(x, {4, -1});
                                        },
                                        {4, 3},
                                        [](const Shape& i) {
                                          return Shape{0, i[1]};
                                        },
                                        4)};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] {
                  expand(zeros({2, 3}), {4, 3});
                },
                "expand: shape must match [2, 3] where its size is not 1, got [4, 3]"}};
         }}};

const Register squeeze_entry{
    {.op = "squeeze",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{
               reshape_case("all", {1, 3, 1}, {3}, [](const Tensor& x) { return squeeze(x); }),
               reshape_case("one", {1, 3, 1}, {1, 3},
                            [](const Tensor& x) { return squeeze(x, -1); }),
               reshape_case("not 1", {1, 3}, {1, 3},
                            [](const Tensor& x) { return squeeze(x, 1); })};
         },
     .errors = {}}};

const Register unsqueeze_entry{
    {.op = "unsqueeze",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{
               reshape_case("front", {3}, {1, 3}, [](const Tensor& x) { return unsqueeze(x, 0); }),
               reshape_case("end", {2, 3}, {2, 3, 1},
                            [](const Tensor& x) { return unsqueeze(x, -1); })};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] { unsqueeze(zeros({2}), 2); }, "unsqueeze: dim must be in [-2, 1], got 2"}};
         }}};

Source identity() {
  return [](const Shape& i) { return i; };
}

const Register contiguous_entry{
    {.op = "contiguous",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{
               view_case(
                   "transposed", {3, 4},
                   [](const Tensor& x) { return contiguous(transpose(x, 0, 1)); }, {4, 3},
                   reversed_dims()),
               view_case(
                   "as it is", {3, 4}, [](const Tensor& x) { return contiguous(clone(x)); }, {3, 4},
                   identity())};
         },
     .errors = {}}};

const Register clone_entry{{.op = "clone",
                            .family = "views",
                            .cases =
                                [] {
                                  return std::vector<Case>{
                                      view_case("2-d", {3, 4}, clone, {3, 4}, identity()),
                                      view_case("size 0", {0}, clone, {0}, identity())};
                                },
                            .errors = {}}};

const Register split_entry{
    {.op = "split",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{
               view_case(
                   "the smaller rest", {7, 2}, [](const Tensor& x) { return split(x, 3)[2]; },
                   {1, 2},
                   [](const Shape& i) {
                     return Shape{i[0] + 6, i[1]};
                   }),
               view_case(
                   "chunks", {2, 7}, [](const Tensor& x) { return chunk(x, 3, 1)[1]; }, {2, 3},
                   [](const Shape& i) {
                     return Shape{i[0], i[1] + 3};
                   }),
               // Every part's gradient comes back to its own place.
               view_case(
                   "split and joined", {2, 7},
                   [](const Tensor& x) { return cat(split(x, 2, 1), 1); }, {2, 7}, identity())};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{
               {[] { split(zeros({4}), 0); }, "split: size must be positive, got 0"},
               {[] { chunk(zeros({4}), 0); }, "chunk: chunks must be positive, got 0"}};
         }}};

// --- joining
// -----------------------------------------------------------------------------------------------

Case join_case(const char* name, std::vector<Shape> shapes, int64_t dim) {
  Case c;
  c.name = name;
  for (size_t i = 0; i < shapes.size(); ++i) c.inputs.push_back(values(shapes[i], i + 1));
  c.op = [dim](Inputs in) { return cat(in, dim); };
  c.reference = [dim](Inputs in) {
    const auto d = static_cast<size_t>(dim < 0 ? dim + in[0].dim() : dim);
    Shape shape = in[0].shape();
    for (size_t i = 1; i < in.size(); ++i) shape[d] += in[i].shape()[d];
    Tensor y = empty(shape, {DType::f64});
    for_each_index(shape, [&](const Shape& index) {
      Shape from = index;
      size_t which = 0;
      while (from[d] >= in[which].shape()[d]) from[d] -= in[which++].shape()[d];
      at(y, index) = at(in[which], from);
    });
    return y;
  };
  return c;
}

const Register cat_entry{
    {.op = "cat",
     .family = "views",
     .cases =
         [] {
           return std::vector<Case>{join_case("first", {{2, 3}, {1, 3}, {3, 3}}, 0),
                                    join_case("last, one empty", {{2, 1}, {2, 0}, {2, 2}}, -1),
                                    join_case("one tensor", {{4}}, 0),
                                    join_case("channels", {{2, 3, 2, 2}, {2, 1, 2, 2}}, 1)};
         },
     .errors =
         [] {
           return std::vector<ErrorCase>{{[] {
                                            cat({zeros({2, 3}), zeros({2, 4})}, 0);
                                          },
                                          "cat: tensors must agree in all dimensions but 0, got "
                                          "[2, 3] and [2, 4] at position "
                                          "1"},
                                         {[] { cat(std::span<const Tensor>{}, 0); },
                                          "cat: tensors must not be an empty list"},
                                         {[] {
                                            cat({zeros({}), zeros({})}, 0);
                                          },
                                          "cat: tensors must have a dimension, got a 0-d tensor"}};
         }}};

const Register stack_entry{{.op = "stack",
                            .family = "views",
                            .cases =
                                [] {
                                  std::vector<Case> cases;
                                  for (const int64_t dim : {0, 1, 2, -1}) {
                                    Case c;
                                    c.name = "2-d";
                                    c.inputs = {values({2, 3}, 1), values({2, 3}, 2)};
                                    c.op = [dim](Inputs in) { return stack(in, dim); };
                                    c.reference = [dim](Inputs in) {
                                      const auto d = static_cast<size_t>(dim < 0 ? dim + 3 : dim);
                                      Shape shape = in[0].shape();
                                      shape.insert(d, 2);
                                      Tensor y = empty(shape, {DType::f64});
                                      for_each_index(shape, [&](const Shape& index) {
                                        Shape from = index;
                                        const auto which = static_cast<size_t>(index[d]);
                                        from.erase(d);
                                        at(y, index) = at(in[which], from);
                                      });
                                      return y;
                                    };
                                    cases.push_back(std::move(c));
                                  }
                                  return cases;
                                },
                            .errors =
                                [] {
                                  return std::vector<ErrorCase>{
                                      {[] {
                                         stack({zeros({2}), zeros({3})}, 0);
                                       },
                                       "stack: tensors must have one shape, got [2] and [3]"}};
                                }}};

}  // namespace
}  // namespace cairn::check_table
