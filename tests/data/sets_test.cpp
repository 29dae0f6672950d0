// The named datasets: where they are looked for, what is refused, and the real Fashion-MNIST.
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "cairn/data/cifar.h"
#include "cairn/data/data_loader.h"
#include "cairn/data/idx_set.h"
#include "cairn/data/mnist.h"
#include "tests/catch.h"
#include "tests/data/support.h"

using namespace cairn;
using namespace cairn::test;
namespace fs = std::filesystem;

namespace {

const std::string kSystemFolder = "/usr/share/datasets/fashion-mnist";

// Whether the package with the real set is installed. In CI it must be.
bool have_fashion_mnist() {
  const bool have = fs::exists(kSystemFolder + "/train-images-idx3-ubyte.gz");
  if (!have && std::getenv("CI") != nullptr) FAIL("package dataset-fashion-mnist is not installed");
  if (!have) WARN("package dataset-fashion-mnist is not installed: its tests did not run");
  return have;
}

const Bytes kImages = idx_bytes({4, 2, 2});
const Bytes kLabels = idx_bytes({4});

data::IdxSet tiny_set() {
  return {.op = "tiny",
          .title = "Tiny",
          .folder = "Tiny",
          .system_folders = {},
          .package = {},
          .mirrors = {},
          .images = {.name = "images", .shape = {4, 2, 2}},
          .labels = {.name = "labels", .shape = {4}}};
}

// A file of zeros, without taking the disk's space.
void make_zeros(const std::string& path, uintmax_t bytes) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path).close();
  fs::resize_file(path, bytes);
}

// CIFAR records: label (r + shift) % 10, byte i of record r is (r + i) % 256.
Bytes cifar_bytes(int records, int shift = 0) {
  Bytes out;
  for (int r = 0; r < records; ++r) {
    out.push_back(static_cast<uint8_t>((r + shift) % 10));
    for (int i = 0; i < 3072; ++i) out.push_back(static_cast<uint8_t>(r + i));
  }
  return out;
}

}  // namespace

TEST_CASE("data: a set is looked for in folder/raw, in root and in the system's folders") {
  for (const char* place : {"root/Tiny/raw", "root", "system"}) {
    for (const bool packed : {false, true}) {
      const TempFolder folder;
      const std::string base = folder.file(place);
      write_file(base + (packed ? "/images.gz" : "/images"), packed ? gzip(kImages) : kImages);
      write_file(base + "/labels", kLabels);
      data::IdxSet set = tiny_set();
      set.system_folders = {folder.file("system")};
      const auto loaded = data::load_idx_set(set, {.root = folder.file("root")});
      CHECK(loaded.images.shape() == Shape{4, 2, 2});
      CHECK(loaded.labels.shape() == Shape{4});
    }
  }
}

TEST_CASE("data: a set that is nowhere lists the places, and half a set does not count") {
  const TempFolder folder;
  write_file(folder.file("images"), kImages);
  data::IdxSet set = tiny_set();
  set.system_folders = {"/nonexistent/a", "/nonexistent/b"};
  const std::string root = folder.path();
  const std::string places = root + "/Tiny/raw, " + root + ", /nonexistent/a, /nonexistent/b";
  CHECK(error_of([&] { data::load_idx_set(set, {.root = root}); }) ==
        "tiny: files images and labels (plain or .gz) must be in one of " + places +
            ", got none; set download = true");
  set.package = "dataset-tiny";
  CHECK(error_of([&] { data::load_idx_set(set, {.root = root}); }) ==
        "tiny: files images and labels (plain or .gz) must be in one of " + places +
            ", got none; set download = true or install the package dataset-tiny");
}

TEST_CASE("data: a set's dimensions and checksums are checked") {
  const TempFolder folder;
  const std::string images = write_file(folder.file("images"), kImages);
  const std::string labels = write_file(folder.file("labels"), idx_bytes({3}));
  const auto load = [&](const data::IdxSet& set) {
    return error_of([&] { data::load_idx_set(set, {.root = folder.path()}); });
  };
  data::IdxSet set = tiny_set();
  CHECK(load(set) == "tiny: dimensions of '" + labels + "' must be [4], got [3]");
  set.images.crc32 = 0x0012ABCD;
  char sum[16];
  std::snprintf(sum, sizeof(sum), "0x%08x", crc_of(kImages));
  CHECK(load(set) == "tiny: CRC-32 of the content of '" + images + "' must be 0x0012abcd, got " +
                         sum + "; delete the file to load it again");
  set.images.crc32 = {};
  set.images.not_crc32 = crc_of(kImages);
  CHECK(load(set) == "tiny: '" + images + "' must hold Tiny, got Fashion-MNIST");
}

