// Settings and learning rates of several processes must be the same, and a schedule's metric is.
#include <cstdlib>

#include "cairn/optim/schedule.h"
#include "tests/catch.h"
#include "tests/trainer/ranks.h"

namespace cairn::test {
namespace {

// A model that makes its optimizer by its rank's wish.
struct Configured : SyncedModel {
  std::function<OptimizerConfig(Configured&)> configure = {};
  OptimizerConfig configure_optimizers() override {
    return configure ? configure(*this) : SyncedModel::configure_optimizers();
  }
};

struct Ended {
  std::string error;
  std::vector<float> parameters;
  double lr = 0;
};

// What each of three ranks ends with.
std::vector<Ended> fit_differing(
    const std::function<void(int rank, TrainerOptions&, Configured&)>& change) {
  std::vector<Ended> out(3);
  on_ranks(3, [&](const Group& group) {
    const data::TensorDataset set = small_data(24);
    data::DataLoader loader(set, {.batch_size = 2}), val(set, {.batch_size = 2});
    Configured model;
    TrainerOptions o = quiet({.max_epochs = 3});
    change(group->rank(), o, model);
    o.strategy = DDPStrategy({.group = group});
    Trainer trainer(std::move(o));
    Ended& mine = out[static_cast<size_t>(group->rank())];
    mine.error = error_of([&] { trainer.fit(model, loader, val); });
    mine.parameters = values_of(model);
    if (mine.error == "no error") mine.lr = trainer.optimizer().lr();
  });
  return out;
}

void check_refused(const std::string& what,
                   const std::function<void(int rank, TrainerOptions&, Configured&)>& change) {
  for (const Ended& rank : fit_differing(change))
    CHECK(rank.error == "fit: all processes must have the same settings, got " + what);
}

}  // namespace

TEST_CASE("trainer: settings that differ between processes are refused by name") {
  const OneThread one_thread;
  using Options = TrainerOptions;
  const auto options = [](const std::string& what, std::function<void(int, Options&)> change) {
    check_refused(what, [&](int rank, Options& o, Configured&) { change(rank, o); });
  };
  options("gradient_clip_val 1 on rank 0 and 0.5 on rank 1",
          [](int rank, Options& o) { o.gradient_clip_val = rank == 1 ? 0.5 : 1; });
  options("gradient_clip_val none on rank 0 and 0.5 on rank 2", [](int rank, Options& o) {
    if (rank == 2) o.gradient_clip_val = 0.5;
  });
  options("gradient_clip_algorithm norm on rank 0 and value on rank 1", [](int rank, Options& o) {
    if (rank == 1) o.gradient_clip_algorithm = "value";
  });
  options("accumulate_grad_batches 1 on rank 0 and 2 on rank 1", [](int rank, Options& o) {
    if (rank == 1) o.accumulate_grad_batches = 2;
  });
  options("precision 32-true on rank 0 and bf16-mixed on rank 1", [](int rank, Options& o) {
    if (rank == 1) o.precision = "bf16-mixed";
  });
  options("max_epochs 3 on rank 0 and 4 on rank 2", [](int rank, Options& o) {
    if (rank == 2) o.max_epochs = 4;
  });
  options("max_steps 5 on rank 0 and -1 on rank 1", [](int rank, Options& o) {
    if (rank == 0) o.max_steps = 5;
  });
  options("min_epochs none on rank 0 and 1 on rank 1", [](int rank, Options& o) {
    if (rank == 1) o.min_epochs = 1;
  });
  options("check_val_every_n_epoch 1 on rank 0 and 2 on rank 1", [](int rank, Options& o) {
    if (rank == 1) o.check_val_every_n_epoch = 2;
  });
  options("val_check_interval 1 of an epoch on rank 0 and 1 batches on rank 1",
          [](int rank, Options& o) {
            if (rank == 1) o.val_check_interval = 1;
          });
  options("num_sanity_val_steps 2 on rank 0 and -1 on rank 1", [](int rank, Options& o) {
    if (rank == 1) o.num_sanity_val_steps = -1;
  });
}

TEST_CASE("trainer: optimizers that differ between processes are refused by name") {
  const OneThread one_thread;
  using Make = std::function<OptimizerConfig(Configured&, bool second)>;
  const auto optimizers = [](const std::string& what, Make make) {
    check_refused(what, [&](int rank, TrainerOptions&, Configured& model) {
      model.configure = [&make, rank](Configured& m) { return make(m, rank == 1); };
    });
  };
  optimizers("param_groups.0.lr 0.1 on rank 0 and 0.05 on rank 1", [](Configured& m, bool second) {
    return optim::sgd(m.parameters(), {.lr = second ? 0.05 : 0.1});
  });
  optimizers("param_groups.0.weight_decay 0 on rank 0 and 0.01 on rank 1",
             [](Configured& m, bool second) {
               return optim::sgd(m.parameters(), {.lr = 0.1, .weight_decay = second ? 0.01 : 0});
             });
  optimizers("optimizer sgd on rank 0 and adam on rank 1",
             [](Configured& m, bool second) -> OptimizerConfig {
               if (second) return optim::adam(m.parameters(), {.lr = 0.1});
               return optim::sgd(m.parameters(), {.lr = 0.1});
             });
  optimizers("param_groups.0.params.1 layer.bias on rank 0 and none on rank 1",
             [](Configured& m, bool second) {
               auto parameters = m.parameters();
               if (second) parameters.pop_back();
               return optim::sgd(parameters, {.lr = 0.1});
             });
  optimizers("schedule.frequency 1 on rank 0 and 2 on rank 1",
             [](Configured& m, bool second) -> OptimizerConfig {
               auto optimizer = optim::sgd(m.parameters(), {.lr = 0.1});
               auto schedule = optim::step_lr(*optimizer, {.step_size = 1});
               return {std::move(optimizer), std::move(schedule), {.frequency = second ? 2 : 1}};
             });
}

TEST_CASE("trainer: learning rates that come to differ between processes end the fit") {
  const OneThread one_thread;
  const auto ended = fit_differing([](int rank, TrainerOptions&, Configured& model) {
    model.configure = [rank](Configured& m) -> OptimizerConfig {
      auto optimizer = optim::sgd(m.parameters(), {.lr = 0.5});
      auto schedule = optim::lambda_lr(*optimizer, [rank](int64_t epoch) {
        return epoch == 0 ? 1 : rank == 2 ? 0.25 : 0.5;
      });
      return {std::move(optimizer), std::move(schedule)};
    };
  });
  for (const Ended& rank : ended)
    CHECK(rank.error ==
          "fit: all processes must have the same learning rate, got 0.125 to 0.25 in parameter "
          "group 0 after step 4");
}

TEST_CASE("trainer: a schedule on a metric of each process goes by that of rank 0") {
  const OneThread one_thread;
  struct Judged : SyncedModel {
    double sign = 1;
    OptimizerConfig configure_optimizers() override {
      auto optimizer = optim::sgd(parameters(), {.lr = 0.5});
      auto schedule = optim::reduce_lr_on_plateau(*optimizer, {.factor = 0.5, .patience = 0});
      return {std::move(optimizer), std::move(schedule), {.monitor = "own"}};
    }
    void validation_step(const Batch&, int64_t) override {
      log("own", sign * static_cast<double>(trainer().current_epoch()));
    }
  };
  // The value gets worse on some processes: on those that are not rank 0, or on it alone.
  for (const bool first_is_better : {true, false}) {
    std::vector<Ended> out(2);
    on_ranks(2, [&](const Group& group) {
      Judged model;
      const bool first = group->rank() == 0;
      model.sign = first == first_is_better ? -1 : 1;
      const data::TensorDataset set = small_data(16);
      data::DataLoader loader(set, {.batch_size = 2}), val(set, {.batch_size = 2});
      TrainerOptions o = quiet({.max_epochs = 3});
      o.strategy = DDPStrategy({.group = group});
      Trainer trainer(std::move(o));
      trainer.fit(model, loader, val);
      out[static_cast<size_t>(group->rank())] = {"", values_of(model), trainer.optimizer().lr()};
    });
    CHECK(out[0].parameters == out[1].parameters);
    for (const Ended& rank : out) CHECK(rank.lr == (first_is_better ? 0.5 : 0.125));
  }
}

TEST_CASE("trainer: one process of several does not train as if it were alone") {
  struct Started {
    Started() {
      ::setenv("LOCAL_RANK", "1", 1);
      ::setenv("RANK", "1", 1);
      ::setenv("WORLD_SIZE", "2", 1);
      ::setenv("LOCAL_WORLD_SIZE", "2", 1);
    }
    ~Started() {
      for (const char* name : {"LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"})
        ::unsetenv(name);
    }
  };
  const data::TensorDataset set = small_data(8);
  data::DataLoader loader(set, {.batch_size = 2});
  SmallModel model;
  TrainerOptions o = quiet({.max_epochs = 1});
  o.strategy = "single_device";
  Trainer trainer(std::move(o));
  {
    const Started started;
    CHECK(error_of([&] { trainer.fit(model, loader); }) ==
          "Trainer: strategy single_device must be used in one process, got one of 2 that a "
          "launcher started; strategy ddp trains with all of them");
    CHECK(trainer.test(model, loader).count("test_loss") == 1);
  }
  trainer.fit(model, loader);
  CHECK(trainer.global_step() == 4);
}

}  // namespace cairn::test
