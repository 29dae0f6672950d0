// DataLoader: a dataset as a sequence of batches.
// Invariant: the batches of an epoch depend on dataset, options, seed and epoch alone: not on the
// number of workers, and not on whether the epoch was taken up in its middle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <span>
#include <vector>

#include "cairn/data/batch.h"
#include "cairn/data/dataset.h"
#include "cairn/data/sampler.h"

namespace cairn::data {

struct DataLoaderOptions {
  int64_t batch_size = 1;
  bool shuffle = false;  // RandomSampler from `seed`; not together with `sampler`
  int num_workers = 0;   // threads; 0: batches are made by the thread that asks for them, which is
                         // right where a batch costs little, as with in-memory images
  int64_t prefetch = 2;  // batches ahead, per worker
  bool drop_last = false;                 // leave out a shorter last batch
  uint64_t seed = 0;                      // of the shuffle and of random transforms
  std::shared_ptr<Sampler> sampler = {};  // empty: sequential, or random with `shuffle`
  std::function<Batch(std::span<const Sample>)> collate = {};  // empty: the dataset's own fast way,
                                                               // else stack_samples
  double timeout_s = 60;  // longest wait for a worker's batch; 0: no limit
};

// Where a loader stands. Enough to go on from there, with the same dataset and options.
struct DataLoaderState {
  int64_t epoch = 0;         // the epoch in progress, or the next one
  int64_t batches_done = 0;  // batches of it that were handed out, the current one included
  uint64_t seed = 0;

  bool operator==(const DataLoaderState&) const = default;
};

class DataLoader {
 public:
  // The caller keeps `dataset` alive. Throws Error on options that make no sense, on an empty
  // dataset, and where no batch would come out.
  explicit DataLoader(const Dataset& dataset, DataLoaderOptions options = {});
  explicit DataLoader(const Dataset&& dataset, DataLoaderOptions options = {}) = delete;
  explicit DataLoader(std::shared_ptr<const Dataset> dataset, DataLoaderOptions options = {});
  ~DataLoader();
  DataLoader(DataLoader&&) noexcept;
  DataLoader& operator=(DataLoader&&) noexcept;

  class Iterator;

  // Starts an epoch, or goes on with the one given to load_state(). The epoch counter advances at
  // the end of an epoch, and here where the last epoch was left early. Earlier iterators end.
  //
  // An exception of dataset, transform or collate comes out here or at ++ as an Error that names
  // the sample. It ends the iterator; load_state(state()) and begin() try the failed batch again.
  Iterator begin();
  std::default_sentinel_t end() const { return {}; }

  // Starts an epoch as begin() does, for a consumer that makes the batches itself, say from a copy
  // of the dataset on a GPU: the samples of all the epoch's batches. The first state().batches_done
  // of them are done. Valid until the next begin() or set_epoch().
  const std::vector<std::vector<int64_t>>& begin_indices();
  // Such a consumer has made the next `batches` ones; state() counts them.
  void pass(int64_t batches);

  // Number of batches in an epoch.
  int64_t size() const;
  // The epoch that begin() will start; the one in progress, inside the loop.
  int64_t epoch() const;
  // The next begin() starts this epoch. After load_state() of the same epoch its position is kept,
  // so that a training loop may call this at every epoch. epoch >= 0, else Error.
  void set_epoch(int64_t epoch);

  DataLoaderState state() const;
  // The next begin() gives the batches from batches_done on. Throws Error on a state that does not
  // fit this loader.
  void load_state(const DataLoaderState& state);

  const Dataset& dataset() const;
  const DataLoaderOptions& options() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

class DataLoader::Iterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = Batch;
  using difference_type = std::ptrdiff_t;
  using pointer = const Batch*;
  using reference = const Batch&;

  // Valid until the next ++ or begin(); a copy of the Batch keeps its tensors.
  const Batch& operator*() const;
  const Batch* operator->() const { return &**this; }
  Iterator& operator++();
  void operator++(int) { ++*this; }
  bool operator==(std::default_sentinel_t) const { return ended_; }

 private:
  friend class DataLoader;
  Iterator(Impl* impl, uint64_t run);
  void advance();

  Impl* impl_;
  uint64_t run_;  // which begin() made it
  bool ended_ = false;
};

}  // namespace cairn::data
