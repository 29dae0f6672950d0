// Images held in memory as bytes, with their class labels.
// Invariant: a batch made in one pass through the byte table equals the stacked samples bit for
// bit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cairn/data/dataset.h"
#include "cairn/data/transform.h"

namespace cairn::data {

class ImageDataset : public Dataset {
 public:
  // images: u8 [N, H, W] or [N, H, W, C] on the CPU, any strides. targets: i64 [N].
  // Where `transform` is ToTensor with any Normalize behind it, batches come from one table lookup
  // per byte; everything else goes sample by sample.
  ImageDataset(Tensor images, Tensor targets, Compose transform = {},
               std::vector<std::string> classes = {});

  int64_t size() const override { return images_.size(0); }
  Sample get(int64_t index) const override { return get_random(index, {}); }
  Sample get_random(int64_t index, const DrawKey& key) const override;
  bool collate(std::span<const int64_t> indices, const DrawKey& key, Batch& batch) const override;

  const Tensor& images() const { return images_; }
  const Tensor& targets() const { return targets_; }
  // What each byte becomes, where batches come from the table; else null.
  const ByteTable* table() const { return table_.get(); }
  // Names in label order; empty where none were given.
  const std::vector<std::string>& classes() const { return classes_; }

 private:
  Tensor images_;
  Tensor targets_;
  Compose transform_;
  std::vector<std::string> classes_;
  std::shared_ptr<const ByteTable> table_;  // null: sample by sample
};

// u8 labels to i64 ones. Throws "op: label of image 3 must be below 10, got 12". `transform`, where
// given, maps each label once, after the check.
Tensor make_targets(const Tensor& labels, int64_t class_count, const char* op,
                    const std::function<int64_t(int64_t)>& transform = {});

}  // namespace cairn::data
