// ResidentData: a data set that lies on the device, and batches that are made there.
// Invariant: the batches are, bit for bit and in order, those of the loader it was made from, whose
// position it advances; the place in the epoch stands in device memory, so that a captured step
// that makes its batch takes the next one at each launch.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cairn/data/data_loader.h"

namespace cairn::trainer {

class ResidentData {
 public:
  // Null where the loader's batches are not simply rows of tensors, or images behind a byte table,
  // in the CPU's memory (also behind a Subset), or where they take more than max_bytes.
  static std::unique_ptr<ResidentData> make(data::DataLoader& loader, Device device,
                                            int64_t max_bytes);

  // Starts the epoch that the loader stands at, or goes on in its middle.
  void begin_epoch();
  // Batches of the epoch that are left, and how many of the next ones have the next one's size.
  int64_t left() const { return static_cast<int64_t>(sizes_.size()) - done_; }
  int64_t alike() const;
  int64_t next_size() const { return sizes_[static_cast<size_t>(done_)]; }

  // Queues what makes the next batch, of `size` samples, and moves the place on the device.
  Batch make(int64_t size) const;
  // Counts batches that were made, in the loader too.
  void pass(int64_t batches);
  Batch next();

 private:
  explicit ResidentData(data::DataLoader& loader) : loader_(&loader) {}

  data::DataLoader* loader_;
  std::vector<int64_t> subset_;  // sample i of the loader is row subset_[i]; empty: row i
  Tensor images_, table_;        // or, where there is no table, rows_
  Tensor rows_;
  Tensor targets_;  // may be undefined
  Tensor order_;    // i64: rows of the whole epoch
  Tensor cursor_;   // i64 0-d: how many of them are done
  std::vector<int64_t> sizes_;
  int64_t done_ = 0;
};

}  // namespace cairn::trainer
