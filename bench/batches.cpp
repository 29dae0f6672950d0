// Images from the front of Fashion-MNIST, resized by nearest and repeated over the channels, and
// token sequences from the parity formula.
// Invariant: see batches.h.
#include "bench/batches.h"

#include <filesystem>

#include "bench/models.h"
#include "cairn/data/byte_reader.h"
#include "tests/parity/formula.h"

namespace cairn::bench {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSide = 28;  // of an image in the file
constexpr float kMean = 0.28604f, kStd = 0.32025f;
constexpr int64_t kTokenTensor = 3000;  // formula's tensor number of batch 0's tokens
const char* const kImageFile = "train-images-idx3-ubyte";
const char* const kLabelFile = "train-labels-idx1-ubyte";

bool holds_fashion_mnist(const fs::path& folder) {
  const auto there = [&](const char* stem) {
    return fs::exists(folder / stem) || fs::exists(folder / (std::string(stem) + ".gz"));
  };
  return there(kImageFile) && there(kLabelFile);
}

// The first `count` bytes behind the header of an IDX file, gzipped or not. Not the whole file:
// peak memory and the start are rows.
std::vector<uint8_t> read_front(const std::string& folder, const char* stem, size_t header,
                                size_t count) {
  std::string path = folder + "/" + stem;
  if (!fs::exists(path)) path += ".gz";
  data::ByteReader reader(path, "setup", path);
  std::vector<uint8_t> bytes(header);
  check(reader.read(bytes.data(), header) == header, "setup: ", path, " must have a header");
  bytes.resize(count);
  const size_t got = reader.read(bytes.data(), count);
  check(got == count, "setup: ", path, " must hold ", count, " bytes of data, got ", got);
  return bytes;
}

class Images final : public Batches {
 public:
  explicit Images(const json& request)
      : Batches(request.at("batches")),
        size_(request.at("size")),
        channels_(request.at("channels")),
        batch_(request.at("batch")) {
    const auto count = static_cast<size_t>(request.at("batches").get<int64_t>() * batch_);
    const std::string folder = request.at("data");
    images_ = read_front(folder, kImageFile, 16, count * kSide * kSide);
    labels_ = read_front(folder, kLabelFile, 8, count);
  }

 private:
  Batch make(int64_t index) override {
    const int64_t first = index * batch_;
    const Shape shape{batch_, channels_, size_, size_};
    Tensor input = channels_ == 1 ? empty(shape) : empty_channels_last(shape);
    Tensor target = empty({batch_}, {.dtype = DType::i64});
    float* out = input.data<float>();
    for (int64_t n = 0; n < batch_; ++n) {
      const uint8_t* image = images_.data() + (first + n) * kSide * kSide;
      for (int64_t y = 0; y < size_; ++y) {
        for (int64_t x = 0; x < size_; ++x) {
          const uint8_t byte = image[y * kSide / size_ * kSide + x * kSide / size_];
          const float value = (static_cast<float>(byte) / 255.0f - kMean) / kStd;
          for (int64_t c = 0; c < channels_; ++c) *out++ = value;  // channels last, or one
        }
      }
      target.data<int64_t>()[n] = labels_[static_cast<size_t>(first + n)];
    }
    return {input, target};
  }

  int64_t size_, channels_, batch_;
  std::vector<uint8_t> images_, labels_;
};

// Values of unit variance; sample i of a batch has class i mod 10.
class Tokens final : public Batches {
 public:
  explicit Tokens(const json& request)
      : Batches(request.at("batches")),
        tokens_(request.at("tokens")),
        batch_(request.at("batch")) {}

 private:
  Batch make(int64_t index) override {
    Tensor input = empty({batch_, tokens_, kWidth});
    Tensor target = empty({batch_}, {.dtype = DType::i64});
    float* out = input.data<float>();
    for (int64_t i = 0; i < input.numel(); ++i)
      out[i] = static_cast<float>(parity::value(kTokenTensor + index, i, std::sqrt(3.0)));
    for (int64_t n = 0; n < batch_; ++n) target.data<int64_t>()[n] = n % 10;
    return {input, target};
  }

  int64_t tokens_, batch_;
};

}  // namespace

std::string find_fashion_mnist(const std::string& wanted) {
  if (!wanted.empty()) {
    check(holds_fashion_mnist(wanted), "data: ", wanted, " must hold ", kImageFile, " and ",
          kLabelFile, ", plain or .gz");
    return wanted;
  }
  const fs::path root = data::default_root();
  const fs::path raw = root / "FashionMNIST" / "raw";
  for (const fs::path& folder : {raw, root, fs::path("/usr/share/datasets/fashion-mnist")})
    if (holds_fashion_mnist(folder)) return folder.string();
  data::FashionMNIST({.train = true, .download = true});
  return raw.string();
}

std::unique_ptr<Batches> make_batches(const json& request) {
  if (request.at("model") == "transformer") return std::make_unique<Tokens>(request);
  return std::make_unique<Images>(request);
}

}  // namespace cairn::bench
