// The loader: order, epochs, workers, resuming, errors, and ends that do not hang.
#include "cairn/data/data_loader.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "cairn/data/image_dataset.h"
#include "cairn/tensor/factory.h"
#include "tests/catch.h"
#include "tests/data/support.h"

using namespace cairn;
using namespace cairn::test;
using data::DataLoader;
using data::DataLoaderOptions;

namespace {

// 23 images whose transform draws from both generators, so that every source of randomness shows.
data::ImageDataset random_images() {
  Tensor images = empty({23, 6, 6}, {.dtype = DType::u8});
  for (int64_t i = 0; i < images.numel(); ++i)
    images.data<uint8_t>()[i] = static_cast<uint8_t>(i * 7 % 256);
  Tensor targets = empty({23}, {.dtype = DType::i64});
  for (int64_t i = 0; i < 23; ++i) targets.data<int64_t>()[i] = i;
  const data::Lambda noise([](const Tensor& x) {
    const Tensor draw = rand(x.shape());  // the default generator
    for (int64_t i = 0; i < x.numel(); ++i) draw.data<float>()[i] += x.data<float>()[i];
    return draw;
  });
  return data::ImageDataset(images, targets,
                            data::Compose{data::RandomCrop({.size = 5, .padding = 1}),
                                          data::RandomHorizontalFlip(), data::ToTensor(), noise});
}

// Copies of the batches of one epoch.
std::vector<Batch> epoch_of(DataLoader& loader) {
  std::vector<Batch> out;
  for (const Batch& batch : loader) out.push_back(batch);
  return out;
}

std::vector<int64_t> targets_of(const std::vector<Batch>& batches) {
  std::vector<int64_t> out;
  for (const Batch& batch : batches)
    out.insert(out.end(), batch.target.data<int64_t>(),
               batch.target.data<int64_t>() + batch.target.numel());
  return out;
}

bool same(const std::vector<Batch>& a, const std::vector<Batch>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Batch& x, const Batch& y) { return same_bits(x, y); });
}

// A dataset of numbers with something happening at get().
class Watched : public data::Dataset {
 public:
  Watched(int64_t size, std::function<void(int64_t)> at_get)
      : size_(size), at_get_(std::move(at_get)) {}
  int64_t size() const override { return size_; }
  data::Sample get(int64_t index) const override {
    at_get_(index);
    return {full({1}, static_cast<double>(index)), {}};
  }

 private:
  int64_t size_;
  std::function<void(int64_t)> at_get_;
};

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

}  // namespace

TEST_CASE("data: loader gives all samples in order, the last batch shorter or dropped") {
  const data::ImageDataset set = random_images();
  DataLoader loader(set, {.batch_size = 5});
  CHECK(loader.size() == 5);
  const auto batches = epoch_of(loader);
  REQUIRE(batches.size() == 5);
  CHECK(batches[0].size() == 5);
  CHECK(batches[4].size() == 3);
  CHECK(batches[0].input.shape() == Shape{5, 1, 5, 5});
  const auto targets = targets_of(batches);
  for (int64_t i = 0; i < 23; ++i) CHECK(targets[static_cast<size_t>(i)] == i);
  DataLoader dropping(set, {.batch_size = 5, .drop_last = true});
  CHECK(dropping.size() == 4);
  CHECK(same(epoch_of(dropping), {batches.begin(), batches.begin() + 4}));
  DataLoader exact(set, {.batch_size = 23, .drop_last = true});
  CHECK(epoch_of(exact).size() == 1);
  DataLoader single(set);
  CHECK(single.size() == 23);
}

TEST_CASE("data: shuffle changes with the epoch and the seed, and repeats") {
  const data::ImageDataset set = random_images();
  DataLoader a(set, {.batch_size = 4, .shuffle = true, .seed = 1});
  DataLoader b(set, {.batch_size = 4, .shuffle = true, .seed = 1});
  DataLoader c(set, {.batch_size = 4, .shuffle = true, .seed = 2});
  const auto a0 = epoch_of(a);
  const auto a1 = epoch_of(a);
  CHECK(same(a0, epoch_of(b)));
  CHECK(same(a1, epoch_of(b)));
  CHECK_FALSE(same(a0, a1));
  CHECK_FALSE(same(a0, epoch_of(c)));
  auto targets = targets_of(a1);
  CHECK_FALSE(std::is_sorted(targets.begin(), targets.end()));
  std::sort(targets.begin(), targets.end());
  for (int64_t i = 0; i < 23; ++i) CHECK(targets[static_cast<size_t>(i)] == i);
  b.set_epoch(0);
  CHECK(same(a0, epoch_of(b)));
}

