// The loader: epochs, position, and how one batch is made. Invariant: see data_loader.h.
#include "cairn/data/data_loader.h"

#include <cmath>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "cairn/data/prefetcher.h"
#include "cairn/tensor/error.h"
#include "cairn/tensor/profiler.h"
#include "cairn/tensor/random.h"

namespace cairn::data {
namespace {

constexpr const char* kOp = "data_loader";
constexpr int kMaxWorkers = 1024;
constexpr int64_t kMaxPrefetch = int64_t{1} << 20;
constexpr double kLongestTimeout = 1e8;  // three years; beyond it the clock's arithmetic overflows

// Gives the thread's generator back as it was.
class KeepGenerator {
 public:
  KeepGenerator() : kept_(default_generator()) {}
  ~KeepGenerator() { default_generator() = kept_; }
  KeepGenerator(const KeepGenerator&) = delete;
  KeepGenerator& operator=(const KeepGenerator&) = delete;

 private:
  Generator kept_;
};

// Calls body(); an exception becomes an Error with where() in front of its text.
template <class Body, class Where>
auto with_place(Body&& body, Where&& where) {
  try {
    return body();
  } catch (const std::exception& error) {
    fail(kOp, ": ", where(), " failed: ", error.what());
  } catch (...) {
    fail(kOp, ": ", where(), " failed: unknown exception");
  }
}

// All that making a batch of one epoch needs, by value: workers share it.
struct Recipe {
  std::shared_ptr<const Dataset> dataset;
  std::function<Batch(std::span<const Sample>)> collate;
  std::vector<std::vector<int64_t>> batches;
  DrawKey key;

  std::string label(int64_t batch) const { return cat("batch ", batch, " of epoch ", key.epoch); }

  Batch make(int64_t number) const {
    const profiler::Range range("make_batch");
    const std::vector<int64_t>& indices = batches[static_cast<size_t>(number)];
    const auto whole = [&] { return cat(label(number), " (from sample ", indices[0], ")"); };
    Batch batch;
    if (!collate && with_place([&] { return dataset->collate(indices, key, batch); }, whole))
      return batch;
    const std::vector<Sample> samples = make_samples(indices, number);
    return with_place([&] { return collate ? collate(samples) : stack_samples(samples); }, whole);
  }

 private:
  std::vector<Sample> make_samples(const std::vector<int64_t>& indices, int64_t number) const {
    const KeepGenerator keep;
    std::vector<Sample> samples;
    samples.reserve(indices.size());
    for (const int64_t index : indices) {
      // Draws from the default generator repeat too, on whichever thread they happen.
      default_generator() = key.generator(index, 1);
      samples.push_back(
          with_place([&] { return dataset->get_random(index, key); },
                     [&] { return cat("sample ", index, " (", label(number), ")"); }));
    }
    return samples;
  }
};

void check_options(const DataLoaderOptions& options) {
  check(options.batch_size >= 1, kOp, ": batch_size must be at least 1, got ", options.batch_size);
  check(options.num_workers >= 0 && options.num_workers <= kMaxWorkers, kOp,
        ": num_workers must be 0 to ", kMaxWorkers, ", got ", options.num_workers);
  check(options.prefetch >= 1 && options.prefetch <= kMaxPrefetch, kOp, ": prefetch must be 1 to ",
        kMaxPrefetch, ", got ", options.prefetch);
  check(options.timeout_s >= 0 && options.timeout_s <= kLongestTimeout, kOp,
        ": timeout_s must be 0 to ", kLongestTimeout, ", got ", options.timeout_s);
  check(!(options.shuffle && options.sampler), kOp,
        ": shuffle must be false where a sampler is given, got both");
}

}  // namespace

struct DataLoader::Impl {
  Impl(std::shared_ptr<const Dataset> data, DataLoaderOptions given)
      : dataset(std::move(data)), options(std::move(given)), seed(options.seed) {
    check(dataset != nullptr, kOp, ": dataset must be given, got null");
    check_options(options);
    const int64_t samples = dataset->size();
    check(samples >= 1, kOp, ": dataset must have at least 1 sample, got ", samples);
    const int64_t count = batch_sampler().size();
    check(count >= 1, kOp, ": an epoch must have at least 1 batch, got 0 of ",
          options.sampler ? options.sampler->size() : samples, " samples with batch_size ",
          options.batch_size, options.drop_last ? " and drop_last" : "");
  }

  BatchSampler batch_sampler() const {
    std::shared_ptr<Sampler> sampler = options.sampler;
    if (!sampler && options.shuffle)
      sampler =
          std::make_shared<RandomSampler>(dataset->size(), RandomSamplerOptions{.seed = seed});
    if (!sampler) sampler = std::make_shared<SequentialSampler>(dataset->size());
    return BatchSampler(std::move(sampler), options.batch_size, options.drop_last);
  }

