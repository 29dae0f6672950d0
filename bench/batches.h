// The batches of the model jobs.
// Invariant: batch i is the same numbers as the peer's batch i (bench/peer_models.py).
#pragma once

#include <cairn/cairn.h>

#include <string>
#include <utility>
#include <vector>

#include "bench/jobs.h"

namespace cairn::bench {

class Batches {
 public:
  virtual ~Batches() = default;
  // Batch 0, 1, … of `count`, then from the front again.
  Batch next() { return make(std::exchange(next_, next_ + step_) % count_); }
  // From now on only every size-th batch, from number `rank` on.
  void share(int rank, int size) {
    next_ = rank;
    step_ = size;
  }

 protected:
  explicit Batches(int64_t count) : count_(count) {}

 private:
  virtual Batch make(int64_t index) = 0;

  int64_t count_;
  int64_t next_ = 0, step_ = 1;
};

// request: size, channels, batch, batches and data; for the transformer tokens instead of size.
std::unique_ptr<Batches> make_batches(const json& request);

}  // namespace cairn::bench