TEST_CASE("data: random transforms differ between epochs and samples, not between runs") {
  Tensor images = full({2, 1, 64}, 0, {.dtype = DType::u8});
  for (int64_t i = 0; i < 128; ++i) images.data<uint8_t>()[i] = static_cast<uint8_t>(i % 64);
  const data::ImageDataset set(images, tensor<int64_t>({0, 1}),
                               data::Compose{data::RandomCrop({.size = 1}), data::ToTensor()});
  DataLoader loader(set, {.batch_size = 2});
  const auto first = epoch_of(loader);
  CHECK(first[0].input.data<float>()[0] != first[0].input.data<float>()[1]);
  CHECK_FALSE(same(first, epoch_of(loader)));
  loader.set_epoch(0);
  CHECK(same(first, epoch_of(loader)));
  CHECK(same_bits(set.get(0).input, set.get_random(0, {}).input));
}

TEST_CASE("data: any number of workers gives the same batches and leaves the generator alone") {
  const data::ImageDataset set = random_images();
  const uint64_t seed = 77;
  manual_seed(seed);
  DataLoader alone(set, {.batch_size = 3, .shuffle = true, .seed = 5});
  const auto epoch0 = epoch_of(alone);
  const auto epoch1 = epoch_of(alone);
  CHECK(default_generator().seed() == seed);
  CHECK(default_generator().offset() == 0);
  for (const int workers : {1, 3, 16})
    for (const int64_t prefetch : {1, 4}) {
      DataLoader loader(set, {.batch_size = 3,
                              .shuffle = true,
                              .num_workers = workers,
                              .prefetch = prefetch,
                              .seed = 5});
      CHECK(same(epoch_of(loader), epoch0));
      CHECK(same(epoch_of(loader), epoch1));
    }
}

TEST_CASE("data: workers deliver in order although later batches are ready first") {
  const Watched set(20, [](int64_t index) { sleep_ms(index % 4 == 0 ? 30 : 0); });
  DataLoader loader(set, {.num_workers = 4});
  int64_t next = 0;
  for (const Batch& batch : loader) CHECK(batch.input.item() == static_cast<double>(next++));
  CHECK(next == 20);
}

TEST_CASE("data: workers run ahead by prefetch batches each and no further") {
  std::atomic<int> made{0};
  const Watched set(100, [&](int64_t) { ++made; });
  DataLoader loader(set, {.num_workers = 2, .prefetch = 3});
  int taken = 0;
  for (const Batch& batch : loader) {
    ++taken;
    REQUIRE(batch.size() == 1);
    if (taken % 20 != 1) continue;
    for (int i = 0; i < 1000 && made < std::min(taken + 6, 100); ++i) sleep_ms(10);
    sleep_ms(20);  // time to go too far
    CHECK(made == std::min(taken + 6, 100));
  }
  CHECK(made == 100);
}