  void start(bool makes_batches = true) {
    stop();
    if (running) {  // the last epoch was left early
      ++epoch;
      done = 0;
    }
    running = true;
    ++run;
    BatchSampler sampler = batch_sampler();
    sampler.set_epoch(epoch);
    recipe = std::make_shared<const Recipe>(
        Recipe{dataset, options.collate, sampler.batches(), {seed, epoch}});
    const int64_t samples = dataset->size();
    for (const auto& batch : recipe->batches)
      for (const int64_t index : batch)
        check(index >= 0 && index < samples, kOp, ": an index of the sampler must be in [0, ",
              samples, "), got ", index);
    const auto count = static_cast<int64_t>(recipe->batches.size());
    check(done <= count, kOp, ": batches_done must be at most ", count, ", got ", done);
    if (makes_batches && options.num_workers > 0 && done < count)
      prefetcher = std::make_unique<Prefetcher>(
          [recipe = recipe](int64_t batch) { return recipe->make(batch); },
          Prefetcher::Options{.first = done,
                              .last = count,
                              .workers = options.num_workers,
                              .capacity = options.prefetch * options.num_workers,
                              .timeout_s = options.timeout_s});
  }

  // Moves `current` on; false at the end of the epoch.
  bool next() {
    current = {};  // first, so that the new batch can take its memory
    if (done == static_cast<int64_t>(recipe->batches.size())) {
      stop();
      running = false;
      ++epoch;
      done = 0;
      return false;
    }
    try {
      current = prefetcher ? prefetcher->next(recipe->label(done)) : recipe->make(done);
    } catch (...) {
      stop();  // the workers are past this batch, so there is no going on from here
      ++run;
      throw;
    }
    ++done;
    return true;
  }

  void stop() {
    prefetcher.reset();
    recipe.reset();
    current = {};
  }

  std::shared_ptr<const Dataset> dataset;
  DataLoaderOptions options;
  uint64_t seed;
  int64_t epoch = 0;
  int64_t done = 0;      // batches of `epoch` handed out
  bool running = false;  // begin() started `epoch` and it has not ended
  uint64_t run = 0;      // counts begin()
  std::shared_ptr<const Recipe> recipe;
  std::unique_ptr<Prefetcher> prefetcher;
  Batch current;
};

DataLoader::DataLoader(std::shared_ptr<const Dataset> dataset, DataLoaderOptions options)
    : impl_(std::make_unique<Impl>(std::move(dataset), std::move(options))) {}

DataLoader::DataLoader(const Dataset& dataset, DataLoaderOptions options)
    : DataLoader(std::shared_ptr<const Dataset>(std::shared_ptr<void>(), &dataset),
                 std::move(options)) {}

DataLoader::~DataLoader() = default;
DataLoader::DataLoader(DataLoader&&) noexcept = default;
DataLoader& DataLoader::operator=(DataLoader&&) noexcept = default;

DataLoader::Iterator DataLoader::begin() {
  impl_->start();
  return Iterator(impl_.get(), impl_->run);
}

const std::vector<std::vector<int64_t>>& DataLoader::begin_indices() {
  impl_->start(false);
  return impl_->recipe->batches;
}

void DataLoader::pass(int64_t batches) {
  check(impl_->running && impl_->recipe != nullptr, kOp,
        ": pass must follow begin_indices, got none");
  const auto left = static_cast<int64_t>(impl_->recipe->batches.size()) - impl_->done;
  check(batches >= 0 && batches <= left, kOp, ": pass must be of 0 to the ", left,
        " batches that are left, got ", batches);
  impl_->done += batches;
}

int64_t DataLoader::size() const { return impl_->batch_sampler().size(); }
int64_t DataLoader::epoch() const { return impl_->epoch; }
const Dataset& DataLoader::dataset() const { return *impl_->dataset; }
const DataLoaderOptions& DataLoader::options() const { return impl_->options; }

void DataLoader::set_epoch(int64_t epoch) {
  check(epoch >= 0, kOp, ": epoch must not be negative, got ", epoch);
  if (epoch == impl_->epoch && !impl_->running) return;  // may stand at a loaded position
  impl_->stop();
  ++impl_->run;
  impl_->running = false;
  impl_->epoch = epoch;
  impl_->done = 0;
}

DataLoaderState DataLoader::state() const { return {impl_->epoch, impl_->done, impl_->seed}; }

void DataLoader::load_state(const DataLoaderState& state) {
  check(state.epoch >= 0, kOp, ": epoch of the state must not be negative, got ", state.epoch);
  check(state.batches_done >= 0 && state.batches_done <= size(), kOp,
        ": batches_done of the state must be 0 to ", size(), ", got ", state.batches_done,
        "; the state belongs to another dataset or batch_size");
  impl_->stop();
  ++impl_->run;
  impl_->running = false;
  impl_->epoch = state.epoch;
  impl_->done = state.batches_done;
  impl_->seed = state.seed;
}

DataLoader::Iterator::Iterator(Impl* impl, uint64_t run) : impl_(impl), run_(run) { advance(); }

void DataLoader::Iterator::advance() { ended_ = !impl_->next(); }

const Batch& DataLoader::Iterator::operator*() const {
  check(!ended_ && run_ == impl_->run, kOp,
        ": an iterator must be of the last begin() and not at the end, got another");
  return impl_->current;
}

DataLoader::Iterator& DataLoader::Iterator::operator++() {
  check(!ended_ && run_ == impl_->run, kOp,
        ": an iterator must be of the last begin() and not at the end, got another");
  advance();
  return *this;
}

}  // namespace cairn::data
