// MNIST and Fashion-MNIST.
// Invariant: 60,000 training or 10,000 test images of 28 x 28 bytes, every label below 10.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cairn/data/idx_set.h"
#include "cairn/data/image_dataset.h"

namespace cairn::data {

// The mirrors that torchvision uses; each holds the four .gz files of its set.
inline constexpr const char* kFashionMnistMirror =
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/";
inline constexpr const char* kMnistMirror = "https://ossci-datasets.s3.amazonaws.com/mnist/";

struct MnistOptions {
  std::string root = {};  // empty: default_root()
  bool train = true;      // the training set, else the test set
  bool download = false;  // when the files are nowhere on this machine
  Compose transform = {};
  std::function<int64_t(int64_t)> target_transform = {};  // applied once to each label
  std::string mirror = {};      // URL of a folder with the .gz files; empty: $CAIRN_DATA_MIRROR,
                                // else the set's own
  double stall_timeout_s = 30;  // of a download
};

// Looked for in <root>/FashionMNIST/raw, <root>, and where Debian's dataset-fashion-mnist puts it;
// the content's CRC-32 is always checked.
class FashionMNIST : public ImageDataset {
 public:
  explicit FashionMNIST(const MnistOptions& options);
  // Downloads what is missing, as with `options.download`, and loads nothing: for
  // DataModule::prepare_data().
  static void fetch(const MnistOptions& options);
  static const std::vector<std::string>& class_names();
};

// Looked for in <root>/MNIST/raw and <root>. Sizes, dimensions and labels are checked, and that it
// is not Fashion-MNIST under the same names.
class MNIST : public ImageDataset {
 public:
  explicit MNIST(const MnistOptions& options);
  static void fetch(const MnistOptions& options);
  static const std::vector<std::string>& class_names();
};

}  // namespace cairn::data