TEST_CASE("data: an epoch is taken up at every batch, bitwise, with any number of workers") {
  const data::ImageDataset set = random_images();
  const DataLoaderOptions options{.batch_size = 4, .shuffle = true, .seed = 3};
  DataLoader whole(set, options);
  std::vector<std::vector<Batch>> epochs;
  for (int e = 0; e < 3; ++e) epochs.push_back(epoch_of(whole));
  const auto batches = static_cast<int64_t>(epochs[0].size());
  for (const int workers : {0, 1, 3})
    for (int64_t stop = 1; stop <= batches; ++stop) {
      DataLoader first(set, options);
      epoch_of(first);
      data::DataLoaderState state;
      int64_t seen = 0;
      for (const Batch& batch : first) {
        REQUIRE(same_bits(batch, epochs[1][static_cast<size_t>(seen)]));
        state = first.state();
        if (++seen == stop) break;
      }
      CHECK(state == data::DataLoaderState{.epoch = 1, .batches_done = stop, .seed = 3});
      DataLoaderOptions other = options;
      other.num_workers = workers;
      other.seed = 99;  // the state's seed counts
      DataLoader second(set, other);
      second.load_state(state);
      CHECK(second.state() == state);
      second.set_epoch(1);  // as a training loop does; keeps the position
      CHECK(same(epoch_of(second), {epochs[1].begin() + stop, epochs[1].end()}));
      CHECK(second.state() == data::DataLoaderState{.epoch = 2, .batches_done = 0, .seed = 3});
      CHECK(same(epoch_of(second), epochs[2]));
    }
}

TEST_CASE("data: the epoch advances at the end and after leaving early; set_epoch sets it") {
  const data::ImageDataset set = random_images();
  DataLoader loader(set, {.batch_size = 4, .shuffle = true});
  CHECK(loader.epoch() == 0);
  std::vector<std::vector<Batch>> epochs;
  for (int e = 0; e < 3; ++e) {
    epochs.push_back(epoch_of(loader));
    CHECK(loader.epoch() == e + 1);
  }
  loader.set_epoch(0);
  for (const Batch& batch : loader) {
    CHECK(loader.epoch() == 0);
    CHECK(batch.size() == 4);
    break;
  }
  CHECK(loader.state() == data::DataLoaderState{.epoch = 0, .batches_done = 1});
  CHECK(same(epoch_of(loader), epochs[1]));  // leaving epoch 0 early ended it
  for (const Batch& batch : loader) {
    CHECK(batch.size() == 4);
    break;
  }
  loader.set_epoch(2);  // the epoch in progress: it starts again
  CHECK(same(epoch_of(loader), epochs[2]));
}

TEST_CASE("data: samplers, collate functions and shared datasets") {
  const data::ImageDataset set = random_images();
  auto sampler = std::make_shared<data::DistributedSampler>(
      23, data::DistributedSamplerOptions{.num_replicas = 2, .rank = 1, .shuffle = false});
  DataLoader loader(set, {.batch_size = 4, .sampler = sampler});
  CHECK(loader.size() == 3);
  CHECK(targets_of(epoch_of(loader)) ==
        std::vector<int64_t>{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 0});
  CHECK(sampler->epoch() == 0);
  epoch_of(loader);
  CHECK(sampler->epoch() == 1);

  auto shared = std::make_shared<const data::TensorDataset>(ones({6, 2}));
  DataLoader summing(shared, {.batch_size = 4, .collate = [](std::span<const data::Sample> s) {
                                return Batch{full({1}, static_cast<double>(s.size())), {}};
                              }});
  const std::weak_ptr<const data::TensorDataset> alive = shared;
  shared.reset();
  const auto sums = epoch_of(summing);
  REQUIRE(sums.size() == 2);
  CHECK(sums[0].input.item() == 4);
  CHECK(sums[1].input.item() == 2);
  DataLoader moved = std::move(summing);
  CHECK(epoch_of(moved).size() == 2);
  CHECK_FALSE(alive.expired());
}

TEST_CASE("data: a loader does not take a temporary dataset") {
  STATIC_REQUIRE(std::is_constructible_v<DataLoader, data::TensorDataset&, DataLoaderOptions>);
  STATIC_REQUIRE(
      std::is_constructible_v<DataLoader, const data::TensorDataset&, DataLoaderOptions>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<DataLoader, data::TensorDataset, DataLoaderOptions>);
  STATIC_REQUIRE_FALSE(
      std::is_constructible_v<DataLoader, const data::TensorDataset, DataLoaderOptions>);
}

