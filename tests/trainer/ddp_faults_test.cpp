// What goes wrong in one process of a fit by several, over the backends that a host has; ranks are
// threads.
#include <chrono>
#include <thread>

#include "cairn/dist/ring_group.h"
#include "cairn/dist/shm_group.h"
#include "tests/catch.h"
#include "tests/dist/contract.h"
#include "tests/trainer/ranks.h"

namespace cairn::test {
namespace {

using Clock = std::chrono::steady_clock;

// `small_data` of which one sample cannot be read.
struct Ruined : data::Dataset {
  explicit Ruined(int64_t index) : ruined(index) {}
  int64_t size() const override { return whole.size(); }
  data::Sample get(int64_t index) const override {
    check(index != ruined, "decode: image must be PNG, got ruins");
    return whole.get(index);
  }
  data::TensorDataset whole = small_data(40);
  int64_t ruined;
};

// The group outlives the fit; whoever runs the ranks lets go of it.
trainer::TrainerOptions over(dist::ProcessGroup& group, trainer::TrainerOptions options) {
  options.strategy =
      DDPStrategy({.group = std::shared_ptr<dist::ProcessGroup>(std::shared_ptr<void>(), &group)});
  return quiet(std::move(options));
}

const std::vector<MakeGroup> kBackends = {dist::shm_group, dist::ring_group};

}  // namespace

TEST_CASE("trainer: an error of a loader's thread ends the fit of all processes") {
  const OneThread one_thread;
  // Of 40 samples in order, rank 1 of 2 has the odd ones.
  const Ruined set(17);
  for (const MakeGroup& make : kBackends)
    for (const int workers : {0, 2}) {
      const auto start = Clock::now();
      const auto errors = errors_of_ranks(make, 2, [&](dist::ProcessGroup& group) {
        data::DataLoader loader(set, {.batch_size = 4, .num_workers = workers});
        SmallModel model;
        Trainer(over(group, {.max_epochs = 3})).fit(model, loader);
      });
      CHECK(errors[1] ==
            "data_loader: sample 17 (batch 2 of epoch 0) failed: decode: image must be PNG, got "
            "ruins");
      CHECK_THAT(errors[0], Catch::Matchers::Contains("rank 1 failed: " + errors[1]));
      CHECK(Clock::now() - start < std::chrono::seconds(10));
    }
}

TEST_CASE("trainer: a slow process fails nothing, and the shares of waiting tell which it is") {
  const OneThread one_thread;
  struct Slow : Callback {
    void on_train_batch_start(Trainer& t, TrainingModule&, const Batch&, int64_t) override {
      std::this_thread::sleep_for(std::chrono::milliseconds(t.global_rank() == 1 ? 45 : 15));
    }
  };
  for (const MakeGroup& make : kBackends) {
    std::vector<std::vector<double>> shares(2);
    run_ranks(make, 2, [&](dist::ProcessGroup& group) {
      const data::TensorDataset set = small_data(40);
      data::DataLoader loader(set, {.batch_size = 2});
      SmallModel model;
      Trainer trainer(over(group, {.max_epochs = 2, .callbacks = {Slow()}}));
      trainer.fit(model, loader);
      check(trainer.global_step() == 20, "steps: must be 20, got ", trainer.global_step());
      shares[static_cast<size_t>(group.rank())] =
          dynamic_cast<const DDPStrategy&>(trainer.strategy()).wait_shares();
    });
    CHECK(shares[0] == shares[1]);
    REQUIRE(shares[0].size() == 2);
    // Rank 0 waits for 30 of 45 ms.
    CHECK(shares[0][0] > 0.2);
    CHECK(shares[0][0] < 1);
    CHECK(shares[0][0] > shares[0][1]);
    CHECK(shares[0][1] >= 0);
  }
}

}  // namespace cairn::test
