// Worker threads that make batches ahead of the consumer.
// Invariant: batches come out in order whatever order they were made in, and at most `capacity` of
// them are made or waiting.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cairn/data/batch.h"

namespace cairn::data {

class Prefetcher {
 public:
  struct Options {
    int64_t first = 0;  // batches first … last - 1
    int64_t last = 0;
    int workers = 1;        // at least 1
    int64_t capacity = 2;   // at least 1
    double timeout_s = 60;  // 0: wait for ever
  };
  // fetch(b) is called from the workers and must own all it uses, see the destructor.
  Prefetcher(std::function<Batch(int64_t batch)> fetch, const Options& options);
  // Stops the workers and waits for them at most timeout_s; a worker that hangs in fetch() for
  // longer is left behind with its copy of `fetch`.
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // The next batch; call it at most last - first times. Throws what fetch() threw, or Error when
  // nothing came for timeout_s; `label` names the batch there.
  Batch next(const std::string& label);

 private:
  struct Shared;
  static void work(const std::shared_ptr<Shared>& shared);

  std::shared_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
};

}  // namespace cairn::data
