// Datasets: samples by index, and the two general ones.
// Invariant: a sample depends on its index and the DrawKey alone, so neither the order in which
// samples are asked for nor the thread that asks changes one.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cairn/data/batch.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/tensor.h"

namespace cairn::data {

struct Sample {
  Tensor input;
  Tensor target;  // may be undefined
};

// What random transforms draw from beside the sample's index.
struct DrawKey {
  uint64_t seed = 0;
  int64_t epoch = 0;

  // The generator of sample `index`: its seed is two words of Philox of (seed, index, epoch).
  // Streams 0 and 1 are independent; the loader gives 1 to default_generator().
  Generator generator(int64_t index, int stream = 0) const;
};

// get() must be callable from several threads at once.
class Dataset {
 public:
  Dataset() = default;
  virtual ~Dataset() = default;

  // Number of samples.
  virtual int64_t size() const = 0;
  // Sample `index` in [0, size()); random transforms draw as in epoch 0 under seed 0.
  virtual Sample get(int64_t index) const = 0;
  // The same under the loader's seed and epoch. Datasets with random transforms override it.
  virtual Sample get_random(int64_t index, const DrawKey& key) const;
  // Makes a whole batch at once and returns true, where the dataset knows a faster way than sample
  // by sample; the result must be bitwise what stacking get_random() gives. Indices are in range.
  virtual bool collate(std::span<const int64_t> indices, const DrawKey& key, Batch& batch) const;

 protected:
  Dataset(const Dataset&) = default;
  Dataset(Dataset&&) = default;
  Dataset& operator=(const Dataset&) = default;
  Dataset& operator=(Dataset&&) = default;
};

// Rows of one or two tensors with equal sizes of dimension 0.
class TensorDataset : public Dataset {
 public:
  // input [N, …]; target [N, …] or undefined. Samples are views of them.
  explicit TensorDataset(Tensor input, Tensor target = {});

  int64_t size() const override { return input_.size(0); }
  Sample get(int64_t index) const override;
  bool collate(std::span<const int64_t> indices, const DrawKey& key, Batch& batch) const override;

  const Tensor& input() const { return input_; }
  const Tensor& target() const { return target_; }

 private:
  Tensor input_;
  Tensor target_;
};

// The samples of another dataset at the given indices, in that order; repeats are allowed.
class Subset : public Dataset {
 public:
  // The caller keeps `dataset` alive.
  Subset(const Dataset& dataset, std::vector<int64_t> indices);
  Subset(const Dataset&& dataset, std::vector<int64_t> indices) = delete;
  Subset(std::shared_ptr<const Dataset> dataset, std::vector<int64_t> indices);

  int64_t size() const override { return static_cast<int64_t>(indices_.size()); }
  Sample get(int64_t index) const override;
  Sample get_random(int64_t index, const DrawKey& key) const override;
  bool collate(std::span<const int64_t> indices, const DrawKey& key, Batch& batch) const override;

  const Dataset& dataset() const { return *dataset_; }
  const std::vector<int64_t>& indices() const { return indices_; }

 private:
  std::shared_ptr<const Dataset> dataset_;
  std::vector<int64_t> indices_;
};

// Throws Error "op: index must be in [0, size), got …".
void check_index(int64_t index, int64_t size, const char* op);

// [batch, …] of the samples' tensors; all must have the first one's shape and dtype, else Error.
Batch stack_samples(std::span<const Sample> samples);

}  // namespace cairn::data