TEST_CASE("data: loader arguments are checked before training starts") {
  const data::TensorDataset set(zeros({5, 1}));
  const auto error = [&](const DataLoaderOptions& options) {
    return error_of([&] { DataLoader(set, options); });
  };
  CHECK(error({.batch_size = 0}) == "data_loader: batch_size must be at least 1, got 0");
  CHECK(error({.num_workers = -1}) == "data_loader: num_workers must be 0 to 1024, got -1");
  CHECK(error({.prefetch = 0}) == "data_loader: prefetch must be 1 to 1048576, got 0");
  CHECK(error({.timeout_s = -1}) == "data_loader: timeout_s must be 0 to 1e+08, got -1");
  CHECK(error({.timeout_s = NAN}).find("data_loader: timeout_s must be 0 to") == 0);
  CHECK(error({.batch_size = 6, .drop_last = true}) ==
        "data_loader: an epoch must have at least 1 batch, got 0 of 5 samples with batch_size 6 "
        "and drop_last");
  CHECK(error({.sampler = std::make_shared<data::SequentialSampler>(0)}) ==
        "data_loader: an epoch must have at least 1 batch, got 0 of 0 samples with batch_size 1");
  CHECK(error({.shuffle = true, .sampler = std::make_shared<data::SequentialSampler>(5)}) ==
        "data_loader: shuffle must be false where a sampler is given, got both");
  const data::TensorDataset none(zeros({0, 1}));
  CHECK(error_of([&] { DataLoader loader(none); }) ==
        "data_loader: dataset must have at least 1 sample, got 0");
  CHECK(error_of([] { DataLoader loader(std::shared_ptr<const data::Dataset>{}); }) ==
        "data_loader: dataset must be given, got null");
  DataLoader loader(set, {.sampler = std::make_shared<data::SequentialSampler>(6)});
  CHECK(error_of([&] { epoch_of(loader); }) ==
        "data_loader: an index of the sampler must be in [0, 5), got 5");
}

TEST_CASE("data: loader states are checked") {
  const data::TensorDataset set(zeros({5, 1}));
  DataLoader loader(set, {.batch_size = 2});
  CHECK(error_of([&] { loader.load_state({.epoch = -1}); }) ==
        "data_loader: epoch of the state must not be negative, got -1");
  CHECK(error_of([&] { loader.load_state({.batches_done = 4}); }) ==
        "data_loader: batches_done of the state must be 0 to 3, got 4; the state belongs to "
        "another dataset or batch_size");
  CHECK(error_of([&] { loader.set_epoch(-1); }) ==
        "data_loader: epoch must not be negative, got -1");
  auto first = loader.begin();
  auto second = loader.begin();
  const std::string stale =
      "data_loader: an iterator must be of the last begin() and not at the end, got another";
  CHECK(error_of([&] { *first; }) == stale);
  CHECK(error_of([&] { ++first; }) == stale);
  CHECK(error_of([&] { *second; }) == "no error");
}

TEST_CASE("data: an exception of the dataset reaches the consumer with the sample's index") {
  const auto throwing = [](int64_t index) {
    if (index == 13) fail("decode: image must be PNG, got ruins");
  };
  const Watched set(20, throwing);
  for (const int workers : {0, 1, 3}) {
    DataLoader loader(set, {.batch_size = 5, .num_workers = workers});
    int seen = 0;
    CHECK(error_of([&] {
            for (const Batch& batch : loader) seen += batch.size() > 0;
          }) ==
          "data_loader: sample 13 (batch 2 of epoch 0) failed: decode: image must be PNG, got "
          "ruins");
    CHECK(seen == 2);
    const data::DataLoaderState state = loader.state();
    CHECK(state == data::DataLoaderState{.epoch = 0, .batches_done = 2});
    loader.load_state(state);  // the same batch once more
    CHECK(error_of([&] { loader.begin(); }).find("sample 13 (batch 2 of epoch 0)") !=
          std::string::npos);
  }
}

TEST_CASE("data: exceptions of other kinds and of collate carry their place too") {
  const Watched odd(4, [](int64_t index) {
    if (index == 2) throw 42;
  });
  DataLoader loader(odd, {.batch_size = 4, .num_workers = 1});
  CHECK(error_of([&] { loader.begin(); }) ==
        "data_loader: sample 2 (batch 0 of epoch 0) failed: unknown exception");
  const Watched fine(4, [](int64_t) {});
  DataLoader collating(fine,
                       {.batch_size = 2, .collate = [](std::span<const data::Sample>) -> Batch {
                          throw std::runtime_error("no glue");
                        }});
  CHECK(error_of([&] { collating.begin(); }) ==
        "data_loader: batch 0 of epoch 0 (from sample 0) failed: no glue");
}