TEST_CASE("data: labels are checked and mapped") {
  const Tensor labels = tensor<uint8_t>({3, 0, 9, 10});
  CHECK(error_of([&] { data::make_targets(labels, 10, "tiny"); }) ==
        "tiny: label of image 3 must be below 10, got 10");
  const Tensor mapped = data::make_targets(labels, 11, "tiny", [](int64_t l) { return l * l; });
  CHECK(same_bits(mapped, tensor<int64_t>({9, 0, 81, 100})));
}

TEST_CASE("data: default_root follows the environment") {
  const SetEnvironment home("HOME", "/home/somebody");
  {
    const SetEnvironment root("CAIRN_DATA_ROOT", "here");
    CHECK(data::default_root() == "here");
  }
  const SetEnvironment root("CAIRN_DATA_ROOT", nullptr);
  {
    const SetEnvironment cache("XDG_CACHE_HOME", "/cache");
    CHECK(data::default_root() == "/cache/cairn/data");
  }
  {
    const SetEnvironment cache("XDG_CACHE_HOME", "relative");  // to be ignored
    CHECK(data::default_root() == "/home/somebody/.cache/cairn/data");
  }
  const SetEnvironment cache("XDG_CACHE_HOME", nullptr);
  CHECK(data::default_root() == "/home/somebody/.cache/cairn/data");
}

TEST_CASE("data: class names in label order") {
  const std::vector<std::string> fashion{"T-shirt/top", "Trouser",   "Pullover", "Dress",
                                         "Coat",        "Sandal",    "Shirt",    "Sneaker",
                                         "Bag",         "Ankle boot"};
  CHECK(data::FashionMNIST::class_names() == fashion);
  CHECK(data::MNIST::class_names().size() == 10);
  CHECK(data::MNIST::class_names()[7] == "7 - seven");
  const std::vector<std::string> cifar{"airplane", "automobile", "bird",  "cat",  "deer",
                                       "dog",      "frog",       "horse", "ship", "truck"};
  CHECK(data::CIFAR10::class_names() == cifar);
}

TEST_CASE("data: Fashion-MNIST as the package ships it") {
  if (!have_fashion_mnist()) return;
  const TempFolder folder;  // an empty root, so that the system's folder is used
  const data::FashionMNIST train({.root = folder.path(), .download = true});
  const data::FashionMNIST test({.root = folder.path(), .train = false});
  CHECK(train.size() == 60000);
  CHECK(test.size() == 10000);
  CHECK(folder.files().empty());
  CHECK(train.classes() == data::FashionMNIST::class_names());
  std::vector<int64_t> counts(10);
  for (int64_t i = 0; i < train.size(); ++i)
    ++counts[static_cast<size_t>(train.targets().data<int64_t>()[i])];
  CHECK(counts == std::vector<int64_t>(10, 6000));
  const data::Sample first = train.get(0);  // an ankle boot
  CHECK(first.target.item<int64_t>() == 9);
  CHECK(first.input.shape() == Shape{28, 28});
  CHECK(test.get(9999).target.item<int64_t>() == 5);
}

TEST_CASE("data: Fashion-MNIST through the loader of the README") {
  if (!have_fashion_mnist()) return;
  data::Compose transform{data::ToTensor(), data::Normalize({0.28604f}, {0.32025f})};
  data::FashionMNIST train_data(
      {.root = data::default_root(), .train = true, .download = true, .transform = transform});
  data::DataLoader loader(train_data, {.batch_size = 128, .shuffle = true});
  CHECK(loader.size() == 469);
  int64_t batches = 0;
  int64_t last = 0;
  double sum = 0;
  std::vector<int64_t> counts(10);
  for (const Batch& batch : loader) {
    ++batches;
    last = batch.size();
    REQUIRE(batch.input.shape() == Shape{last, 1, 28, 28});
    const float* x = batch.input.data<float>();
    for (int64_t i = 0; i < batch.input.numel(); ++i) sum += x[i];
    for (int64_t i = 0; i < last; ++i)
      ++counts[static_cast<size_t>(batch.target.data<int64_t>()[i])];
  }
  CHECK(batches == 469);
  CHECK(last == 96);
  CHECK(counts == std::vector<int64_t>(10, 6000));
  // Mean and deviation of the set are those of Normalize, given there to five digits: the
  // normalised mean is within (half a unit of the last digit) / 0.32.
  CHECK(std::abs(sum / (60000.0 * 784)) < 0.000005 / 0.32025 + 1e-6);
}

