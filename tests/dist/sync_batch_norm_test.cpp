// Batch normalisation over the batches of several ranks equals one over the joined batch.
#include "cairn/dist/sync_batch_norm.h"

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/parallel.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/dist/thread_group.h"

using namespace cairn;
using namespace cairn::dist;
using test::on_ranks;

namespace {

using Group = std::shared_ptr<ProcessGroup>;

// What a batch normalisation takes and what came out of it.
struct Problem {
  Tensor x, residual, grad_y, weight, bias, running_mean, running_var;
  bool relu = false;
};
struct Answer {
  Tensor y, dx, dresidual, dweight, dbias, running_mean, running_var;
};

Tensor leaf(const Tensor& t) {
  const Tensor copy = raw::clone(t);
  set_requires_grad(copy);
  return copy;
}

Answer solve(const Problem& p, int64_t begin, int64_t end,
             std::shared_ptr<const BatchReplicas> replicas) {
  const Tensor x = leaf(raw::slice(p.x, 0, begin, end));
  const Tensor residual =
      p.residual.defined() ? leaf(raw::slice(p.residual, 0, begin, end)) : Tensor{};
  const Tensor w = leaf(p.weight), b = leaf(p.bias);
  Answer a;
  a.running_mean = raw::clone(p.running_mean);
  a.running_var = raw::clone(p.running_var);
  const BatchNormOptions options{true, 0.3, 1e-5, std::move(replicas)};
  a.y = p.relu ? batch_norm_relu(x, residual, a.running_mean, a.running_var, w, b, options)
               : batch_norm(x, a.running_mean, a.running_var, w, b, options);
  // Twice x in the graph, so that one gradient is added to the other.
  backward(add(sum(mul(a.y, raw::slice(p.grad_y, 0, begin, end))), sum(square(x))));
  a.dx = grad(x);
  if (residual.defined()) a.dresidual = grad(residual);
  a.dweight = grad(w);
  a.dbias = grad(b);
  return a;
}

double distance(const Tensor& a, const Tensor& b) {
  const Tensor x = raw::to(raw::contiguous(a), DType::f64);
  const Tensor y = raw::to(raw::contiguous(b), DType::f64);
  double largest = 0;
  for (int64_t i = 0; i < x.numel(); ++i)
    largest = std::max(largest, std::abs(x.data<double>()[i] - y.data<double>()[i]));
  return largest;
}

Problem make_problem(const Shape& shape, DType dtype, bool relu, double offset) {
  Generator generator(5);
  const auto draw = [&](const Shape& s) { return randn(s, {dtype}, generator); };
  Problem p;
  p.x = add(draw(shape), offset);
  p.grad_y = draw(shape);
  p.relu = relu;
  if (relu) p.residual = draw(shape);
  p.weight = draw({shape[1]});
  p.bias = draw({shape[1]});
  p.running_mean = draw({shape[1]});
  p.running_var = square(draw({shape[1]}));
  return p;
}

void check_joined(const Problem& p, const std::vector<int64_t>& bounds, double tolerance) {
  const Answer whole = solve(p, 0, p.x.size(0), nullptr);
  std::vector<Answer> parts(bounds.size() - 1);
  on_ranks(static_cast<int>(parts.size()), [&](const Group& group) {
    const auto r = static_cast<size_t>(group->rank());
    parts[r] = solve(p, bounds[r], bounds[r + 1], batch_replicas(group));
  });
  Tensor dweight = zeros_like(whole.dweight), dbias = zeros_like(whole.dbias);
  for (size_t r = 0; r < parts.size(); ++r) {
    const auto mine = [&](const Tensor& t) { return raw::slice(t, 0, bounds[r], bounds[r + 1]); };
    CHECK(distance(parts[r].y, mine(whole.y)) < tolerance);
    CHECK(distance(parts[r].dx, mine(whole.dx)) < tolerance);
    if (p.residual.defined())
      CHECK(distance(parts[r].dresidual, mine(whole.dresidual)) < tolerance);
    // The same bits on all, since running statistics must not drift apart.
    CHECK(distance(parts[r].running_mean, parts[0].running_mean) == 0);
    CHECK(distance(parts[r].running_var, parts[0].running_var) == 0);
    dweight = add(dweight, parts[r].dweight);
    dbias = add(dbias, parts[r].dbias);
  }
  CHECK(distance(parts[0].running_mean, whole.running_mean) < tolerance);
  CHECK(distance(parts[0].running_var, whole.running_var) < tolerance);
  CHECK(distance(dweight, whole.dweight) < tolerance);
  CHECK(distance(dbias, whole.dbias) < tolerance);
}

}  // namespace

TEST_CASE("dist: batch norm over ranks equals one over the joined batch") {
  const int threads = num_threads();
  set_num_threads(1);
  for (const bool relu : {false, true}) {
    check_joined(make_problem({12, 5, 3, 4}, DType::f64, relu, 0), {0, 6, 12}, 1e-12);
    // Uneven, one row alone, and none at all.
    check_joined(make_problem({12, 5, 3, 4}, DType::f64, relu, 0), {0, 1, 1, 12}, 1e-12);
    check_joined(make_problem({7, 3}, DType::f64, relu, 0), {0, 1, 7}, 1e-12);
    check_joined(make_problem({6, 3, 5}, DType::f64, relu, 0), {0, 2, 6}, 1e-12);
    check_joined(make_problem({12, 16, 3, 4}, DType::f32, relu, 0), {0, 5, 12}, 2e-5);
  }
  // A mean far from 0 costs no digits of the variance.
  check_joined(make_problem({12, 5, 3, 4}, DType::f64, false, 1e4), {0, 5, 12}, 1e-7);
  set_num_threads(threads);
}
