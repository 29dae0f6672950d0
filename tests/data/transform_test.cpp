// Transforms: their values, their layout rule, their random draws, and their errors.
#include "cairn/data/transform.h"

#include <cmath>
#include <set>

#include "cairn/data/image_dataset.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/data/support.h"

using namespace cairn;
using namespace cairn::test;

namespace {

// u8 image with byte i at position i % 256 of the row-major order.
Tensor byte_image(const Shape& shape) {
  Tensor t = empty(shape, {.dtype = DType::u8});
  for (int64_t i = 0; i < t.numel(); ++i) t.data<uint8_t>()[i] = static_cast<uint8_t>(i);
  return t;
}

Tensor every_byte() { return byte_image({16, 16}); }

}  // namespace

TEST_CASE("data: ToTensor and Normalize give torchvision's bits for every byte") {
  const data::Compose transform{data::ToTensor(), data::Normalize({0.28604f}, {0.32025f})};
  const Tensor y = transform(every_byte());
  REQUIRE(y.shape() == Shape{1, 16, 16});
  const float* v = y.data<float>();
  // The 256 values, little endian, of torchvision 0.29.2 on PyTorch 2.15.0.
  const auto* bytes = reinterpret_cast<const uint8_t*>(v);
  CHECK(crc_of(Bytes(bytes, bytes + 1024)) == 0xc90bc88e);
  CHECK(v[0] == -0x1.c94e86p-1f);   // -0.893177
  CHECK(v[128] == 0x1.59341ep-1f);  //  0.674225
  CHECK(v[255] == 0x1.1d5c6ep+1f);  //  2.229383
}

TEST_CASE("data: ToTensor turns bytes HWC of any strides into f32 CHW") {
  const Tensor image = byte_image({4, 5, 3});
  const Tensor y = data::ToTensor()(image);
  REQUIRE(y.shape() == Shape{3, 4, 5});
  for (int c = 0; c < 3; ++c)
    for (int h = 0; h < 4; ++h)
      for (int w = 0; w < 5; ++w)
        CHECK(y.data<float>()[(c * 4 + h) * 5 + w] ==
              static_cast<float>((h * 5 + w) * 3 + c) / 255.0f);
  const Tensor planar = raw::contiguous(raw::permute(image, {2, 0, 1}));
  CHECK(same_bits(data::ToTensor()(raw::permute(planar, {1, 2, 0})), y));
  CHECK(data::ToTensor()(empty({0, 5, 3}, {.dtype = DType::u8})).shape() == Shape{3, 0, 5});
  CHECK(error_of([] {
          data::ToTensor()(zeros({2, 2}));
        }) == "to_tensor: image must be u8 [H, W] or [H, W, C], got f32 [2, 2]");
  CHECK(error_of([] { data::ToTensor()(zeros({4}, {.dtype = DType::u8})); }) ==
        "to_tensor: image must be u8 [H, W] or [H, W, C], got u8 [4]");
}

TEST_CASE("data: Normalize works per channel and checks its arguments") {
  const Tensor x = full({3, 2, 2}, 4);
  const Tensor y = data::Normalize({1, 2, 3}, {2, -4, 0.5})(x);
  for (int i = 0; i < 4; ++i) {
    CHECK(y.data<float>()[i] == 1.5f);
    CHECK(y.data<float>()[4 + i] == -0.5f);
    CHECK(y.data<float>()[8 + i] == 2.0f);
  }
  CHECK(x.data<float>()[0] == 4);  // not in place
  using data::Normalize;
  CHECK(error_of([] {
          Normalize({1}, {1, 2});
        }) == "normalize: mean and std must have one value per channel each, got 1 and 2");
  CHECK(error_of([] { Normalize({}, {}); }) ==
        "normalize: mean and std must have one value per channel each, got 0 and 0");
  CHECK(error_of([] {
          Normalize({0, 0}, {1, 0});
        }) == "normalize: std must be finite and not 0, got 0 for channel 1");
  CHECK(error_of([] { Normalize({0}, {INFINITY}); }) ==
        "normalize: std must be finite and not 0, got inf for channel 0");
  CHECK(error_of([] { Normalize({NAN}, {1}); }).find("normalize: mean must be finite, got") == 0);
  CHECK(error_of([&] { Normalize({0}, {1})(x); }) ==
        "normalize: image must have 1 channels like mean, got 3");
  CHECK(error_of([] { Normalize({0}, {1})(every_byte()); }) ==
        "normalize: image must be f32 [C, H, W], got u8 [16, 16]; put ToTensor before it");
}

