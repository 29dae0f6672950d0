// Embedding and dropout in the op table.
#include "cairn/autograd/ops/embedding.h"

#include "cairn/tensor/factory.h"
#include "cairn/tensor/random.h"
#include "check/op_table.h"

namespace cairn::check_table {
namespace {

Case embedding_case(const char* name, const Shape& weight, const std::vector<int64_t>& indices,
                    const Shape& shape, std::optional<int64_t> padding_idx = {}) {
  Case c;
  c.name = name;
  c.inputs = {values(weight, 1), from_values(indices, shape)};
  c.op = [padding_idx](Inputs in) { return embedding(in[0], in[1], padding_idx); };
  c.reference = [](Inputs in) {
    const int64_t width = in[0].size(1);
    Shape shape = in[1].shape();
    shape.push_back(width);
    Tensor y = empty(shape, {DType::f64});
    for (int64_t i = 0; i < y.numel(); ++i)
      y.data<double>()[i] =
          in[0].data<double>()[in[1].data<int64_t>()[i / width] * width + i % width];
    return y;
  };
  c.terms = static_cast<int64_t>(indices.size()) + 1;
  // The row of padding has a value but no gradient.
  c.numeric_gradient = !padding_idx;
  return c;
}

std::vector<Case> embedding_cases() {
  return {
      embedding_case("repeats", {5, 3}, {0, 2, 2, 4, 2, 0}, {2, 3}),
      embedding_case("all the same", {5, 3}, {2, 2, 2, 2}, {4}),
      embedding_case("0-d index", {5, 3}, {3}, {}),
      embedding_case("one row, one column", {1, 1}, {0, 0}, {2}),
      embedding_case("padding_idx", {5, 3}, {1, 0, 1, 3, 1, 4}, {6}, 1),
      embedding_case("padding_idx from the end", {5, 3}, {4, 4, 0, 2}, {4}, -1),
      embedding_case("no indices", {5, 3}, {}, {0}),
      embedding_case("width 0", {5, 0}, {1, 2}, {2}),
  };
}

std::vector<ErrorCase> embedding_errors() {
  const Tensor w = zeros({5, 3});
  return {
      {[=] {
         embedding(w, from_values<int64_t>({0, 5}, {2}));
       },
       "embedding: index must be in [0, 5), got 5 at position 1"},
      {[=] { embedding(w, from_values<int64_t>({-1}, {1})); },
       "embedding: index must be in [0, 5), got -1 at position 0"},
      {[=] { embedding(w, zeros({2})); }, "embedding: indices must be i64 or i32, got f32"},
      {[=] { embedding(zeros({5}), from_values<int64_t>({0}, {1})); },
       "embedding: weight must be 2-d [V, D], got [5]"},
      {[=] { embedding(w, from_values<int64_t>({0}, {1}), 5); },
       "embedding: padding_idx must be in [-5, 5), got 5"},
  };
}

Case dropout_case(const char* name, const Shape& shape, double p, bool training) {
  Case c;
  c.name = name;
  c.inputs = {values(shape, 1)};
  c.op = [=](Inputs in) {
    Generator generator(42);
    generator.reserve(12);  // a stream that has been used before
    return dropout(in[0], p, training, generator);
  };
  c.reference = [=](Inputs in) {
    Tensor y = empty(shape, {DType::f64});
    for (int64_t i = 0; i < y.numel(); ++i) {
      const double u = uniform_float(philox_word(42, 3, static_cast<uint64_t>(i)));
      const double x = in[0].data<double>()[i];
      y.data<double>()[i] = !training ? x : u < p ? 0.0 : x / (1 - p);
    }
    return y;
  };
  // Where nothing is dropped the op returns its input, which has no rule of its own.
  c.differentiable = training && p > 0;
  return c;
}

std::vector<Case> dropout_cases() {
  return {
      dropout_case("p 0.5", {7, 5}, 0.5, true),
      dropout_case("p 0.1, more than one run of numbers", {11, 37}, 0.1, true),
      dropout_case("p 0", {3, 4}, 0, true),
      dropout_case("p 1", {3, 4}, 1, true),
      dropout_case("evaluation", {3, 4}, 0.5, false),
      dropout_case("0-d", {}, 0.5, true),
      dropout_case("no elements", {0, 3}, 0.5, true),
  };
}

std::vector<ErrorCase> dropout_errors() {
  return {
      {[] { dropout(zeros({2}), 1.5); }, "dropout: p must be in [0, 1], got 1.5"},
      {[] { dropout(zeros({2}), -0.5); }, "dropout: p must be in [0, 1], got -0.5"},
      {[] { dropout(zeros({2}, {DType::i64})); }, "dropout: input must be floating, got i64"},
  };
}

const Register embedding_entry{{.op = "embedding",
                                .family = "embedding",
                                .cases = embedding_cases,
                                .errors = embedding_errors}};
const Register dropout_entry{
    {.op = "dropout", .family = "embedding", .cases = dropout_cases, .errors = dropout_errors}};

}  // namespace
}  // namespace cairn::check_table
