// Tensor datasets, subsets, and stacking samples to a batch.
// Invariant: gathering rows copies bytes, so a batch equals its samples bit for bit.
#include "cairn/data/dataset.h"

#include <cstring>
#include <utility>

#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"

namespace cairn::data {
namespace {

Shape with_batch(const Shape& row, size_t count) {
  Shape shape = row;
  shape.insert(0, static_cast<int64_t>(count));
  return shape;
}

// Rows of a tensor that is contiguous and on the CPU.
Tensor gather_rows(const Tensor& t, std::span<const int64_t> indices) {
  Shape shape = t.shape();
  shape[0] = static_cast<int64_t>(indices.size());
  Tensor out = empty(shape, {.dtype = t.dtype()});
  if (out.numel() == 0) return out;
  const auto row = static_cast<size_t>(t.nbytes() / t.size(0));
  const auto* from = static_cast<const std::byte*>(t.raw_data());
  auto* to = static_cast<std::byte*>(out.raw_data());
  for (const int64_t index : indices) {
    std::memcpy(to, from + static_cast<size_t>(index) * row, row);
    to += row;
  }
  return out;
}

bool can_gather(const Tensor& t) { return t.device() == kCPU && t.is_contiguous(); }

Tensor stack_field(std::span<const Sample> samples, Tensor Sample::*field, const char* what) {
  const Tensor& first = samples[0].*field;
  for (size_t i = 0; i < samples.size(); ++i) {
    const Tensor& t = samples[i].*field;
    check(t.defined() == first.defined(), "stack_samples: every sample or none must have ", what,
          ", got a difference between samples 0 and ", i, " of the batch");
    if (!t.defined()) continue;
    check(t.shape() == first.shape() && t.dtype() == first.dtype() && t.device() == first.device(),
          "stack_samples: ", what, " of sample ", i, " of the batch must be ", first.dtype(), " ",
          first.shape(), " like that of sample 0, got ", t.dtype(), " ", t.shape());
  }
  if (!first.defined()) return {};
  Tensor out = empty(with_batch(first.shape(), samples.size()), {first.dtype(), first.device()});
  const auto row = static_cast<size_t>(first.nbytes());
  for (size_t i = 0; i < samples.size(); ++i) {
    const Tensor& t = samples[i].*field;
    if (can_gather(t)) {
      if (row > 0)
        std::memcpy(static_cast<std::byte*>(out.raw_data()) + i * row, t.raw_data(), row);
    } else {
      raw::copy_(raw::select(out, 0, static_cast<int64_t>(i)), t);
    }
  }
  return out;
}

}  // namespace

Generator DrawKey::generator(int64_t index, int stream) const {
  const auto words = philox(seed, static_cast<uint64_t>(index), static_cast<uint64_t>(epoch));
  const size_t at = stream == 0 ? 0 : 2;
  return Generator((uint64_t{words[at]} << 32) | words[at + 1]);
}

void check_index(int64_t index, int64_t size, const char* op) {
  check(index >= 0 && index < size, op, ": index must be in [0, ", size, "), got ", index);
}

Sample Dataset::get_random(int64_t index, const DrawKey&) const { return get(index); }

bool Dataset::collate(std::span<const int64_t>, const DrawKey&, Batch&) const { return false; }

TensorDataset::TensorDataset(Tensor input, Tensor target)
    : input_(std::move(input)), target_(std::move(target)) {
  check(input_.defined() && input_.dim() > 0,
        "tensor_dataset: input must have at least 1 dimension, got ",
        input_.defined() ? "a 0-d tensor" : "an undefined tensor");
  if (!target_.defined()) return;
  check(target_.dim() > 0 && target_.size(0) == input_.size(0),
        "tensor_dataset: target must have as many rows as input (", input_.size(0), "), got shape ",
        target_.shape());
}

Sample TensorDataset::get(int64_t index) const {
  check_index(index, size(), "tensor_dataset");
  return {raw::select(input_, 0, index),
          target_.defined() ? raw::select(target_, 0, index) : Tensor()};
}

bool TensorDataset::collate(std::span<const int64_t> indices, const DrawKey&, Batch& batch) const {
  if (!can_gather(input_) || (target_.defined() && !can_gather(target_))) return false;
  batch.input = gather_rows(input_, indices);
  batch.target = target_.defined() ? gather_rows(target_, indices) : Tensor();
  return true;
}

Subset::Subset(std::shared_ptr<const Dataset> dataset, std::vector<int64_t> indices)
    : dataset_(std::move(dataset)), indices_(std::move(indices)) {
  check(dataset_ != nullptr, "subset: dataset must be given, got null");
  for (const int64_t index : indices_) check_index(index, dataset_->size(), "subset");
}

Subset::Subset(const Dataset& dataset, std::vector<int64_t> indices)
    : Subset(std::shared_ptr<const Dataset>(std::shared_ptr<void>(), &dataset),
             std::move(indices)) {}

Sample Subset::get(int64_t index) const {
  check_index(index, size(), "subset");
  return dataset_->get(indices_[static_cast<size_t>(index)]);
}

Sample Subset::get_random(int64_t index, const DrawKey& key) const {
  check_index(index, size(), "subset");
  return dataset_->get_random(indices_[static_cast<size_t>(index)], key);
}

bool Subset::collate(std::span<const int64_t> indices, const DrawKey& key, Batch& batch) const {
  std::vector<int64_t> mapped;
  mapped.reserve(indices.size());
  for (const int64_t index : indices) mapped.push_back(indices_[static_cast<size_t>(index)]);
  return dataset_->collate(mapped, key, batch);
}

Batch stack_samples(std::span<const Sample> samples) {
  check(!samples.empty(), "stack_samples: samples must not be empty, got 0");
  check(samples[0].input.defined(), "stack_samples: input must be defined, got none");
  return {stack_field(samples, &Sample::input, "input"),
          stack_field(samples, &Sample::target, "target")};
}

}  // namespace cairn::data