TEST_CASE("data: Compose applies in order, copies, nests, and is the identity when empty") {
  const data::Lambda add_one([](const Tensor& x) { return full_like(x, x.item() + 1); });
  const data::Lambda twice([](const Tensor& x) { return full_like(x, x.item() * 2); });
  const Tensor x = full({1}, 3);
  CHECK(data::Compose{add_one, twice}(x).item() == 8);
  const data::Compose inner{twice, add_one};
  const data::Compose copy = inner;
  CHECK(copy(x).item() == 7);
  CHECK(data::Compose{inner, copy}(x).item() == 15);
  CHECK(data::Compose()(x).same_as(x));
  const data::Compose from_one = twice;
  CHECK(from_one(x).item() == 6);
  CHECK(error_of([] { data::Lambda(nullptr); }) == "lambda: function must be given, got none");
  CHECK(error_of([] { data::Compose(std::vector<std::shared_ptr<const data::Transform>>(1)); }) ==
        "compose: every step must be given, got null");
}

TEST_CASE("data: RandomHorizontalFlip mirrors the width of both layouts") {
  Generator generator(1);
  const Tensor gray = byte_image({3, 4});
  const Tensor flipped = data::RandomHorizontalFlip(1)(gray, generator);
  for (int h = 0; h < 3; ++h)
    for (int w = 0; w < 4; ++w) CHECK(flipped.data<uint8_t>()[h * 4 + w] == h * 4 + 3 - w);
  const Tensor color = byte_image({3, 4, 2});
  const Tensor mirrored = data::RandomHorizontalFlip(1)(color, generator);
  for (int i = 0; i < 24; ++i)
    CHECK(mirrored.data<uint8_t>()[i] == (i / 8 * 4 + 3 - i / 2 % 4) * 2 + i % 2);
  // Flipping bytes and then ToTensor equals ToTensor and then flipping floats.
  CHECK(same_bits(data::ToTensor()(mirrored),
                  data::RandomHorizontalFlip(1)(data::ToTensor()(color), generator)));
  CHECK(data::RandomHorizontalFlip(0)(gray, generator).same_as(gray));
  int flips = 0;
  for (int i = 0; i < 1000; ++i)
    flips += !data::RandomHorizontalFlip(0.25)(gray, generator).same_as(gray);
  CHECK(std::abs(flips - 250) < 69);  // five standard deviations, sqrt(1000 * 0.25 * 0.75) = 13.7
  CHECK(error_of([] { data::RandomHorizontalFlip(1.5); }) ==
        "random_horizontal_flip: p must be in [0, 1], got 1.5");
  CHECK(error_of([&] {
          data::RandomHorizontalFlip(1)(zeros({2, 2}, {.dtype = DType::i64}));
        }) ==
        "random_horizontal_flip: image must be u8 [H, W] or [H, W, C] or floating [H, W] or "
        "[C, H, W], got i64 [2, 2]");
}

TEST_CASE("data: RandomCrop cuts every place of the padded image") {
  // The reference pads by hand and looks the cut up in it.
  const Tensor image = byte_image({4, 5, 2});
  const int64_t padding = 2;
  const int64_t size = 3;
  Tensor padded = zeros({8, 9, 2}, {.dtype = DType::u8});
  raw::copy_(raw::slice(raw::slice(padded, 0, 2, 6), 1, 2, 7), image);
  std::set<std::pair<int, int>> places;
  Generator generator(5);
  for (int i = 0; i < 2000; ++i) {
    const Tensor cut =
        raw::contiguous(data::RandomCrop({.size = size, .padding = padding})(image, generator));
    REQUIRE(cut.shape() == Shape{3, 3, 2});
    int matches = 0;
    for (int top = 0; top <= 5; ++top)
      for (int left = 0; left <= 6; ++left) {
        const Tensor wanted = raw::contiguous(
            raw::slice(raw::slice(padded, 0, top, top + size), 1, left, left + size));
        if (!same_bits(cut, wanted)) continue;
        ++matches;
        places.insert({top, left});
      }
    REQUIRE(matches >= 1);
  }
  CHECK(places.size() == 42);
}

TEST_CASE("data: RandomCrop handles floats, whole images, cuts of padding alone, and errors") {
  Generator generator(3);
  const Tensor x = data::ToTensor()(byte_image({6, 6, 3}));
  CHECK(data::RandomCrop({.size = 4})(x, generator).shape() == Shape{3, 4, 4});
  CHECK(same_bits(data::RandomCrop({.size = 6})(x, generator), x));
  for (int i = 0; i < 200; ++i)
    CHECK(data::RandomCrop({.size = 1, .padding = 5})(full({2, 2}, 1), generator).shape() ==
          Shape{1, 1});
  CHECK(error_of([&] { data::RandomCrop({.size = 9, .padding = 1})(x, generator); }) ==
        "random_crop: size must be at most the padded image's 8 x 8, got 9");
  CHECK(error_of([] { data::RandomCrop({}); }) == "random_crop: size must be at least 1, got 0");
  CHECK(error_of([] { data::RandomCrop({.size = 1, .padding = -1}); }) ==
        "random_crop: padding must be 0 to 2^20, got -1");
}

