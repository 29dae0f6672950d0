// The tables of the two sets. Invariant: checksums are of the uncompressed files, because
// distributions compress them anew.
#include "cairn/data/mnist.h"

namespace cairn::data {
namespace {

constexpr int64_t kClassCount = 10;
constexpr int64_t kSide = 28;

struct SplitSums {
  uint32_t images;
  uint32_t labels;
};
constexpr SplitSums kFashionTrain{0xb4f29f28, 0x741a4657};
constexpr SplitSums kFashionTest{0x678fe0b1, 0x80142c1f};

IdxSet split_of(IdxSet set, bool train) {
  const int64_t count = train ? 60000 : 10000;
  const std::string prefix = train ? "train" : "t10k";
  set.images.name = prefix + "-images-idx3-ubyte";
  set.images.shape = {count, kSide, kSide};
  set.labels.name = prefix + "-labels-idx1-ubyte";
  set.labels.shape = {count};
  return set;
}

IdxSet fashion_set(bool train) {
  IdxSet set = split_of({.op = "fashion_mnist",
                         .title = "Fashion-MNIST",
                         .folder = "FashionMNIST",
                         .system_folders = {"/usr/share/datasets/fashion-mnist"},
                         .package = "dataset-fashion-mnist",
                         .mirrors = {kFashionMnistMirror},
                         .images = {},
                         .labels = {}},
                        train);
  const SplitSums sums = train ? kFashionTrain : kFashionTest;
  set.images.crc32 = sums.images;
  set.labels.crc32 = sums.labels;
  return set;
}

IdxSet mnist_set(bool train) {
  IdxSet set = split_of({.op = "mnist",
                         .title = "MNIST",
                         .folder = "MNIST",
                         .system_folders = {},
                         .package = {},
                         .mirrors = {kMnistMirror},
                         .images = {},
                         .labels = {}},
                        train);
  const SplitSums fashion = train ? kFashionTrain : kFashionTest;
  set.images.not_crc32 = fashion.images;
  set.labels.not_crc32 = fashion.labels;
  return set;
}

IdxSetOptions places(const MnistOptions& options) {
  return {.root = options.root,
          .download = options.download,
          .mirror = options.mirror,
          .stall_timeout_s = options.stall_timeout_s};
}

ImageDataset load(const IdxSet& set, const MnistOptions& options,
                  const std::vector<std::string>& classes) {
  const IdxSetData data = load_idx_set(set, places(options));
  return ImageDataset(data.images,
                      make_targets(data.labels, kClassCount, set.op, options.target_transform),
                      options.transform, classes);
}

}  // namespace

FashionMNIST::FashionMNIST(const MnistOptions& options)
    : ImageDataset(load(fashion_set(options.train), options, class_names())) {}

void FashionMNIST::fetch(const MnistOptions& options) {
  fetch_idx_set(fashion_set(options.train), places(options));
}

const std::vector<std::string>& FashionMNIST::class_names() {
  static const std::vector<std::string> names{"T-shirt/top", "Trouser",   "Pullover", "Dress",
                                              "Coat",        "Sandal",    "Shirt",    "Sneaker",
                                              "Bag",         "Ankle boot"};
  return names;
}

MNIST::MNIST(const MnistOptions& options)
    : ImageDataset(load(mnist_set(options.train), options, class_names())) {}

void MNIST::fetch(const MnistOptions& options) {
  fetch_idx_set(mnist_set(options.train), places(options));
}

const std::vector<std::string>& MNIST::class_names() {
  static const std::vector<std::string> names{"0 - zero",  "1 - one",  "2 - two", "3 - three",
                                              "4 - four",  "5 - five", "6 - six", "7 - seven",
                                              "8 - eight", "9 - nine"};
  return names;
}

}  // namespace cairn::data