TEST_CASE("data: a changed copy of Fashion-MNIST is refused, and MNIST is not Fashion-MNIST") {
  if (!have_fashion_mnist()) return;
  const TempFolder folder;
  for (const char* name : {"t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"})
    fs::copy_file(kSystemFolder + "/" + name, folder.file(name));
  const std::string images = folder.file("t10k-images-idx3-ubyte.gz");
  CHECK(error_of([&] { data::MNIST({.root = folder.path(), .train = false}); }) ==
        "mnist: '" + images + "' must hold MNIST, got Fashion-MNIST");
  Bytes changed = idx_bytes({10000, 28, 28});
  fs::remove(images);
  const std::string plain = write_file(folder.file("t10k-images-idx3-ubyte"), changed);
  CHECK(error_of([&] { data::FashionMNIST({.root = folder.path(), .train = false}); })
            .find("fashion_mnist: CRC-32 of the content of '" + plain +
                  "' must be 0x678fe0b1, got 0x") == 0);
}

TEST_CASE("data: MNIST takes files of its size and lists where it looked") {
  const TempFolder folder;
  const std::string root = folder.path();
  CHECK(error_of([&] { data::MNIST({.root = root, .train = false}); }) ==
        "mnist: files t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (plain or .gz) must be in "
        "one of " +
            root + "/MNIST/raw, " + root + ", got none; set download = true");
  write_file(folder.file("MNIST/raw/t10k-images-idx3-ubyte"), idx_bytes({10000, 28, 28}));
  const std::string labels =
      write_file(folder.file("MNIST/raw/t10k-labels-idx1-ubyte"), idx_bytes({10000}, 10));
  const data::MNIST set({.root = root, .train = false, .target_transform = [](int64_t label) {
                           return label == 7 ? 1 : 0;
                         }});
  CHECK(set.size() == 10000);
  CHECK(set.get(7).target.item<int64_t>() == 1);
  CHECK(set.get(8).target.item<int64_t>() == 0);
  write_file(labels, idx_bytes({10000}, 11));
  CHECK(error_of([&] { data::MNIST({.root = root, .train = false}); }) ==
        "mnist: label of image 10 must be below 10, got 10");
}

TEST_CASE("data: CIFAR-10 records") {
  const TempFolder folder;
  const std::string a = write_file(folder.file("a"), cifar_bytes(3));
  const std::string b = write_file(folder.file("b"), gzip(cifar_bytes(3, 5)));
  const data::CifarData read = data::read_cifar10({a, b}, 3);
  CHECK(same_bits(read.targets, tensor<int64_t>({0, 1, 2, 5, 6, 7})));
  CHECK(read.images.shape() == Shape{6, 32, 32, 3});
  const data::ImageDataset set(read.images, read.targets, data::ToTensor());
  const Tensor image = set.get(2).input;
  REQUIRE(image.shape() == Shape{3, 32, 32});
  for (int i = 0; i < 3072; ++i)
    REQUIRE(image.data<float>()[i] == static_cast<float>((2 + i) % 256) / 255.0f);
}

TEST_CASE("data: CIFAR-10 errors") {
  const TempFolder folder;
  const std::string path = folder.file("f");
  const auto read = [&](const Bytes& bytes) {
    write_file(path, bytes);
    return error_of([&] { data::read_cifar10({path}, 3); });
  };
  const Bytes good = cifar_bytes(3);
  CHECK(read(good) == "no error");
  CHECK(read(Bytes(good.begin(), good.end() - 1)) ==
        "cifar10: '" + path + "' must have 9219 bytes, got 9218");
  CHECK(read(Bytes(good.begin(), good.begin() + 2 * 3073)) ==
        "cifar10: '" + path + "' must have 9219 bytes, got 6146");
  Bytes more = good;
  more.push_back(0);
  CHECK(read(more) == "cifar10: '" + path + "' must have 9219 bytes, got more");
  Bytes label = good;
  label[3073] = 10;
  CHECK(read(label) == "cifar10: label of record 1 of '" + path + "' must be below 10, got 10");
  const std::string root = folder.path();
  CHECK(error_of([&] { data::CIFAR10({.root = root}); }) ==
        "cifar10: 5 files data_batch_1.bin … data_batch_5.bin must be in " + root +
            "/cifar-10-batches-bin or " + root +
            ", got fewer; unpack cifar-10-binary.tar.gz there, it is not downloaded");
}

TEST_CASE("data: CIFAR-10 finds its files in either folder") {
  const TempFolder folder;
  make_zeros(folder.file("test_batch.bin"), 10000 * 3073);
  const data::CIFAR10 test({.root = folder.path(), .train = false});
  CHECK(test.size() == 10000);
  for (int i = 1; i <= 5; ++i)
    make_zeros(folder.file(cat("cifar-10-batches-bin/data_batch_", i, ".bin")), 10000 * 3073);
  const data::CIFAR10 train(
      {.root = folder.path(), .target_transform = [](int64_t label) { return label + 1; }});
  CHECK(train.size() == 50000);
  CHECK(train.get(49999).target.item<int64_t>() == 1);
}
