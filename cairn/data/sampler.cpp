// The samplers. Invariant: see sampler.h.
#include "cairn/data/sampler.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cairn/tensor/error.h"
#include "cairn/tensor/random.h"

namespace cairn::data {
namespace {

void check_size(int64_t size, const char* op) {
  check(size >= 0, op, ": size must not be negative, got ", size);
}

std::vector<int64_t> to_vector(const Tensor& t) {
  const int64_t* data = t.data<int64_t>();
  return std::vector<int64_t>(data, data + t.numel());
}

std::vector<int64_t> counting(int64_t size) {
  std::vector<int64_t> out(static_cast<size_t>(size));
  std::iota(out.begin(), out.end(), int64_t{0});
  return out;
}

// seed + epoch as PyTorch has it: RandomSampler and a DistributedSampler of one rank agree.
Generator epoch_generator(uint64_t seed, int64_t epoch) {
  return Generator(seed + static_cast<uint64_t>(epoch));
}

std::vector<int64_t> permutation(int64_t size, uint64_t seed, int64_t epoch) {
  Generator generator = epoch_generator(seed, epoch);
  return to_vector(randperm(size, generator));
}

int64_t share_of(int64_t size, const DistributedSamplerOptions& options) {
  check_size(size, "distributed_sampler");
  check(options.num_replicas >= 1, "distributed_sampler: num_replicas must be at least 1, got ",
        options.num_replicas);
  check(options.rank >= 0 && options.rank < options.num_replicas,
        "distributed_sampler: rank must be in [0, ", options.num_replicas, "), got ", options.rank);
  const int64_t whole = size / options.num_replicas;
  return whole + (!options.drop_last && size % options.num_replicas != 0 ? 1 : 0);
}

}  // namespace

void Sampler::set_epoch(int64_t epoch) {
  check(epoch >= 0, "set_epoch: epoch must not be negative, got ", epoch);
  epoch_ = epoch;
}

SequentialSampler::SequentialSampler(int64_t size) : size_(size) {
  check_size(size, "sequential_sampler");
}

std::vector<int64_t> SequentialSampler::indices() const { return counting(size_); }

RandomSampler::RandomSampler(int64_t size, RandomSamplerOptions options)
    : size_(size), count_(options.num_samples > 0 ? options.num_samples : size), options_(options) {
  check_size(size, "random_sampler");
  check(options.num_samples >= 0, "random_sampler: num_samples must not be negative, got ",
        options.num_samples);
  check(options.replacement || options.num_samples == 0,
        "random_sampler: num_samples must be 0 without replacement, got ", options.num_samples);
  check(size > 0 || count_ == 0, "random_sampler: size must be at least 1 to draw ", count_,
        " samples, got 0");
}

std::vector<int64_t> RandomSampler::indices() const {
  if (!options_.replacement || count_ == 0) return permutation(size_, options_.seed, epoch());
  Generator generator = epoch_generator(options_.seed, epoch());
  return to_vector(randint(0, size_, {count_}, {.dtype = DType::i64}, generator));
}

SubsetRandomSampler::SubsetRandomSampler(std::vector<int64_t> indices, uint64_t seed)
    : indices_(std::move(indices)), seed_(seed) {}

std::vector<int64_t> SubsetRandomSampler::indices() const {
  std::vector<int64_t> out = permutation(size(), seed_, epoch());
  for (int64_t& index : out) index = indices_[static_cast<size_t>(index)];
  return out;
}

DistributedSampler::DistributedSampler(int64_t size, DistributedSamplerOptions options)
    : size_(size), count_(share_of(size, options)), options_(options) {}

std::vector<int64_t> DistributedSampler::indices() const {
  const std::vector<int64_t> all =
      options_.shuffle ? permutation(size_, options_.seed, epoch()) : counting(size_);
  std::vector<int64_t> mine(static_cast<size_t>(count_));
  // Positions past the end wrap to the start: that is the padding.
  for (int64_t i = 0; i < count_; ++i)
    mine[static_cast<size_t>(i)] =
        all[static_cast<size_t>((options_.rank + i * options_.num_replicas) % size_)];
  return mine;
}

BatchSampler::BatchSampler(std::shared_ptr<Sampler> sampler, int64_t batch_size, bool drop_last)
    : sampler_(std::move(sampler)), batch_size_(batch_size), drop_last_(drop_last) {
  check(sampler_ != nullptr, "batch_sampler: sampler must be given, got null");
  check(batch_size_ >= 1, "batch_sampler: batch_size must be at least 1, got ", batch_size_);
}

int64_t BatchSampler::size() const {
  const int64_t count = sampler_->size();
  return count / batch_size_ + (!drop_last_ && count % batch_size_ != 0 ? 1 : 0);
}

std::vector<std::vector<int64_t>> BatchSampler::batches() const {
  const std::vector<int64_t> indices = sampler_->indices();
  const auto count = static_cast<int64_t>(indices.size());
  check(count == sampler_->size(), "batch_sampler: sampler must give ", sampler_->size(),
        " indices, as its size() tells, got ", count);
  std::vector<std::vector<int64_t>> out(static_cast<size_t>(size()));
  auto first = indices.begin();
  for (auto& batch : out) {
    const auto last = first + std::min<int64_t>(batch_size_, indices.end() - first);
    batch.assign(first, last);
    first = last;
  }
  return out;
}

}  // namespace cairn::data
