// Samplers: the order in which an epoch visits a dataset.
// Invariant: indices() depends on the sampler's arguments and its epoch alone, so that an epoch can
// be taken up in its middle.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace cairn::data {

class Sampler {
 public:
  virtual ~Sampler() = default;

  // Number of indices in an epoch.
  virtual int64_t size() const = 0;
  // The current epoch's indices, made anew at each call.
  virtual std::vector<int64_t> indices() const = 0;

  int64_t epoch() const { return epoch_; }
  // epoch >= 0, else Error.
  void set_epoch(int64_t epoch);

 private:
  int64_t epoch_ = 0;
};

// 0, 1, … size - 1.
class SequentialSampler : public Sampler {
 public:
  explicit SequentialSampler(int64_t size);
  int64_t size() const override { return size_; }
  std::vector<int64_t> indices() const override;

 private:
  int64_t size_;
};

struct RandomSamplerOptions {
  uint64_t seed = 0;
  bool replacement = false;
  int64_t num_samples = 0;  // with replacement only; 0: as many as the dataset has
};

// A permutation of 0 … size - 1, or draws with replacement, from the seed seed + epoch.
class RandomSampler : public Sampler {
 public:
  explicit RandomSampler(int64_t size, RandomSamplerOptions options = {});
  int64_t size() const override { return count_; }
  std::vector<int64_t> indices() const override;

 private:
  int64_t size_;
  int64_t count_;
  RandomSamplerOptions options_;
};

// The given indices in a random order, from the seed seed + epoch.
class SubsetRandomSampler : public Sampler {
 public:
  explicit SubsetRandomSampler(std::vector<int64_t> indices, uint64_t seed = 0);
  int64_t size() const override { return static_cast<int64_t>(indices_.size()); }
  std::vector<int64_t> indices() const override;

 private:
  std::vector<int64_t> indices_;
  uint64_t seed_;
};

struct DistributedSamplerOptions {
  int64_t num_replicas = 1;
  int64_t rank = 0;
  bool shuffle = true;
  uint64_t seed = 0;
  bool drop_last = false;
};

// One rank's share: of the permutation from the seed seed + epoch (or 0 … size - 1), rank r takes
// positions r, r + R, …. Every rank gets ceil(size / R), the tail being filled from the start; with
// drop_last floor(size / R), the tail being left out.
class DistributedSampler : public Sampler {
 public:
  DistributedSampler(int64_t size, DistributedSamplerOptions options);
  int64_t size() const override { return count_; }
  std::vector<int64_t> indices() const override;

 private:
  int64_t size_;
  int64_t count_;
  DistributedSamplerOptions options_;
};

// Cuts a sampler's indices into batches; the last one is shorter, or left out with drop_last.
class BatchSampler {
 public:
  BatchSampler(std::shared_ptr<Sampler> sampler, int64_t batch_size, bool drop_last = false);
  // Number of batches in an epoch.
  int64_t size() const;
  void set_epoch(int64_t epoch) { sampler_->set_epoch(epoch); }
  std::vector<std::vector<int64_t>> batches() const;

 private:
  std::shared_ptr<Sampler> sampler_;
  int64_t batch_size_;
  bool drop_last_;
};

}  // namespace cairn::data
