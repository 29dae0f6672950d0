// The CIFAR-10 reader. Invariant: see cifar.h.
#include "cairn/data/cifar.h"

#include <filesystem>

#include "cairn/data/byte_reader.h"
#include "cairn/data/idx_set.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"

namespace cairn::data {
namespace {

namespace fs = std::filesystem;

constexpr const char* kOp = "cifar10";
constexpr int64_t kClassCount = 10;
constexpr int64_t kSide = 32;
constexpr int64_t kImageBytes = 3 * kSide * kSide;
constexpr int64_t kRecordsPerFile = 10000;

void read_records(const std::string& path, int64_t records, uint8_t* labels, uint8_t* images) {
  const std::string name = cat("'", path, "'");
  ByteReader reader(path, kOp, name);
  const int64_t bytes = records * (1 + kImageBytes);
  int64_t got = 0;
  for (int64_t r = 0; r < records; ++r) {
    const size_t label = reader.read(labels + r, 1);
    const size_t image =
        label == 0 ? 0 : reader.read(images + r * kImageBytes, static_cast<size_t>(kImageBytes));
    got += static_cast<int64_t>(label + image);
    check(static_cast<int64_t>(image) == kImageBytes, kOp, ": ", name, " must have ", bytes,
          " bytes, got ", got);
    check(labels[r] < kClassCount, kOp, ": label of record ", r, " of ", name,
          " must be below 10, got ", labels[r]);
  }
  check(reader.at_end(), kOp, ": ", name, " must have ", bytes, " bytes, got more");
}

CifarData load(const CifarOptions& options) {
  const std::string root = options.root.empty() ? default_root() : options.root;
  std::vector<std::string> names{"test_batch.bin"};
  if (options.train) {
    names.clear();
    for (int i = 1; i <= 5; ++i) names.push_back(cat("data_batch_", i, ".bin"));
  }
  const std::string own_folder = (fs::path(root) / "cifar-10-batches-bin").string();
  for (const std::string& folder : {own_folder, root}) {
    std::vector<std::string> paths;
    for (const std::string& name : names) {
      std::error_code error;
      const fs::path path = fs::path(folder) / name;
      if (fs::exists(path, error)) paths.push_back(path.string());
    }
    if (paths.size() == names.size())
      return read_cifar10(paths, kRecordsPerFile, options.target_transform);
  }
  fail(kOp, ": ", names.size(), names.size() == 1 ? " file " : " files ", names.front(),
       names.size() == 1 ? "" : " … ", names.size() == 1 ? "" : names.back(), " must be in ",
       own_folder, " or ", root,
       ", got fewer; unpack cifar-10-binary.tar.gz there, it is not downloaded");
}

}  // namespace

CifarData read_cifar10(const std::vector<std::string>& paths, int64_t records,
                       const std::function<int64_t(int64_t)>& target_transform) {
  check(records >= 0, kOp, ": records must not be negative, got ", records);
  const int64_t total = checked_mul(records, static_cast<int64_t>(paths.size()), kOp);
  const Tensor labels = empty({total}, {.dtype = DType::u8});
  const Tensor planes = empty({total, 3, kSide, kSide}, {.dtype = DType::u8});
  uint8_t* label = labels.data<uint8_t>();
  uint8_t* image = planes.data<uint8_t>();
  for (const std::string& path : paths) {
    read_records(path, records, label, image);
    label += records;
    image += records * kImageBytes;
  }
  return {raw::permute(planes, {0, 2, 3, 1}),
          make_targets(labels, kClassCount, kOp, target_transform)};
}

CIFAR10::CIFAR10(const CifarOptions& options)
    : ImageDataset([&] {
        CifarData data = load(options);
        return ImageDataset(data.images, data.targets, options.transform, class_names());
      }()) {}

const std::vector<std::string>& CIFAR10::class_names() {
  static const std::vector<std::string> names{"airplane", "automobile", "bird",  "cat",  "deer",
                                              "dog",      "frog",       "horse", "ship", "truck"};
  return names;
}

}  // namespace cairn::data
