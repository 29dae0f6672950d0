// Metrics of several processes that saw unequal parts of the data, or logged unequal names.
#include <atomic>
#include <filesystem>
#include <limits>
#include <thread>

#include "cairn/trainer/callbacks/early_stopping.h"
#include "cairn/trainer/callbacks/model_checkpoint.h"
#include "tests/catch.h"
#include "tests/trainer/ranks.h"

namespace cairn::test {
namespace {

using Catch::Matchers::Contains;
using trainer::Metrics;
using trainer::Reduce;

// Indices [begin, end).
struct Range : data::Sampler {
  Range(int64_t from, int64_t to) : begin(from), end(to) {}
  int64_t size() const override { return end - begin; }
  std::vector<int64_t> indices() const override {
    std::vector<int64_t> out;
    for (int64_t i = begin; i < end; ++i) out.push_back(i);
    return out;
  }
  int64_t begin, end;
};

struct Evaluated {
  Metrics in_fit, alone;
  std::vector<float> parameters;
  int64_t steps = 0;
};

// Of 8 validation samples in batches of two, rank 0 of three has 3 batches, rank 1 has one, and
// rank 2 has none; a single rank has all.
std::vector<Evaluated> evaluate_unequally(int ranks, const std::string& folder) {
  std::vector<Evaluated> out(static_cast<size_t>(ranks));
  on_ranks(ranks, [&](const Group& group) {
    const int rank = group->rank();
    const data::TensorDataset set = small_data(48), val_set = small_data(8, 8);
    data::DataLoader loader(set, {.batch_size = 12 / ranks, .shuffle = true});
    const int64_t begin = rank == 1 ? 6 : 0, end = rank == 0 && ranks == 3 ? 6 : 8;
    data::DataLoader val(val_set,
                         {.batch_size = 2, .sampler = std::make_shared<Range>(begin, end)});
    SyncedModel model;
    TrainerOptions o = quiet({.max_epochs = 3});
    o.enable_checkpointing = true;
    o.callbacks = {
        trainer::EarlyStopping({.monitor = "val_loss", .patience = 100}),
        trainer::ModelCheckpoint(
            {.dirpath = folder + cat("/", ranks), .monitor = "val_loss", .save_last = true})};
    if (rank == 2) o.limit_val_batches = 0;
    o.strategy = DDPStrategy({.group = group});
    Trainer trainer(std::move(o));
    trainer.fit(model, loader, val);
    Evaluated& mine = out[static_cast<size_t>(rank)];
    mine = {trainer.callback_metrics(), {}, values_of(model), trainer.global_step()};
    mine.alone = trainer.validate(model, val);
  });
  return out;
}

// Logs what `act` says in each kind of step.
struct Logging : SyncedModel {
  using TrainingModule::log;
  using TrainingModule::trainer;
  std::function<void(Logging&, const Tensor&)> in_training = {}, in_validation = {};
  Tensor training_step(const Batch& batch, int64_t) override {
    Tensor loss = mse_loss(forward(batch.input), batch.target);
    if (in_training) in_training(*this, loss);
    return loss;
  }
  void validation_step(const Batch& batch, int64_t) override {
    if (in_validation) in_validation(*this, mse_loss(forward(batch.input), batch.target));
  }
};

// What each of two ranks ends with; rank 0 has 3 validation batches and rank 1 has one.
struct Ended {
  Metrics metrics;
  std::string error;
};
std::vector<Ended> fit_logging(const std::function<void(Logging&, TrainerOptions&)>& change,
                               dist::Milliseconds timeout = std::chrono::seconds(30)) {
  std::vector<Ended> out(2);
  on_ranks(
      2,
      [&](const Group& group) {
        const data::TensorDataset set = small_data(8);
        data::DataLoader loader(set, {.batch_size = 2});
        data::DataLoader val(
            set,
            {.batch_size = 2, .sampler = std::make_shared<Range>(0, group->rank() == 0 ? 6 : 2)});
        Logging model;
        TrainerOptions o = quiet({.max_epochs = 1, .num_sanity_val_steps = 0});
        o.strategy = DDPStrategy({.group = group});
        change(model, o);
        Trainer trainer(std::move(o));
        Ended& mine = out[static_cast<size_t>(group->rank())];
        mine.error = error_of([&] { trainer.fit(model, loader, val); });
        mine.metrics = trainer.callback_metrics();
      },
      timeout);
  return out;
}

}  // namespace

TEST_CASE("trainer: evaluations of unequal numbers of batches are joined by what each saw") {
  const OneThread one_thread;
  const TempFolder folder;
  const auto one = evaluate_unequally(1, folder.path());
  const auto three = evaluate_unequally(3, folder.path());
  for (const Evaluated& rank : three) {
    CHECK(rank.parameters == three[0].parameters);
    CHECK(rank.steps == one[0].steps);
    CHECK(rank.in_fit == three[0].in_fit);
    CHECK(rank.alone == three[0].alone);
  }
  CHECK(one[0].alone.size() == 3);
  for (const auto& [name, value] : one[0].alone) {
    INFO(name);
    CHECK(three[0].alone.at(name) == Approx(value).margin(1e-5));
    CHECK(three[0].in_fit.at(name) == Approx(one[0].in_fit.at(name)).margin(1e-5));
  }
  CHECK(three[0].alone.at("batches") == 4);
  CHECK(std::filesystem::exists(folder.path("3/last.ckpt")));
}

TEST_CASE("trainer: a step's value of all needs equal numbers of batches") {
  const OneThread one_thread;
  const auto ended = fit_logging([](Logging& model, TrainerOptions&) {
    model.in_validation = [](Logging& m, const Tensor& loss) {
      m.log("x", loss, {.on_step = true, .sync_dist = true});
    };
  });
  for (const Ended& rank : ended)
    CHECK(rank.error ==
          "log: 'x' must be without sync_dist or on_epoch alone where processes have unequal "
          "numbers of batches, got 1 to 3");
}

TEST_CASE("trainer: those with more batches to evaluate are waited for with patience") {
  const OneThread one_thread;
  const auto ended = fit_logging(
      [](Logging& model, TrainerOptions&) {
        model.in_validation = [](Logging& m, const Tensor& loss) {
          std::this_thread::sleep_for(std::chrono::milliseconds(2000));
          m.log("x", loss, {.sync_dist = true});
        };
      },
      std::chrono::seconds(3));
  for (const Ended& rank : ended) CHECK(rank.error == "no error");
  CHECK(ended[0].metrics == ended[1].metrics);
}

TEST_CASE("trainer: a name that one process alone logs becomes one of all") {
  const OneThread one_thread;
  const auto ended = fit_logging([](Logging& model, TrainerOptions&) {
    model.in_training = [](Logging& m, const Tensor& loss) {
      const auto log = [&](const char* name, Reduce how) {
        m.log(name, loss,
              {.on_step = false, .on_epoch = true, .reduce_fx = how, .sync_dist = true});
      };
      const bool first = m.trainer().global_rank() == 0;
      // In another order on each.
      for (const char* name : {first ? "a" : "b", first ? "b" : "a"}) log(name, Reduce::mean);
      if (!first) log("one", Reduce::min);
      m.log("count", first ? 1.0 : 10.0,
            {.on_step = false, .on_epoch = true, .reduce_fx = Reduce::sum, .sync_dist = true});
    };
  });
  for (const Ended& rank : ended) CHECK(rank.error == "no error");
  CHECK(ended[0].metrics == ended[1].metrics);
  CHECK(ended[0].metrics.at("a") == ended[0].metrics.at("b"));
  CHECK(ended[0].metrics.count("one") == 1);
  CHECK(ended[0].metrics.at("count") == 22);  // two batches each

  const auto mixed = fit_logging([](Logging& model, TrainerOptions&) {
    model.in_training = [](Logging& m, const Tensor& loss) {
      m.log("x", loss,
            {.on_step = false,
             .on_epoch = true,
             .reduce_fx = m.trainer().global_rank() == 0 ? Reduce::mean : Reduce::sum,
             .sync_dist = true});
    };
  });
  CHECK(mixed[0].error ==
        "log: reduce_fx of 'x' must be the same on all processes, got mean and sum");
  CHECK(mixed[1].error ==
        "log: reduce_fx of 'x' must be the same on all processes, got sum and mean");
}

TEST_CASE("trainer: step values of other names or reductions on some processes are refused") {
  const OneThread one_thread;
  struct Logged {
    std::string name;
    Reduce how = Reduce::mean;
  };
  const auto errors = [](std::vector<Logged> first, std::vector<Logged> second) {
    const auto ended = fit_logging([&](Logging& model, TrainerOptions&) {
      model.in_training = [&](Logging& m, const Tensor& loss) {
        for (const Logged& l : m.trainer().global_rank() == 0 ? first : second)
          m.log(l.name, loss, {.reduce_fx = l.how, .sync_dist = true});
      };
    });
    return std::pair(ended[0].error, ended[1].error);
  };
  const auto both = [](const std::string& got) {
    const std::string text = "log: all processes must log the same with sync_dist, got " + got;
    return std::pair(text, text);
  };
  CHECK(errors({{"alpha"}}, {{"beta"}}) ==
        both("'alpha' (mean) on rank 0 and 'beta' (mean) on rank 1"));
  CHECK(errors({{"a"}, {"b"}}, {{"b"}, {"a"}}) ==
        both("'a' (mean) on rank 0 and 'b' (mean) on rank 1"));
  CHECK(errors({{"a", Reduce::sum}}, {{"a", Reduce::max}}) ==
        both("'a' (sum) on rank 0 and 'a' (max) on rank 1"));
  CHECK(errors({{"a"}, {"b", Reduce::min}}, {{"a"}, {"b", Reduce::min}}) ==
        std::pair<std::string, std::string>("no error", "no error"));
  // Rank 1 is in a gradient's all_reduce already.
  const auto [waits, other] = errors({{"a"}, {"b"}}, {{"a"}});
  CHECK_THAT(waits, Catch::Matchers::StartsWith("log('b') with sync_dist: "));
  CHECK_THAT(waits, Contains("ranks must ask for the same"));
  CHECK_THAT(other, Contains("ranks must ask for the same"));
}

TEST_CASE("trainer: step values of all processes are joined by their reduction") {
  const OneThread one_thread;
  const auto ended = fit_logging([](Logging& model, TrainerOptions&) {
    model.in_training = [](Logging& m, const Tensor&) {
      const double mine = m.trainer().global_rank() == 0 ? 2.5 : -1;
      for (const Reduce how : {Reduce::mean, Reduce::sum, Reduce::min, Reduce::max})
        m.log(name_of(how), mine, {.reduce_fx = how, .sync_dist = true});
      const double nan = std::numeric_limits<double>::quiet_NaN();
      m.log("nan", m.trainer().global_rank() == 0 ? nan : 1,
            {.reduce_fx = Reduce::max, .sync_dist = true});
    };
  });
  for (const Ended& rank : ended) {
    REQUIRE(rank.error == "no error");
    CHECK(rank.metrics.at("mean") == 0.75);
    CHECK(rank.metrics.at("sum") == 1.5);
    CHECK(rank.metrics.at("min") == -1);
    CHECK(rank.metrics.at("max") == 2.5);
    CHECK(std::isnan(rank.metrics.at("nan")));
  }
}

TEST_CASE("trainer: training batches on some processes alone are refused") {
  const OneThread one_thread;
  const auto ended =
      fit_logging([rank = std::make_shared<std::atomic<int>>(0)](Logging&, TrainerOptions& o) {
        o.num_sanity_val_steps = 2;
        if (rank->fetch_add(1) == 1) o.limit_train_batches = 0;
      });
  for (const Ended& rank : ended)
    CHECK_THAT(rank.error, Contains("all processes must have equally many training batches, got "
                                    "0 to 2"));
}

}  // namespace cairn::test
