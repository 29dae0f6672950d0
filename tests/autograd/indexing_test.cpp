// Indexing and views beyond the op table: results that are integers, sharing of memory, layouts.
#include "cairn/autograd/ops/indexing.h"

#include <cmath>
#include <functional>
#include <vector>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

namespace {

template <class T>
std::vector<T> list(const Tensor& t) {
  const Tensor c = raw::contiguous(t);
  return std::vector<T>(c.data<T>(), c.data<T>() + c.numel());
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("autograd: nonzero lists indices in row-major order") {
  const Tensor x = from_values(std::vector<float>{0, 2, 0, 3, 0, 4}, {2, 3});
  CHECK(nonzero(x).shape() == Shape{3, 2});
  CHECK(list<int64_t>(nonzero(x)) == std::vector<int64_t>{0, 1, 1, 0, 1, 2});
  CHECK(list<int64_t>(nonzero(raw::transpose(x, 0, 1))) == std::vector<int64_t>{0, 1, 1, 0, 2, 1});
  CHECK(nonzero(zeros({4})).shape() == Shape{0, 1});
  CHECK(nonzero(ones({})).shape() == Shape{1, 0});
}

TEST_CASE("autograd: one_hot") {
  const Tensor classes = tensor<int64_t>({2, 0});
  CHECK(list<int64_t>(one_hot(classes, 3)) == std::vector<int64_t>{0, 0, 1, 1, 0, 0});
  CHECK(one_hot(zeros({2, 4}, {DType::i64}), 5).shape() == Shape{2, 4, 5});
  CHECK(one_hot(zeros({0}, {DType::i64}), 5).shape() == Shape{0, 5});
  CHECK(error_of([&] { one_hot(classes, 2); }) ==
        "one_hot: index must be in [0, 2), got 2 at position 0");
}

TEST_CASE("autograd: argsort and sort of integers and bool") {
  const Tensor x = tensor<int64_t>({3, 1, 3, 2});
  CHECK(list<int64_t>(argsort(x)) == std::vector<int64_t>{1, 3, 0, 2});
  CHECK(list<int64_t>(argsort(x, 0, true)) == std::vector<int64_t>{0, 2, 3, 1});
  CHECK(list<bool>(sort(tensor<bool>({true, false, true})).first) ==
        std::vector<bool>{false, true, true});
}

TEST_CASE("autograd: sort puts NaN last, keeps ties in order, and takes both zeros for equal") {
  const float nan = std::nanf(""), inf = INFINITY;
  const Tensor x = tensor<float>({0.0f, nan, -inf, -0.0f, 2, -nan, inf, -1, 2, 0.0f});
  const std::vector<int64_t> up{2, 7, 0, 3, 9, 4, 8, 6, 1, 5};
  const std::vector<int64_t> down{1, 5, 6, 4, 8, 0, 3, 9, 7, 2};
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    CHECK(list<int64_t>(argsort(to(x, dtype))) == up);
    CHECK(list<int64_t>(argsort(to(x, dtype), 0, true)) == down);
    CHECK(list<int64_t>(topk(to(x, dtype), 4, 0, true).second) ==
          std::vector<int64_t>(down.begin(), down.begin() + 4));
    CHECK(list<int64_t>(topk(to(x, dtype), 4, 0, false).second) ==
          std::vector<int64_t>(up.begin(), up.begin() + 4));
  }
  const Tensor sorted = sort(x).first;
  CHECK(std::signbit(sorted.data<float>()[3]));  // -0 itself, not the zero it equals
  const Tensor i = tensor<int32_t>({3, -1, INT32_MIN, INT32_MAX, 0, -1});
  CHECK(list<int64_t>(argsort(i)) == std::vector<int64_t>{2, 1, 5, 4, 0, 3});
  CHECK(list<int64_t>(argsort(i, 0, true)) == std::vector<int64_t>{3, 0, 4, 1, 5, 2});
}

TEST_CASE("autograd: views share memory, copies do not") {
  const Tensor x = zeros({2, 3});
  for (const Tensor& v : {view(x, {6}), reshape(x, {3, 2}), permute(x, {1, 0}), transpose(x, 0, 1),
                          slice(x, 1, 0, 2), select(x, 0, 1), expand(x, {4, 2, 3}), unsqueeze(x, 0),
                          flatten(x), narrow(x, 0, 0, 1), contiguous(x), split(x, 1)[1]})
    CHECK(v.storage() == x.storage());
  CHECK(clone(x).storage() != x.storage());
  CHECK(contiguous(transpose(x, 0, 1)).storage() != x.storage());
  CHECK(split(x, 2, 1).size() == 2);
  CHECK(split(zeros({0, 2}), 3).size() == 1);
  CHECK(chunk(zeros({5}), 4).size() == 3);
}

TEST_CASE("autograd: gradients of views of one tensor meet") {
  const Tensor x = set_requires_grad(zeros({2, 3}));
  const Tensor y = x * 1.0;
  backward(sum(select(y, 0, 0)) + sum(slice(y, 1, 1, 3)) * 2.0 + sum(view(y, {6})) * 4.0 +
           sum(transpose(y, 0, 1)) * 8.0);
  CHECK(list<float>(grad(x)) == std::vector<float>{13, 15, 15, 12, 14, 14});
}

TEST_CASE("autograd: cat keeps channels-last images so and promotes dtypes") {
  const Tensor a = raw::channels_last(randn({2, 3, 4, 4}));
  CHECK(cat({a, a}, 1).is_channels_last());
  CHECK(cat({zeros({2}, {DType::bf16}), zeros({2}, {DType::i64})}, 0).dtype() == DType::bf16);
  const Tensor h = set_requires_grad(zeros({2}, {DType::bf16}));
  const std::vector<Tensor> both{h, zeros({3})};
  backward(sum(cat(both, 0)));
  CHECK(grad(h).dtype() == DType::bf16);
}

TEST_CASE("autograd: picks with a gradient from strided inputs") {
  const Tensor x = set_requires_grad(raw::clone(raw::transpose(randn({4, 3}), 0, 1)));
  CHECK(!x.is_contiguous());
  backward(sum(index_select(x, 1, tensor<int64_t>({1, 1, 3}))));
  CHECK(list<float>(grad(x)) == std::vector<float>{0, 2, 0, 1, 0, 2, 0, 1, 0, 2, 0, 1});
}