TEST_CASE("data: leaving early, destroying and restarting do not hang") {
  std::atomic<int> inside{0};
  const Watched set(1000, [&](int64_t) {
    ++inside;
    sleep_ms(1);
    --inside;
  });
  {
    DataLoader loader(set, {.num_workers = 3});
    for (int round = 0; round < 5; ++round)
      for (const Batch& batch : loader) {
        REQUIRE(batch.size() == 1);
        break;
      }
    auto iterator = loader.begin();
    ++iterator;
  }
  CHECK(inside == 0);  // no worker outlives the loader
}

TEST_CASE("data: a worker that hangs is reported within the time limit") {
  // Shared ownership: the worker left behind keeps dataset and gate.
  auto gate = std::make_shared<std::atomic<bool>>(false);
  auto left = std::make_shared<std::atomic<bool>>(false);
  auto set = std::make_shared<const Watched>(6, [gate, left](int64_t index) {
    if (index != 2) return;
    while (!*gate) sleep_ms(2);
    *left = true;
  });
  const auto start = std::chrono::steady_clock::now();
  {
    DataLoader loader(set, {.num_workers = 2, .timeout_s = 0.2});
    int seen = 0;
    CHECK(error_of([&] {
            for (const Batch& batch : loader) seen += batch.size() > 0;
          }) ==
          "data_loader: batch 2 of epoch 0 must arrive within 0.2 s, got nothing; a sample hangs, "
          "or timeout_s is too short");
    CHECK(seen == 2);
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  CHECK_FALSE(*left);
  *gate = true;
  for (int i = 0; i < 1000 && !*left; ++i) sleep_ms(2);
  CHECK(*left);
  set.reset();
}

TEST_CASE("data: batches reuse the memory of their predecessors") {
  Tensor images = zeros({640, 28, 28}, {.dtype = DType::u8});
  const data::ImageDataset set(images, zeros({640}, {.dtype = DType::i64}), data::ToTensor());
  for (const int workers : {0, 2}) {
    DataLoader loader(set, {.batch_size = 64, .num_workers = workers});
    for (const Batch& batch : loader) REQUIRE(batch.size() == 64);
    const int64_t before = memory_stats().system_allocations;
    for (int epoch = 0; epoch < 3; ++epoch)
      for (const Batch& batch : loader) REQUIRE(batch.size() == 64);
    // Without workers not one block more; with them the first epoch may not have had all of the
    // prefetched batches alive at once, which are at most 4 ready, 2 in the making and 1 in use.
    CHECK(memory_stats().system_allocations - before <= (workers == 0 ? 0 : 2 * 7));
  }
}

TEST_CASE("data: a consumer that makes the batches itself gets their indices and keeps the place") {
  const data::ImageDataset set = random_images();
  const DataLoaderOptions options{.batch_size = 5, .shuffle = true, .num_workers = 2, .seed = 9};
  DataLoader loader(set, options), twin(set, options);
  std::vector<int64_t> order;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    loader.set_epoch(epoch);
    twin.set_epoch(epoch);
    order.clear();
    for (const auto& batch : loader.begin_indices())
      order.insert(order.end(), batch.begin(), batch.end());
    CHECK(order == targets_of(epoch_of(twin)));  // sample i has target i
    loader.pass(3);
    CHECK(loader.state() == data::DataLoaderState{.epoch = epoch, .batches_done = 3, .seed = 9});
    CHECK(error_of([&] { loader.pass(3); }) ==
          "data_loader: pass must be of 0 to the 2 batches that are left, got 3");
  }
  twin.load_state(loader.state());
  twin.set_epoch(1);
  CHECK(twin.begin_indices()[3][0] == order[15]);
  CHECK(twin.state().batches_done == 3);
  DataLoader idle(set, options);
  CHECK(error_of([&] { idle.pass(1); }) == "data_loader: pass must follow begin_indices, got none");
}
