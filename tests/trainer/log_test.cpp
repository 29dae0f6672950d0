// log(): levels, names, reductions, dictionaries, errors; the CSV logger and the progress bar.
#include <cstdio>
#include <limits>
#include <memory>

#include "cairn/trainer/callbacks/progress_bar.h"
#include "cairn/trainer/loggers/csv_logger.h"
#include "tests/catch.h"
#include "tests/trainer/small.h"

namespace cairn::test {
namespace {

using trainer::CSVLogger;
using trainer::LogOptions;
using trainer::Metrics;
using trainer::Reduce;

// Logs whatever `act` says from training_step and validation_step.
struct Logging : SmallModel {
  std::function<void(Logging&, const Batch&, int64_t)> in_training = {};
  std::function<void(Logging&, const Batch&, int64_t)> in_validation = {};
  std::function<void(Logging&)> at_epoch_end = {};
  using TrainingModule::log;
  using TrainingModule::log_dict;
  using TrainingModule::trainer;

  Tensor training_step(const Batch& b, int64_t i) override {
    if (in_training) in_training(*this, b, i);
    return mse_loss(forward(b.input), b.target);
  }
  void validation_step(const Batch& b, int64_t i) override {
    if (in_validation) in_validation(*this, b, i);
  }
  void on_train_epoch_end() override {
    if (at_epoch_end) at_epoch_end(*this);
  }
};

// Keeps what the trainer gives to loggers.
struct Keeper : trainer::Logger {
  std::vector<std::pair<int64_t, Metrics>> rows;
  std::string status;
  int saves = 0;
  void log_hyperparams(const trainer::State&) override {}
  void log_metrics(const Metrics& m, int64_t step) override { rows.emplace_back(step, m); }
  void save() override { ++saves; }
  void finalize(std::string_view s) override { status = s; }
};

struct Run {
  data::TensorDataset set = small_data(5);
  data::DataLoader train{set, {.batch_size = 2}};  // 2, 2, 1
  data::DataLoader val{set, {.batch_size = 2}};
  Logging model;
  std::shared_ptr<Keeper> keeper = std::make_shared<Keeper>();

