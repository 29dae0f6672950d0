// Tensor datasets, subsets and stacking.
#include "cairn/data/dataset.h"

#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/data/support.h"

using namespace cairn;
using namespace cairn::test;

namespace {

Tensor numbers(const Shape& shape) {
  Tensor t = empty(shape);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = static_cast<float>(i);
  return t;
}

// The fast way, checked against stacking where there is one.
Batch gather(const data::Dataset& set, const std::vector<int64_t>& indices) {
  std::vector<data::Sample> samples;
  for (const int64_t index : indices) samples.push_back(set.get(index));
  const Batch stacked = data::stack_samples(samples);
  Batch fast;
  if (set.collate(indices, {}, fast)) CHECK(same_bits(fast, stacked));
  return stacked;
}

}  // namespace

TEST_CASE("data: tensor dataset gives rows, and gathers them") {
  const Tensor input = numbers({4, 2, 3});
  const Tensor target = tensor<int64_t>({10, 11, 12, 13});
  const data::TensorDataset set(input, target);
  CHECK(set.size() == 4);
  CHECK(set.get(2).input.shape() == Shape{2, 3});
  CHECK(set.get(2).target.dim() == 0);
  const Batch batch = gather(set, {3, 0, 3});
  CHECK(batch.size() == 3);
  CHECK(batch.input.shape() == Shape{3, 2, 3});
  CHECK(batch.input.data<float>()[0] == 18);
  CHECK(same_bits(batch.target, tensor<int64_t>({13, 10, 13})));
  gather(data::TensorDataset(raw::transpose(input, 1, 2), target), {1, 2});
  CHECK_FALSE(gather(data::TensorDataset(input), {1}).target.defined());
  CHECK(gather(data::TensorDataset(zeros({3, 0})), {1, 2}).input.shape() == Shape{2, 0});
  CHECK(Batch().size() == 0);
}

TEST_CASE("data: subset maps indices and keeps the fast way") {
  const data::TensorDataset set(numbers({5, 2}));
  const data::Subset subset(set, {4, 1, 1});
  CHECK(subset.size() == 3);
  const Batch batch = gather(subset, {2, 0});
  CHECK(batch.input.data<float>()[0] == 2);
  CHECK(batch.input.data<float>()[2] == 8);
  Batch fast;
  CHECK(subset.collate(std::vector<int64_t>{0}, {}, fast));
  const data::Subset owning(std::make_shared<data::TensorDataset>(numbers({2, 1})), {1});
  CHECK(owning.get(0).input.item() == 1);
  STATIC_REQUIRE_FALSE(
      std::is_constructible_v<data::Subset, data::TensorDataset, std::vector<int64_t>>);
}

TEST_CASE("data: dataset errors") {
  using namespace cairn::data;
  CHECK(error_of([] { TensorDataset(scalar_tensor(1)); }) ==
        "tensor_dataset: input must have at least 1 dimension, got a 0-d tensor");
  CHECK(error_of([] { TensorDataset(Tensor{}); }) ==
        "tensor_dataset: input must have at least 1 dimension, got an undefined tensor");
  CHECK(error_of([] {
          TensorDataset(zeros({3}), zeros({2, 1}));
        }) == "tensor_dataset: target must have as many rows as input (3), got shape [2, 1]");
  const TensorDataset set(zeros({3}));
  CHECK(error_of([&] { set.get(3); }) == "tensor_dataset: index must be in [0, 3), got 3");
  CHECK(error_of([&] { Subset(set, {0, 3}); }) == "subset: index must be in [0, 3), got 3");
  CHECK(error_of([&] { Subset(set, {0}).get(1); }) == "subset: index must be in [0, 1), got 1");
  CHECK(error_of([] { Subset(std::shared_ptr<const Dataset>(), {}); }) ==
        "subset: dataset must be given, got null");
  const auto stack = [](const std::vector<Sample>& samples) {
    return error_of([&] { stack_samples(samples); });
  };
  CHECK(stack({}) == "stack_samples: samples must not be empty, got 0");
  CHECK(stack({Sample{}}) == "stack_samples: input must be defined, got none");
  CHECK(stack({{zeros({2}), {}}, {zeros({3}), {}}}) ==
        "stack_samples: input of sample 1 of the batch must be f32 [2] like that of sample 0, got "
        "f32 [3]");
  CHECK(stack({{zeros({2}), zeros({1})}, {zeros({2}), zeros({1}, {.dtype = DType::i64})}}) ==
        "stack_samples: target of sample 1 of the batch must be f32 [1] like that of sample 0, got "
        "i64 [1]");
  CHECK(stack({{zeros({2}), {}}, {zeros({2}), zeros({1})}}) ==
        "stack_samples: every sample or none must have target, got a difference between samples 0 "
        "and 1 of the batch");
}
