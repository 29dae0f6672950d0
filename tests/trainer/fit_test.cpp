// The loop: how far it goes, when it steps, validates and stops; what it warns of.
#include <memory>

#include "cairn/nn/models/resnet.h"
#include "cairn/optim/schedule.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/trainer/small.h"

namespace cairn::test {
namespace {

// What happened at each training batch and validation.
struct Counter : Callback {
  void on_train_epoch_start(Trainer&, TrainingModule&) override { ++epochs; }
  void on_train_batch_end(Trainer& t, TrainingModule&, const Tensor&, const Batch&,
                          int64_t) override {
    ++batches;
    steps.push_back(t.global_step());
  }
  void on_validation_start(Trainer& t, TrainingModule&) override {
    if (!t.sanity_checking()) validations.push_back(batches);
  }
  void on_validation_batch_end(Trainer& t, TrainingModule&, const Batch&, int64_t) override {
    if (t.sanity_checking()) ++sanity;
  }
  int64_t epochs = 0;
  int64_t batches = 0;
  int64_t sanity = 0;
  std::vector<int64_t> steps;
  std::vector<int64_t> validations;
};

struct Run {
  data::TensorDataset train_set = small_data(20);
  data::TensorDataset val_set = small_data(12, 8);
  data::DataLoader train{train_set, {.batch_size = 2, .shuffle = true}};  // 10 batches
  data::DataLoader val{val_set, {.batch_size = 4}};                       // 3 batches
  SmallModel model;
  std::shared_ptr<Counter> counter = std::make_shared<Counter>();

