// Samplers: each index as often as it should come, repeatable orders, padding.
#include "cairn/data/sampler.h"

#include <algorithm>
#include <numeric>

#include "tests/catch.h"
#include "tests/data/support.h"

using namespace cairn;
using namespace cairn::test;

namespace {

using Indices = std::vector<int64_t>;

Indices counting(int64_t n) {
  Indices out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), int64_t{0});
  return out;
}

Indices sorted(Indices indices) {
  std::sort(indices.begin(), indices.end());
  return indices;
}

}  // namespace

TEST_CASE("data: sequential and random samplers visit every index once") {
  CHECK(data::SequentialSampler(4).indices() == Indices{0, 1, 2, 3});
  CHECK(data::SequentialSampler(0).indices().empty());
  data::RandomSampler random(1000, {.seed = 3});
  const Indices first = random.indices();
  CHECK(first == random.indices());
  CHECK(sorted(first) == counting(1000));
  CHECK(first != counting(1000));
  random.set_epoch(1);
  CHECK(random.indices() != first);
  CHECK(sorted(random.indices()) == counting(1000));
  random.set_epoch(0);
  CHECK(random.indices() == first);
  CHECK(data::RandomSampler(1000, {.seed = 4}).indices() != first);
  CHECK(data::RandomSampler(0).indices().empty());
}

TEST_CASE("data: the random order of a small set is pinned") {
  // So that a change of the generator or of the seeding is noticed: it would change every run.
  CHECK(data::RandomSampler(8, {.seed = 0}).indices() == Indices{7, 1, 0, 3, 6, 2, 4, 5});
  // Seed and epoch are added, as PyTorch does it.
  data::RandomSampler third(100, {.seed = 3});
  third.set_epoch(2);
  CHECK(third.indices() == data::RandomSampler(100, {.seed = 5}).indices());
}

TEST_CASE("data: random sampling with replacement") {
  const data::RandomSampler sampler(10, {.seed = 1, .replacement = true, .num_samples = 10000});
  const Indices drawn = sampler.indices();
  CHECK(sampler.size() == 10000);
  CHECK(drawn.size() == 10000);
  for (int64_t i = 0; i < 10; ++i)  // six standard deviations, sqrt(10000 * 0.1 * 0.9) = 30
    CHECK(std::abs(std::count(drawn.begin(), drawn.end(), i) - 1000) < 180);
  CHECK(data::RandomSampler(5, {.replacement = true}).size() == 5);
}

TEST_CASE("data: subset random sampler permutes its indices") {
  data::SubsetRandomSampler sampler({7, 3, 3, 9}, 5);
  CHECK(sampler.size() == 4);
  CHECK(sorted(sampler.indices()) == Indices{3, 3, 7, 9});
  CHECK(sampler.indices() == sampler.indices());
}

TEST_CASE("data: distributed sampler without shuffle strides and pads from the start") {
  const auto share = [](int64_t size, int64_t replicas, int64_t rank, bool drop_last = false) {
    return data::DistributedSampler(
               size,
               {.num_replicas = replicas, .rank = rank, .shuffle = false, .drop_last = drop_last})
        .indices();
  };
  CHECK(share(10, 4, 0) == Indices{0, 4, 8});
  CHECK(share(10, 4, 1) == Indices{1, 5, 9});
  CHECK(share(10, 4, 2) == Indices{2, 6, 0});
  CHECK(share(10, 4, 3) == Indices{3, 7, 1});
  CHECK(share(10, 4, 3, true) == Indices{3, 7});
  CHECK(share(2, 5, 4) == Indices{0});  // padding longer than the set: 0 1 0 1 0
  CHECK(share(2, 5, 4, true).empty());
  CHECK(share(0, 2, 1).empty());
  CHECK(share(8, 2, 1, true) == Indices{1, 3, 5, 7});
}

TEST_CASE("data: distributed ranks share one permutation, and one rank has RandomSampler's") {
  for (const int64_t epoch : {0, 1}) {
    data::RandomSampler whole(60, {.seed = 9});
    whole.set_epoch(epoch);
    const Indices order = whole.indices();
    Indices woven(60);
    for (int64_t rank = 0; rank < 3; ++rank) {
      data::DistributedSampler sampler(60, {.num_replicas = 3, .rank = rank, .seed = 9});
      sampler.set_epoch(epoch);
      CHECK(sampler.size() == 20);
      const Indices mine = sampler.indices();
      for (size_t i = 0; i < mine.size(); ++i) woven[i * 3 + static_cast<size_t>(rank)] = mine[i];
    }
    CHECK(woven == order);
    data::DistributedSampler alone(60, {.seed = 9});
    alone.set_epoch(epoch);
    CHECK(alone.indices() == order);
  }
  // The figures of the job: 60,000 samples over 2 and 4 ranks in batches of 128.
  for (const auto& [ranks, batches] : {std::pair<int64_t, int64_t>{2, 235}, {4, 118}}) {
    auto sampler = std::make_shared<data::DistributedSampler>(
        60000, data::DistributedSamplerOptions{.num_replicas = ranks});
    CHECK(data::BatchSampler(sampler, 128).size() == batches);
  }
}

TEST_CASE("data: batch sampler cuts, with and without the short last batch") {
  const auto batches = [](int64_t n, int64_t batch_size, bool drop_last) {
    const data::BatchSampler sampler(std::make_shared<data::SequentialSampler>(n), batch_size,
                                     drop_last);
    const auto out = sampler.batches();
    CHECK(static_cast<int64_t>(out.size()) == sampler.size());
    return out;
  };
  CHECK(batches(5, 2, false) == std::vector<Indices>{{0, 1}, {2, 3}, {4}});
  CHECK(batches(5, 2, true) == std::vector<Indices>{{0, 1}, {2, 3}});
  CHECK(batches(4, 2, true) == std::vector<Indices>{{0, 1}, {2, 3}});
  CHECK(batches(1, 9, false) == std::vector<Indices>{{0}});
  CHECK(batches(1, 9, true).empty());
}

TEST_CASE("data: sampler errors") {
  using namespace cairn::data;
  CHECK(error_of([] { SequentialSampler(-1); }) ==
        "sequential_sampler: size must not be negative, got -1");
  CHECK(error_of([] { RandomSampler(-2); }) == "random_sampler: size must not be negative, got -2");
  CHECK(error_of([] { RandomSampler(5, {.num_samples = 3}); }) ==
        "random_sampler: num_samples must be 0 without replacement, got 3");
  CHECK(error_of([] { RandomSampler(0, {.replacement = true, .num_samples = 3}); }) ==
        "random_sampler: size must be at least 1 to draw 3 samples, got 0");
  CHECK(error_of([] { DistributedSampler(5, {.num_replicas = 0}); }) ==
        "distributed_sampler: num_replicas must be at least 1, got 0");
  CHECK(error_of([] { DistributedSampler(5, {.num_replicas = 2, .rank = 2}); }) ==
        "distributed_sampler: rank must be in [0, 2), got 2");
  CHECK(error_of([] { SequentialSampler(3).set_epoch(-1); }) ==
        "set_epoch: epoch must not be negative, got -1");
  CHECK(error_of([] { BatchSampler(std::make_shared<SequentialSampler>(3), 0); }) ==
        "batch_sampler: batch_size must be at least 1, got 0");
  CHECK(error_of([] { BatchSampler(nullptr, 1); }) ==
        "batch_sampler: sampler must be given, got null");
}