  std::unique_ptr<Trainer> fit(int64_t log_every = 1, int64_t epochs = 1) {
    TrainerOptions o = quiet({.max_epochs = epochs});
    o.logger = keeper;
    o.log_every_n_steps = log_every;
    o.num_sanity_val_steps = 0;
    auto t = std::make_unique<Trainer>(std::move(o));
    t->fit(model, train, val);
    return t;
  }
};

TEST_CASE("trainer: log keeps step values in training and epoch means in validation") {
  Run r;
  r.model.in_training = [](Logging& m, const Batch&, int64_t i) {
    m.log("loss", static_cast<double>(i));
  };
  r.model.in_validation = [](Logging& m, const Batch&, int64_t i) {
    m.log("val", static_cast<double>(i));
  };
  const auto t = r.fit();
  // Batches of 2, 2 and 1 samples: (0 * 2 + 1 * 2 + 2 * 1) / 5.
  CHECK(t->callback_metrics() == Metrics{{"loss", 2}, {"val", 0.8}});
  REQUIRE(r.keeper->rows.size() == 4);
  CHECK(r.keeper->rows[0] == std::pair<int64_t, Metrics>{0, {{"epoch", 0}, {"loss", 0}}});
  CHECK(r.keeper->rows[2] == std::pair<int64_t, Metrics>{2, {{"epoch", 0}, {"loss", 2}}});
  CHECK(r.keeper->rows[3] == std::pair<int64_t, Metrics>{2, {{"epoch", 0}, {"val", 0.8}}});
  CHECK(r.keeper->status == "success");
  CHECK(r.keeper->saves >= 1);
  CHECK(t->logged_metrics() == Metrics{{"epoch", 0}, {"loss", 2}, {"val", 0.8}});
  CHECK(t->progress_bar_metrics().empty());
}

TEST_CASE("trainer: both levels get suffixes, and the plain name for callbacks") {
  Run r;
  r.model.in_training = [](Logging& m, const Batch&, int64_t i) {
    m.log("loss", static_cast<double>(i), {.on_step = true, .on_epoch = true, .prog_bar = true});
  };
  const auto t = r.fit();
  CHECK(t->callback_metrics() == Metrics{{"loss", 0.8}, {"loss_step", 2}, {"loss_epoch", 0.8}});
  CHECK(t->progress_bar_metrics() == Metrics{{"loss_step", 2}, {"loss_epoch", 0.8}});
  CHECK(r.keeper->rows.back().second == Metrics{{"epoch", 0}, {"loss_epoch", 0.8}});
}

TEST_CASE("trainer: reductions over an epoch") {
  Run r;
  r.model.in_validation = [](Logging& m, const Batch&, int64_t i) {
    const double v = i == 1 ? 5.0 : static_cast<double>(i);  // 0, 5, 2
    m.log("mean", v);
    m.log("even", v, {.batch_size = 1});
    m.log("sum", v, {.reduce_fx = Reduce::sum});
    m.log("min", v, {.reduce_fx = Reduce::min});
    m.log("max", v, {.reduce_fx = Reduce::max});
    m.log("hidden", v, {.logger = false});
  };
  const auto t = r.fit();
  const Metrics m = t->callback_metrics();
  CHECK(m.at("mean") == 12.0 / 5);
  CHECK(m.at("even") == 7.0 / 3);
  CHECK(m.at("sum") == 7);
  CHECK(m.at("min") == 0);
  CHECK(m.at("max") == 5);
  CHECK(m.at("hidden") == 12.0 / 5);
  CHECK(r.keeper->rows.back().second.count("hidden") == 0);
}

TEST_CASE("trainer: step values reach the loggers every n steps") {
  Run r;
  r.model.in_training = [](Logging& m, const Batch&, int64_t) { m.log("x", 1.0); };
  r.fit(2, 2);  // 6 steps: at the 2nd, 4th and 6th
  std::vector<int64_t> steps;
  for (const auto& [step, row] : r.keeper->rows) steps.push_back(step);
  CHECK(steps == std::vector<int64_t>{1, 3, 5});
  Run never;
  never.model.in_training = r.model.in_training;
  never.fit(0);
  CHECK(never.keeper->rows.empty());
}

TEST_CASE("trainer: a logged tensor is read when somebody asks") {
  Run r;
  Tensor value = zeros({});
  double during = -1;
  r.model.in_training = [&](Logging& m, const Batch&, int64_t) {
    m.log("x", value);
    value.data<float>()[0] = 7;  // behind the library's back
    during = m.trainer().callback_metric("x").value_or(-1);
    value.data<float>()[0] = 0;
  };
  r.fit();
  CHECK(during == 7);
}

TEST_CASE("trainer: what log refuses") {
  Run r;
  std::string text;
  const auto in_training = [&](auto&& act) {
    r.model.in_training = [&](Logging& m, const Batch&, int64_t) {
      text = error_text([&] { act(m); });
    };
    r.fit();
    return text;
  };
  CHECK(in_training([](Logging& m) { m.log("", 1.0); }) == "log: name must not be empty");
  CHECK(in_training([](Logging& m) { m.log("v", zeros({2})); }) ==
        "log: value of 'v' must have one element, got shape [2]");
  CHECK(in_training([](Logging& m) { m.log("v", Tensor()); }) ==
        "log: value of 'v' must be a tensor, got an undefined one");
  CHECK(in_training([](Logging& m) { m.log("v", 1.0, {.on_step = false, .on_epoch = false}); }) ==
        "log: 'v' must be on_step or on_epoch, got neither");
  CHECK(in_training([](Logging& m) {
          m.log("v", 1.0);
          m.log("v", 1.0, {.prog_bar = true});
        }) == "log: options of 'v' must stay the same in training_step");
  CHECK(in_training([](Logging& m) { m.log("v", 1.0, {.batch_size = 0}); }) ==
        "log: batch_size of 'v' must be positive, got 0");
  r.model.in_training = {};
  r.model.at_epoch_end = [&](Logging& m) {
    text = error_text([&] { m.log("v", 1.0, {.on_step = true}); });
    m.log("fine", 3.0);
  };
  const auto t = r.fit();
  CHECK(text == "log: 'v' must be on_epoch in on_train_epoch_end, got on_step");
  CHECK(t->callback_metric("fine") == 3.0);

  struct InPredict : Logging {
    Tensor predict_step(const Batch& b, int64_t) override {
      log("v", 1.0);
      return b.input;
    }
    void on_fit_start() override { log("v", 1.0); }
  } model;
  Trainer trainer(quiet({.max_epochs = 1}));
  CHECK(error_text([&] { trainer.predict(model, r.val); }) ==
        "log: 'v' must be logged in a step or an epoch hook, got predict_step");
  CHECK(error_text([&] { trainer.fit(model, r.train); }) ==
        "log: 'v' must be logged in a step or an epoch hook, got on_fit_start");
  CHECK_NOTHROW(model.log("v", 1.0));  // without a trainer it goes nowhere
}

TEST_CASE("trainer: metrics.csv grows columns and keeps its rows") {
  TempFolder folder;
  CSVLogger logger({.dir = folder.path("run"), .flush_logs_every_n_steps = 2});
  logger.log_hyperparams({{"lr", 0.5}, {"name", "a \"b\""}, {"n", 3}});
  CHECK(read_bytes(folder.path("run/hparams.yaml")) ==
        "\"lr\": 0.5\n\"n\": 3\n\"name\": \"a \\\"b\\\"\"\n");
  logger.log_metrics({{"epoch", 0}, {"loss", 0.25}}, 0);
  logger.log_metrics({{"epoch", 0}, {"loss", 0.5}}, 1);
  logger.save();
  CHECK(read_bytes(logger.metrics_path()) == "epoch,step,loss\n0,0,0.25\n0,1,0.5\n");
  logger.log_metrics({{"epoch", 0}, {"loss", 1}}, 2);
  logger.log_metrics({{"epoch", 0}, {"acc,uracy", 0.125}}, 2);
  logger.log_metrics({{"epoch", 1}, {"loss", std::numeric_limits<double>::quiet_NaN()}}, 3);
  logger.finalize("success");
  CHECK(read_bytes(logger.metrics_path()) ==
        "epoch,step,loss,\"acc,uracy\"\n0,0,0.25,\n0,1,0.5,\n0,2,1,\n0,2,,0.125\n1,3,nan,\n");

  // A resumed run keeps the rows its checkpoint knew of, and columns it may use again.
  CSVLogger second({.dir = folder.path("run")});
  second.resume({{"rows", 3}});
  second.log_metrics({{"epoch", 1}, {"loss", 2}}, 3);
  second.save();
  CHECK(read_bytes(second.metrics_path()) ==
        "epoch,step,loss,\"acc,uracy\"\n0,0,0.25,\n0,1,0.5,\n0,2,1,\n1,3,2,\n");
  CHECK(second.state_dict() == trainer::State{{"rows", 4}});

  // Without resume an earlier run's table is replaced.
  CSVLogger third({.dir = folder.path("run")});
  third.log_hyperparams({});
  CHECK(read_bytes(third.metrics_path()) == "epoch,step\n");
}

TEST_CASE("trainer: the CSV logger takes the next free version") {
  TempFolder folder;
  const auto dir = [&] { return CSVLogger({.save_dir = folder.path(), .name = "logs"}); };
  CHECK(dir().log_dir() == folder.path("logs/version_0"));
  dir().log_hyperparams({});
  dir().log_hyperparams({});
  CHECK(dir().log_dir() == folder.path("logs/version_2"));
  folder.write("file", "");
  CHECK(error_text([&] {
          CSVLogger({.dir = folder.path("file")}).log_hyperparams({});
        }).find("CSVLogger: '" + folder.path("file") + "' must be a folder that can be made") == 0);
}

// Text that a progress bar wrote during a fit of two epochs with one prog_bar metric.
std::string bar_text(trainer::ProgressBarOptions options) {
  std::FILE* file = std::tmpfile();
  options.stream = file;
  Run r;
  r.model.in_training = [](Logging& m, const Batch&, int64_t) {
    m.log("loss", 0.5, {.prog_bar = true});
  };
  TrainerOptions o = quiet({.max_epochs = 2});
  o.enable_progress_bar = true;
  o.callbacks = {trainer::ProgressBar(options)};
  Trainer t(std::move(o));
  t.fit(r.model, r.train, r.val);
  t.warn("watch out");
  std::string text(static_cast<size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  REQUIRE(std::fread(text.data(), 1, text.size(), file) == text.size());
  std::fclose(file);
  return text;
}

TEST_CASE("trainer: the progress bar writes few plain lines where there is no terminal") {
  const std::string text = bar_text({});
  CHECK(text.find('\r') == std::string::npos);
  CHECK(text.find("epoch 1/2  3 batches\n") == 0);
  CHECK(text.find("epoch 1/2  3/3  loss 0.5") != std::string::npos);
  CHECK(text.find("epoch 2/2  3/3  loss 0.5") != std::string::npos);
  CHECK(text.find("samples/s") != std::string::npos);
  CHECK(text.find("warning: watch out\n") != std::string::npos);
  CHECK(std::count(text.begin(), text.end(), '\n') == 5);  // start and end of two epochs, a warning
  const std::string busy = bar_text({.line_seconds = 0});
  CHECK(std::count(busy.begin(), busy.end(), '\n') > 10);
}

TEST_CASE("trainer: the progress bar refreshes one line on a terminal") {
  const std::string text = bar_text({.terminal = true, .refresh_seconds = 0});
  CHECK(std::count(text.begin(), text.end(), '\n') == 3);  // one per epoch, and the warning
  CHECK(text.find("\repoch 1/2 [======              ] 1/3  loss 0.5") != std::string::npos);
  CHECK(text.find("epoch 2/2 [====================] 3/3  loss 0.5") != std::string::npos);
  CHECK(text.find("left 0:0") != std::string::npos);
  CHECK(text.find("validation [") != std::string::npos);
}

}  // namespace
}  // namespace cairn::test