  // The trainer after the run.
  std::unique_ptr<Trainer> fit(TrainerOptions options) {
    options.callbacks.push_back(counter);
    auto trainer = std::make_unique<Trainer>(quiet(std::move(options)));
    trainer->fit(model, train, val);
    return trainer;
  }
};

TEST_CASE("trainer: max_epochs, max_steps and limits end a run") {
  Run r;
  SECTION("epochs") {
    const auto t = r.fit({.max_epochs = 3});
    CHECK(r.counter->epochs == 3);
    CHECK(r.counter->batches == 30);
    CHECK(t->global_step() == 30);
    CHECK(t->current_epoch() == 3);
  }
  SECTION("steps, inside an epoch") {
    const auto t = r.fit({.max_steps = 13});
    CHECK(r.counter->batches == 13);
    CHECK(t->current_epoch() == 1);
  }
  SECTION("steps count optimizer steps, not batches") {
    TrainerOptions o;
    o.max_steps = 4;
    o.accumulate_grad_batches = 3;  // steps after batches 3, 6, 9, 10 of an epoch of 10
    r.fit(std::move(o));
    CHECK(r.counter->batches == 10);
    CHECK(r.counter->steps == std::vector<int64_t>{0, 0, 1, 1, 1, 2, 2, 2, 3, 4});
  }
  SECTION("no epochs") {
    r.fit({.max_epochs = 0});
    CHECK(r.counter->epochs == 0);
    CHECK(r.counter->sanity == 0);
  }
  SECTION("time") {
    r.fit({.max_epochs = -1, .max_time = std::chrono::milliseconds(1)});
    CHECK(r.counter->batches >= 1);
  }
  SECTION("a count of training batches") {
    TrainerOptions o{.max_epochs = 2};
    o.limit_train_batches = 4;
    r.fit(std::move(o));
    CHECK(r.counter->batches == 8);
    CHECK(r.counter->validations == std::vector<int64_t>{4, 8});
  }
  SECTION("a share of training batches") {
    TrainerOptions o{.max_epochs = 1};
    o.limit_train_batches = 0.5;
    r.fit(std::move(o));
    CHECK(r.counter->batches == 5);
  }
  SECTION("an integer 1 is one batch, 1.0 is all") {
    TrainerOptions o{.max_epochs = 1};
    o.limit_train_batches = 1;
    r.fit(std::move(o));
    CHECK(r.counter->batches == 1);
  }
}

TEST_CASE("trainer: when validation runs") {
  Run r;
  TrainerOptions o{.max_epochs = 2};
  SECTION("after each epoch, with two sanity batches before") {
    r.fit(std::move(o));
    CHECK(r.counter->validations == std::vector<int64_t>{10, 20});
    CHECK(r.counter->sanity == 2);
  }
  SECTION("all sanity batches") {
    o.num_sanity_val_steps = -1;
    r.fit(std::move(o));
    CHECK(r.counter->sanity == 3);
  }
  SECTION("a share of an epoch") {
    o.val_check_interval = 0.25;  // every 2 batches
    r.fit(std::move(o));
    CHECK(r.counter->validations == std::vector<int64_t>{2, 4, 6, 8, 10, 12, 14, 16, 18, 20});
  }
  SECTION("a number of batches starts anew each epoch") {
    o.val_check_interval = 4;
    r.fit(std::move(o));
    CHECK(r.counter->validations == std::vector<int64_t>{4, 8, 14, 18});
  }
  SECTION("without check_val_every_n_epoch it counts across epochs") {
    o.val_check_interval = 8;
    o.check_val_every_n_epoch = {};
    r.fit(std::move(o));
    CHECK(r.counter->validations == std::vector<int64_t>{8, 16});
  }
  SECTION("every second epoch") {
    o.check_val_every_n_epoch = 2;
    r.fit(std::move(o));
    CHECK(r.counter->validations == std::vector<int64_t>{20});
  }
  SECTION("an interval longer than an epoch is an error") {
    o.val_check_interval = 11;
    CHECK(error_text([&] { r.fit(std::move(o)); }) ==
          "fit: val_check_interval must be at most the 10 training batches of an epoch, got 11; "
          "without check_val_every_n_epoch it counts across epochs");
  }
}

TEST_CASE("trainer: the sanity check leaves nothing behind") {
  Run with;
  Run without;
  raw::copy_(without.model.layer.weight, with.model.layer.weight);
  raw::copy_(without.model.layer.bias, with.model.layer.bias);
  manual_seed(5);
  TrainerOptions o{.max_epochs = 1};
  with.fit(o);
  manual_seed(5);
  o.num_sanity_val_steps = 0;
  without.fit(o);
  CHECK(with.model.losses == without.model.losses);
  CHECK(bits(with.model) == bits(without.model));
}

TEST_CASE("trainer: a stop request is held back by min_epochs and min_steps") {
  struct StopAtOnce : Callback {
    void on_train_batch_end(Trainer& t, TrainingModule&, const Tensor&, const Batch&,
                            int64_t) override {
      t.stop("enough");
    }
  };
  Run r;
  TrainerOptions o{.max_epochs = 5};
  o.callbacks = {StopAtOnce()};
  int64_t expected = 1;
  SECTION("nothing holds it") {}
  SECTION("min_epochs") {
    o.min_epochs = 2;
    expected = 20;
  }
  SECTION("min_steps") {
    o.min_steps = 7;
    expected = 7;
  }
  const auto t = r.fit(std::move(o));
  CHECK(r.counter->batches == expected);
  CHECK(t->stop_reason() == "enough");
}

TEST_CASE("trainer: accumulated gradients are those of one large batch") {
  data::TensorDataset set = small_data(8);
  const auto weight_after = [&](int64_t batch_size, int64_t accumulate) {
    struct Plain : SmallModel {
      OptimizerConfig configure_optimizers() override {
        return optim::sgd(parameters(), {.lr = 0.1});
      }
    } model;
    model.dropout_p = 0;
    raw::fill_(model.layer.weight, 0.5);
    raw::fill_(model.layer.bias, 0.25);
    data::DataLoader loader(set, {.batch_size = batch_size});
    TrainerOptions o{.max_epochs = 1};
    o.accumulate_grad_batches = accumulate;
    Trainer(quiet(std::move(o))).fit(model, loader);
    return raw::clone(model.layer.weight);
  };
  const Tensor large = weight_after(8, 1);
  const Tensor small = weight_after(2, 4);
  // 8 products of f32 summed in another order: 8 half-ulps of values near 1.
  for (int64_t i = 0; i < large.numel(); ++i)
    CHECK(small.data<float>()[i] == Approx(large.data<float>()[i]).margin(8 * 6e-8));
}

TEST_CASE("trainer: gradients are clipped by norm or by value") {
  struct GradientNorm : Callback {
    void on_train_batch_end(Trainer& t, TrainingModule&, const Tensor&, const Batch&,
                            int64_t) override {
      largest = 0;
      norm2 = 0;
      for (const Tensor& p : t.optimizer().parameters()) {
        const Tensor g = raw::contiguous(grad(p));
        for (int64_t i = 0; i < g.numel(); ++i) {
          largest = std::max(largest, std::abs(static_cast<double>(g.data<float>()[i])));
          norm2 += std::pow(static_cast<double>(g.data<float>()[i]), 2);
        }
      }
    }
    double largest = 0;
    double norm2 = 0;
  };
  Run r;
  auto seen = std::make_shared<GradientNorm>();
  TrainerOptions o{.max_steps = 1};
  o.callbacks = {seen};
  o.gradient_clip_val = 1e-3;
  SECTION("norm") {
    r.fit(std::move(o));
    // min(1, max / (norm + 1e-6)): at most 1e-3 relative below the limit, rounding aside.
    CHECK(std::sqrt(seen->norm2) == Approx(1e-3).epsilon(2e-3));
  }
  SECTION("value") {
    o.gradient_clip_algorithm = "value";
    r.fit(std::move(o));
    CHECK(seen->largest == Approx(1e-3).epsilon(1e-6));
  }
}

TEST_CASE("trainer: a skipped batch warns once and does not step") {
  Run r;
  r.model.skip_batches = true;
  const auto t = r.fit({.max_epochs = 1});
  CHECK(r.counter->batches == 10);
  CHECK(t->global_step() == 0);
  CHECK(t->warnings() ==
        std::vector<std::string>{"fit: training_step gave no loss, so its batch was skipped"});
}

TEST_CASE("trainer: on_train_batch_start may skip the rest of the epoch") {
  struct Skipping : SmallModel {
    EpochControl on_train_batch_start(const Batch&, int64_t i) override {
      return i == 3 ? EpochControl::skip_rest : EpochControl::proceed;
    }
  } model;
  Run r;
  Trainer t(quiet({.max_epochs = 2, .callbacks = {r.counter}}));
  t.fit(model, r.train);
  CHECK(r.counter->batches == 6);
  CHECK(t.current_epoch() == 2);
}

TEST_CASE("trainer: schedules step by epoch, by step and by metric") {
  struct Scheduled : SmallModel {
    std::string kind;
    std::vector<double> rates;  // at each step
    OptimizerConfig configure_optimizers() override {
      auto o = optim::sgd(parameters(), {.lr = 1});
      optim::Optimizer& optimizer = *o;
      if (kind == "epoch") return {std::move(o), optim::exponential_lr(optimizer, {.gamma = 0.5})};
      if (kind == "step")
        return {std::move(o),
                optim::exponential_lr(optimizer, {.gamma = 0.5}),
                {.interval = optim::Interval::step, .frequency = 4}};
      return {std::move(o),
              optim::reduce_lr_on_plateau(optimizer, {.factor = 0.5, .patience = 0}),
              {.monitor = "val_loss"}};
    }
    void validation_step(const Batch&, int64_t) override {
      if (kind != "no metric") log("val_loss", 1.0);
    }
    void on_before_optimizer_step(optim::Optimizer& o) override { rates.push_back(o.lr()); }
  } model;
  Run r;
  TrainerOptions o{.max_epochs = 3};
  o.limit_train_batches = 3;
  Trainer t(quiet(std::move(o)));
  std::vector<double> expected;
  SECTION("epoch") {
    model.kind = "epoch";
    expected = {1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25};
  }
  SECTION("step") {
    model.kind = "step";
    expected = {1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25};
  }
  SECTION("metric") {  // 1.0 is best at first, then no better
    model.kind = "metric";
    expected = {1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5};
  }
  SECTION("a metric nobody logs") {
    model.kind = "no metric";
    CHECK(error_text([&] { t.fit(model, r.train, r.val); }) ==
          "fit: monitor of the schedule must be a logged metric, got 'val_loss', which is none of "
          "them");
    return;
  }
  t.fit(model, r.train, r.val);
  CHECK(model.rates == expected);
}

TEST_CASE("trainer: evaluation gives every submodule its own mode back") {
  struct Frozen : SmallModel {
    nn::Linear extra{child("extra"), 3, 2};
    std::vector<bool> seen;
    void validation_step(const Batch&, int64_t) override {
      seen.push_back(training() || layer.training() || extra.training());
    }
  } model;
  model.extra.eval();
  Run r;
  Trainer t(quiet({.max_epochs = 1}));
  t.fit(model, r.train, r.val);
  CHECK(model.training());
  CHECK(model.layer.training());
  CHECK_FALSE(model.extra.training());
  CHECK(model.seen == std::vector<bool>(5, false));  // 2 sanity batches and 3
  CHECK(t.warnings() ==
        std::vector<std::string>{"fit: 1 modules are in evaluation mode and stay in it"});
}

TEST_CASE("trainer: test returns its metrics and predict its tensors") {
  Run r;
  Trainer t(quiet());
  const trainer::Metrics metrics = t.test(r.model, r.val);
  REQUIRE(metrics.size() == 1);
  CHECK(metrics.at("test_loss") > 0);
  const std::vector<Tensor> predictions = t.predict(r.model, r.val);
  REQUIRE(predictions.size() == 3);
  CHECK(predictions[0].shape() == Shape{4, 2});
  CHECK_FALSE(requires_grad(predictions[0]));
}

TEST_CASE("trainer: a configured callback replaces one of its class") {
  struct Bringing : SmallModel {
    std::shared_ptr<Counter> own = std::make_shared<Counter>();
    std::vector<trainer::Held<Callback>> configure_callbacks() override { return {own}; }
  } model;
  Run r;
  Trainer t(quiet({.max_epochs = 1, .callbacks = {r.counter}}));
  t.fit(model, r.train);
  CHECK(r.counter->batches == 0);
  CHECK(model.own->batches == 10);
}

TEST_CASE("trainer: Ctrl-C ends the run after the batch and the handler goes away") {
  struct Interrupting : Callback {
    void on_train_batch_end(Trainer&, TrainingModule&, const Tensor&, const Batch&,
                            int64_t i) override {
      if (i == 2) std::raise(SIGINT);
    }
    void on_exception(Trainer&, TrainingModule&, const std::exception& e) override {
      error = e.what();
    }
    std::string error;
  };
  const DefaultInterrupt no_handler;
  Run r;
  auto interrupting = std::make_shared<Interrupting>();
  TrainerOptions o{.max_epochs = 1};
  o.callbacks = {interrupting};
  CHECK_THROWS_AS(r.fit(std::move(o)), trainer::Interrupted);
  CHECK(interrupting->error == "fit: interrupted after step 3");
  CHECK(r.counter->batches == 3);
  struct sigaction now {};
  sigaction(SIGINT, nullptr, &now);
  CHECK(now.sa_handler == SIG_DFL);
}

// The allocator's requests to the system so far, after each batch.
struct Watch : Callback {
  void on_train_batch_end(Trainer&, TrainingModule&, const Tensor&, const Batch&,
                          int64_t) override {
    counts.push_back(memory_stats().system_allocations);
  }
  std::vector<int64_t> counts;
};

TEST_CASE("trainer: a steady step asks the system for no memory") {
  Run r;
  auto watch = std::make_shared<Watch>();
  TrainerOptions o{.max_epochs = 1};
  o.callbacks = {watch};
  o.gradient_clip_val = 1;
  r.fit(std::move(o));
  REQUIRE(watch->counts.size() == 10);
  for (size_t i = 2; i < watch->counts.size(); ++i) CHECK(watch->counts[i] == watch->counts[1]);
}

TEST_CASE("trainer: a steady step of a ResNet asks the system for no memory") {
  struct Classifier : TrainingModule {
    nn::ResNet model{child("model"), nn::resnet18({.in_channels = 1, .num_classes = 10})};
    Tensor training_step(const Batch& batch, int64_t) override {
      Tensor loss = cross_entropy(model(batch.input), batch.target);
      log("loss", loss, {.on_step = true, .on_epoch = true, .prog_bar = true});
      return loss;
    }
    OptimizerConfig configure_optimizers() override { return optim::adam(parameters()); }
  } model;
  Generator generator(1);
  data::TensorDataset set(randn({24, 1, 28, 28}, {}, generator),
                          randint(0, 10, {24}, {.dtype = DType::i64}, generator));
  data::DataLoader loader(set, {.batch_size = 4, .shuffle = true});
  auto watch = std::make_shared<Watch>();
  Trainer(quiet({.max_epochs = 1, .callbacks = {watch}})).fit(model, loader);
  REQUIRE(watch->counts.size() == 6);
  for (size_t i = 2; i < watch->counts.size(); ++i) CHECK(watch->counts[i] == watch->counts[1]);
}

}  // namespace
}  // namespace cairn::test