TEST_CASE("data: draws follow seed, epoch and index alone") {
  const data::DrawKey key{.seed = 7, .epoch = 2};
  CHECK(key.generator(5).seed() == key.generator(5).seed());
  std::set<uint64_t> seeds;
  for (uint64_t seed = 0; seed < 4; ++seed)
    for (int64_t epoch = 0; epoch < 4; ++epoch)
      for (int64_t index = 0; index < 4; ++index)
        for (int stream = 0; stream < 2; ++stream)
          seeds.insert(data::DrawKey{seed, epoch}.generator(index, stream).seed());
  CHECK(seeds.size() == 128);
}

TEST_CASE("data: byte images in one pass equal the stacked samples bit for bit") {
  const data::Normalize one({0.3f}, {0.7f});
  const data::Normalize three({0.1f, 0.2f, 0.3f}, {0.3f, 0.2f, 0.1f});
  const Tensor gray = byte_image({7, 5, 6});
  const Tensor color = byte_image({7, 5, 6, 3});
  const Tensor planar =
      raw::permute(raw::contiguous(raw::permute(color, {0, 3, 1, 2})), {0, 2, 3, 1});
  const Tensor targets = tensor<int64_t>({4, 3, 2, 1, 0, 9, 8});
  const std::vector<int64_t> indices{6, 0, 0, 3, 5};
  const auto compare = [&](const Tensor& images, const data::Compose& transform) {
    const data::ImageDataset set(images, targets, transform);
    Batch fast;
    REQUIRE(set.collate(indices, {}, fast));
    std::vector<data::Sample> samples;
    for (const int64_t index : indices) samples.push_back(set.get(index));
    CHECK(same_bits(fast, data::stack_samples(samples)));
    CHECK(fast.target.data<int64_t>()[0] == 8);
  };
  compare(gray, data::ToTensor());
  compare(gray, data::Compose{data::ToTensor(), one});
  compare(gray, data::Compose{data::ToTensor(), one, one});
  compare(gray, data::Compose{data::Compose{data::ToTensor(), one}, data::Compose()});
  compare(raw::slice(gray, 2, 1, 6, 2), data::Compose{data::ToTensor(), one});
  compare(color, data::Compose{data::ToTensor(), three});
  compare(planar, data::Compose{data::ToTensor(), three});
}

TEST_CASE("data: byte images go sample by sample where no table can stand for the transform") {
  const Tensor images = byte_image({3, 4, 4});
  const Tensor targets = tensor<int64_t>({0, 1, 2});
  const std::vector<int64_t> indices{0, 1};
  const data::Normalize normalize({0}, {1});
  for (const data::Compose& transform :
       {data::Compose(), data::Compose{data::RandomHorizontalFlip(), data::ToTensor()},
        data::Compose{data::ToTensor(), data::Lambda([](const Tensor& x) { return x; })},
        data::Compose{normalize}, data::Compose{data::ToTensor(), data::ToTensor()},
        data::Compose{data::ToTensor(), data::Normalize({0, 0}, {1, 1})}}) {
    Batch batch;
    CHECK_FALSE(data::ImageDataset(images, targets, transform).collate(indices, {}, batch));
  }
}

TEST_CASE("data: image dataset errors") {
  const Tensor images = byte_image({3, 4, 4});
  CHECK(error_of([&] {
          data::ImageDataset(zeros({3, 4, 4}), tensor<int64_t>({0, 1, 2}));
        }) ==
        "image_dataset: images must be u8 [N, H, W] or [N, H, W, C] on cpu, got f32 [3, 4, 4] on "
        "cpu");
  CHECK(error_of([&] {
          data::ImageDataset(images, tensor<int64_t>({0, 1}));
        }) == "image_dataset: targets must be i64 [3] on cpu, got i64 [2] on cpu");
  CHECK(error_of([&] { data::ImageDataset(images, Tensor()); }) ==
        "image_dataset: images and targets must be defined, got none");
  const data::ImageDataset set(images, tensor<int64_t>({0, 1, 2}));
  CHECK(error_of([&] { set.get(3); }) == "image_dataset: index must be in [0, 3), got 3");
  CHECK(error_of([&] { set.get(-1); }) == "image_dataset: index must be in [0, 3), got -1");
}
