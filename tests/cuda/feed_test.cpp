// The feed: batches made on the device from resident data, and running values of what is logged.
#include <limits>

#include "cairn/data/image_dataset.h"
#include "cairn/kernels/feed.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/raw.h"
#include "cairn/trainer/resident.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"

using namespace cairn;
using trainer::ResidentData;

namespace {

const Device kGpu(DeviceType::cuda, 0);
constexpr int64_t kPlenty = int64_t{1} << 40;

std::string bytes_of(const Tensor& t) {
  const Tensor host = raw::contiguous(raw::to(t, t.dtype(), kCPU));
  return cat(host.dtype(), host.shape()) +
         std::string(static_cast<const char*>(host.raw_data()), static_cast<size_t>(host.nbytes()));
}

Tensor random_bytes(const Shape& shape) {
  Generator generator(3);
  return raw::to(randint(0, 256, shape, {DType::i64}, generator), DType::u8);
}

data::Compose normalized(int64_t channels) {
  std::vector<float> mean, std;
  for (int64_t c = 0; c < channels; ++c) {
    mean.push_back(0.25f + 0.1f * static_cast<float>(c));
    std.push_back(0.3f + 0.05f * static_cast<float>(c));
  }
  return data::Compose(data::ToTensor(), data::Normalize(mean, std));
}

// Two loaders that are alike: the one is asked for its batches, the other one's are made there.
void compare(const data::Dataset& dataset, const data::DataLoaderOptions& options) {
  data::DataLoader expected(dataset, options), source(dataset, options);
  const auto resident = ResidentData::make(source, kGpu, kPlenty);
  REQUIRE(resident != nullptr);
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    if (epoch == 2)  // in its middle
      for (auto* loader : {&expected, &source}) loader->load_state({epoch, 2, options.seed});
    expected.set_epoch(epoch);
    source.set_epoch(epoch);
    resident->begin_epoch();
    const int64_t waits = cuda::waits();
    std::vector<Batch> made;
    while (resident->left() > 0) {
      made.push_back(resident->next());
      CHECK(source.state().batches_done == expected.size() - resident->left());
    }
    CHECK(cuda::waits() == waits);
    size_t i = 0;
    for (const Batch& batch : expected) {
      REQUIRE(i < made.size());
      CHECK(bytes_of(made[i].input) == bytes_of(batch.input));
      CHECK(made[i].target.defined() == batch.target.defined());
      if (batch.target.defined()) CHECK(bytes_of(made[i].target) == bytes_of(batch.target));
      ++i;
    }
    CHECK(i == made.size());
  }
}

struct Own : data::TensorDataset {
  using TensorDataset::TensorDataset;
  data::Sample get(int64_t index) const override { return TensorDataset::get(index); }
};

}  // namespace

TEST_CASE("cuda: feed: resident images are the loader's batches bit for bit") {
  const Tensor labels = arange(0, 23);
  const data::DataLoaderOptions options{.batch_size = 5, .shuffle = true, .seed = 4};
  SECTION("grey, four pixels at a time") {
    compare(data::ImageDataset(random_bytes({23, 6, 8}), labels, normalized(1)), options);
  }
  SECTION("grey, of an odd size") {
    compare(data::ImageDataset(random_bytes({23, 5, 7}), labels, normalized(1)), options);
  }
  SECTION("channels last, as decoders give them") {
    compare(data::ImageDataset(random_bytes({23, 6, 8, 3}), labels, normalized(3)), options);
  }
  SECTION("channels first in memory, as CIFAR's files have them") {
    const Tensor planes = random_bytes({23, 3, 8, 8});
    compare(data::ImageDataset(raw::permute(planes, {0, 2, 3, 1}), labels, normalized(3)), options);
  }
  SECTION("a subset, without its short last batch") {
    const data::ImageDataset all(random_bytes({23, 4, 4}), labels, normalized(1));
    compare(data::Subset(all, {3, 1, 4, 1, 5, 9, 2, 6, 22, 7, 8}),
            {.batch_size = 2, .shuffle = true, .drop_last = true});
  }
}

TEST_CASE("cuda: feed: resident tensors are the loader's batches bit for bit") {
  Generator generator(5);
  const Tensor x = randn({11, 3, 2}, {}, generator);
  const data::DataLoaderOptions options{.batch_size = 3, .shuffle = true};
  compare(data::TensorDataset(x, arange(0, 11)), options);
  compare(data::TensorDataset(raw::to(x, DType::bf16)), options);
  compare(data::TensorDataset(random_bytes({11, 7})), options);
}

TEST_CASE("cuda: feed: what does not come from rows of tensors stays with the loader") {
  const data::TensorDataset tensors(zeros({4, 2}));
  const auto kept = [&](const data::Dataset& dataset, const data::DataLoaderOptions& options,
                        int64_t bytes = kPlenty) {
    data::DataLoader loader(dataset, options);
    return ResidentData::make(loader, kGpu, bytes) != nullptr;
  };
  CHECK(kept(tensors, {}));
  CHECK(kept(tensors, {}, 32));
  CHECK_FALSE(kept(tensors, {}, 31));
  CHECK_FALSE(kept(tensors, {.num_workers = 1}));
  CHECK_FALSE(kept(tensors, {.collate = data::stack_samples}));
  CHECK_FALSE(kept(Own(zeros({4, 2})), {}));
  CHECK_FALSE(kept(data::ImageDataset(random_bytes({4, 2, 2}), arange(0, 4),
                                      {data::ToTensor(), data::RandomHorizontalFlip()}),
                   {}));
}

TEST_CASE("cuda: feed: images as bf16 and channels last") {
  const Tensor bytes = random_bytes({9, 4, 6, 3});
  Generator generator(6);
  const Tensor table = randn({3, 256}, {}, generator);
  const Tensor order = tensor<int64_t>({8, 0, 3, 3, 7, 1});
  const Tensor cursor = full({}, 2, {DType::i64});
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Tensor host = empty_channels_last({4, 3, 4, 6}, {dtype});
    kernels::gather_images(kCPU, host, bytes, table, order, cursor);
    for (const Tensor& there :
         {empty_channels_last({4, 3, 4, 6}, {dtype, kGpu}), empty({4, 3, 4, 6}, {dtype, kGpu})}) {
      kernels::gather_images(kGpu, there, raw::to(bytes, DType::u8, kGpu),
                             raw::to(table, DType::f32, kGpu), raw::to(order, DType::i64, kGpu),
                             raw::to(cursor, DType::i64, kGpu));
      CHECK(bytes_of(there) == bytes_of(host));
    }
  }
}

TEST_CASE("cuda: feed: running values round as the CPU's") {
  using kernels::Running;
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i64, DType::boolean})
    for (Running how : {Running::weighted_sum, Running::sum, Running::min, Running::max}) {
      const Tensor host = full({}, 0.1, {DType::f64});
      const Tensor there = full({}, 0.1, {DType::f64, kGpu});
      for (double value : {0.3, -2.7, 1e9, 0.1, kNan, 5.0}) {
        if (value != value && !is_floating(dtype)) continue;
        const Tensor v = full({1}, value, {dtype});
        kernels::accumulate(kCPU, host, v, how, 3.1);
        kernels::accumulate(kGpu, there, raw::to(v, dtype, kGpu), how, 3.1);
        CHECK(bytes_of(there) == bytes_of(host));
      }
    }
}
