// EarlyStopping and LearningRateMonitor.
#include <limits>
#include <memory>

#include "cairn/trainer/callbacks/early_stopping.h"
#include "cairn/trainer/callbacks/learning_rate_monitor.h"
#include "tests/catch.h"
#include "tests/trainer/small.h"

namespace cairn::test {
namespace {

using trainer::EarlyStopping;
using trainer::EarlyStoppingOptions;
using trainer::LearningRateMonitor;

struct Scored : SmallModel {
  std::vector<double> scores;  // one per epoch
  void validation_step(const Batch&, int64_t) override {
    if (!scores.empty()) log("score", scores.at(static_cast<size_t>(current_epoch())));
  }
};

struct Stopping {
  std::string reason;
  int64_t epochs = 0;
  std::shared_ptr<EarlyStopping> callback;

  Stopping(EarlyStoppingOptions options, std::vector<double> scores, int64_t min_epochs = 0) {
    if (options.monitor.empty()) options.monitor = "score";
    data::TensorDataset set = small_data(2);
    data::DataLoader train(set, {.batch_size = 2});
    data::DataLoader val(set, {.batch_size = 2});
    Scored model;
    callback = std::make_shared<EarlyStopping>(options);
    TrainerOptions o = quiet({.max_epochs = static_cast<int64_t>(scores.size())});
    o.min_epochs = min_epochs;
    o.num_sanity_val_steps = 0;
    o.callbacks = {callback};
    Trainer t(std::move(o));
    model.scores = std::move(scores);
    t.fit(model, train, val);
    reason = t.stop_reason();
    epochs = t.current_epoch();
  }
};

TEST_CASE("trainer: EarlyStopping counts checks without a better value") {
  const Stopping s({.patience = 2}, {5, 4, 4, 4.5, 3, 2});
  CHECK(s.epochs == 4);
  CHECK(s.callback->stopped_epoch() == 3);
  CHECK(s.callback->best_score() == 4);
  CHECK(s.reason == "EarlyStopping: score = 4.5 did not get better than 4 in 2 checks");
  CHECK(Stopping({.patience = 2}, {5, 4, 4, 3, 3, 2}).epochs == 6);
  CHECK(Stopping({.min_delta = 0.5, .patience = 2}, {5, 4.75, 4.75, 1}).epochs == 3);
  CHECK(Stopping({.patience = 2, .mode = "max"}, {1, 2, 1, 1, 9}).epochs == 4);
  // min_epochs holds the end back, not the decision.
  CHECK(Stopping({.patience = 1}, {1, 2, 3, 4, 5}, 4).epochs == 4);
}

TEST_CASE("trainer: EarlyStopping's thresholds and non-finite values") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(Stopping({}, {1, nan, 1}).reason == "EarlyStopping: score = nan is not finite");
  CHECK(Stopping({.patience = 9, .check_finite = false}, {1, nan, 1}).epochs == 3);
  CHECK(Stopping({.stopping_threshold = 2}, {5, 1, 1}).reason ==
        "EarlyStopping: score = 1 is past the goal of 2");
  CHECK(Stopping({.divergence_threshold = 9}, {5, 10, 1}).reason ==
        "EarlyStopping: score = 10 is past the limit of 9");
}

TEST_CASE("trainer: what EarlyStopping refuses, and its state") {
  CHECK(error_text([] { EarlyStopping({}); }) == "EarlyStopping: monitor must be given, got none");
  CHECK(error_text([] { EarlyStopping({.monitor = "x", .mode = "up"}); }) ==
        "EarlyStopping: mode must be min or max, got up");
  CHECK(error_text([] { EarlyStopping({.monitor = "x", .patience = -1}); }) ==
        "EarlyStopping: patience must be at least 0, got -1");
  CHECK(error_text([] {
          Stopping({.monitor = "other"}, {1, 1});
        }) == "EarlyStopping: monitor must be a logged metric, got 'other', which is none of them");
  CHECK(Stopping({.monitor = "other", .strict = false}, {1, 1}).epochs == 2);
  const Stopping s({.patience = 2}, {5, 4, 4, 4.5, 3});
  EarlyStopping copy({.monitor = "score"});
  copy.load_state_dict(s.callback->state_dict());
  CHECK(copy.state_dict() == s.callback->state_dict());
}

struct Keeper : trainer::Logger {
  std::vector<std::pair<int64_t, trainer::Metrics>> rows;
  void log_hyperparams(const trainer::State&) override {}
  void log_metrics(const trainer::Metrics& m, int64_t step) override { rows.emplace_back(step, m); }
  void save() override {}
  void finalize(std::string_view) override {}
};

TEST_CASE("trainer: LearningRateMonitor logs the rates in use") {
  struct Grouped : SmallModel {
    OptimizerConfig configure_optimizers() override {
      auto o = optim::sgd({{{layer.weight}, {.lr = 0.5}}, {{layer.bias}, {.lr = 0.25}}});
      optim::Optimizer& optimizer = *o;
      return {std::move(o),
              optim::exponential_lr(optimizer, {.gamma = 0.5}),
              {.interval = optim::Interval::step}};
    }
    Tensor training_step(const Batch& b, int64_t) override {
      return mse_loss(forward(b.input), b.target);
    }
  } model;
  data::TensorDataset set = small_data(4);
  data::DataLoader loader(set, {.batch_size = 1});
  auto keeper = std::make_shared<Keeper>();
  TrainerOptions o = quiet({.max_epochs = 1});
  o.logger = keeper;
  o.log_every_n_steps = 2;
  o.callbacks = {LearningRateMonitor()};
  Trainer(o).fit(model, loader);
  REQUIRE(keeper->rows.size() == 2);
  CHECK(keeper->rows[0] == std::pair<int64_t, trainer::Metrics>{
                               1, {{"epoch", 0}, {"lr-sgd/pg1", 0.25}, {"lr-sgd/pg2", 0.125}}});
  CHECK(keeper->rows[1].first == 3);
  CHECK(keeper->rows[1].second.at("lr-sgd/pg1") == 0.0625);
  o.logger = false;
  CHECK(error_text([&] { Trainer(o).fit(model, loader); }) ==
        "LearningRateMonitor: trainer must have a logger, got none");
  CHECK(error_text([] { LearningRateMonitor({.interval = "batch"}); }) ==
        "LearningRateMonitor: interval must be step or epoch, got batch");
}

}  // namespace
}  // namespace cairn::test
