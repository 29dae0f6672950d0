// CIFAR-10 in its binary version.
// Invariant: every record is a label below 10 and 3 planes (red, green, blue) of 32 x 32 bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cairn/data/image_dataset.h"

namespace cairn::data {

struct CifarOptions {
  std::string root = {};  // empty: default_root()
  bool train = true;      // data_batch_1.bin … data_batch_5.bin, else test_batch.bin
  Compose transform = {};
  std::function<int64_t(int64_t)> target_transform = {};  // applied once to each label
};

// Reads <root>/cifar-10-batches-bin/*.bin or <root>/*.bin, 10,000 records each, gzipped or not.
// There is no download: unpack cifar-10-binary.tar.gz into root.
class CIFAR10 : public ImageDataset {
 public:
  explicit CIFAR10(const CifarOptions& options);
  static const std::vector<std::string>& class_names();
};

struct CifarData {
  Tensor images;   // u8 [N, 32, 32, 3], a view of planes [N, 3, 32, 32]
  Tensor targets;  // i64 [N]
};

// Reads files of `records` records each, one behind another. Throws Error "cifar10: …" on a size
// that is not records * 3073 bytes or a label of 10 or more.
CifarData read_cifar10(const std::vector<std::string>& paths, int64_t records,
                       const std::function<int64_t(int64_t)>& target_transform = {});

}  // namespace cairn::data
