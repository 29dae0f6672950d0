// Checkpoint files, ModelCheckpoint, and resuming bit for bit.
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <set>

#include "cairn/optim/schedule.h"
#include "cairn/tensor/raw.h"
#include "cairn/tensor/safetensors.h"
#include "cairn/trainer/callbacks/model_checkpoint.h"
#include "cairn/trainer/loggers/csv_logger.h"
#include "tests/catch.h"
#include "tests/trainer/small.h"

namespace cairn::test {
namespace {

namespace fs = std::filesystem;
using trainer::Checkpoint;
using trainer::ModelCheckpoint;
using trainer::ModelCheckpointOptions;
using trainer::State;

// Adam, a schedule by step, dropout, accumulation: everything that has a state.
struct Stateful : SmallModel {
  OptimizerConfig configure_optimizers() override {
    auto o = optim::adam(parameters(), {.lr = 0.05});
    optim::Optimizer& optimizer = *o;
    return {std::move(o),
            optim::exponential_lr(optimizer, {.gamma = 0.9}),
            {.interval = optim::Interval::step, .frequency = 2}};
  }
};

// Keeps a copy of the run's checkpoint after every batch: what a kill at that moment would leave.
struct SaveEveryBatch : Callback {
  explicit SaveEveryBatch(std::string folder) : folder_(std::move(folder)) {}
  void on_train_batch_end(Trainer& t, TrainingModule&, const Tensor&, const Batch&,
                          int64_t) override {
    t.save_checkpoint(cat(folder_, "/batch", t.progress().total_batches, ".ckpt"));
  }
  void on_train_epoch_end(Trainer& t, TrainingModule&) override {
    t.save_checkpoint(cat(folder_, "/epoch", t.current_epoch(), ".ckpt"));
  }
  bool is_checkpoint() const override { return true; }
  std::string folder_;
};

struct Result {
  std::vector<float> losses;
  std::string weights;
  std::string csv;
  trainer::Metrics metrics;
};

// 5 batches an epoch, 3 epochs, accumulation over 2: windows of 2, 2 and 1.
Result run(const std::string& folder, const std::string& ckpt, int64_t max_steps, bool save,
           int workers = 0) {
  data::TensorDataset train_set = small_data(18);
  data::TensorDataset val_set = small_data(6, 8);
  data::DataLoader train(train_set,
                         {.batch_size = 4, .shuffle = true, .num_workers = workers, .seed = 11});
  data::DataLoader val(val_set, {.batch_size = 4});
  manual_seed(ckpt.empty() ? 3 : 99);  // a resumed run must not depend on it
  Stateful model;
  if (ckpt.empty()) {
    raw::fill_(model.layer.weight, 0.5);
    raw::fill_(model.layer.bias, 0.25);
  }
  TrainerOptions o = quiet({.max_epochs = 3, .max_steps = max_steps});
  o.accumulate_grad_batches = 2;
  o.val_check_interval = 2;
  o.log_every_n_steps = 1;
  o.gradient_clip_val = 0.5;
  o.logger = trainer::CSVLogger({.dir = folder});
  o.enable_checkpointing = true;
  o.callbacks = {SaveEveryBatch(folder)};
  if (!save) {
    o.enable_checkpointing = false;
    o.callbacks.clear();
  }
  Trainer t(std::move(o));
  t.fit(model, train, val, {.ckpt_path = ckpt});
  return {model.losses, bits(model), read_bytes(folder + "/metrics.csv"), t.callback_metrics()};
}

TEST_CASE("trainer: a run resumed after any batch repeats the undisturbed run bit for bit") {
  TempFolder whole;
  const Result expected = run(whole.path(), "", -1, true);
  REQUIRE(expected.losses.size() == 15);
  for (int64_t done = 1; done <= 15; ++done) {
    TempFolder part;
    fs::copy(whole.path("metrics.csv"), part.path("metrics.csv"));
    const Result r = run(part.path(), whole.path(cat("batch", done, ".ckpt")), -1, false);
    INFO("after batch " << done);
    const std::vector<float> rest(expected.losses.begin() + done, expected.losses.end());
    CHECK(r.losses == rest);
    CHECK(r.weights == expected.weights);
    CHECK(r.metrics == expected.metrics);
    CHECK(r.csv == expected.csv);
  }
}

TEST_CASE("trainer: a run resumed at an epoch's end repeats the undisturbed run bit for bit") {
  TempFolder whole;
  const Result expected = run(whole.path(), "", -1, true);
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    TempFolder part;
    fs::copy(whole.path("metrics.csv"), part.path("metrics.csv"));
    const Result r = run(part.path(), whole.path(cat("epoch", epoch, ".ckpt")), -1, false, 2);
    const std::vector<float> rest(expected.losses.begin() + 5 * (epoch + 1), expected.losses.end());
    CHECK(r.losses == rest);
    CHECK(r.weights == expected.weights);
    CHECK(r.csv == expected.csv);
  }
}

TEST_CASE("trainer: a run stopped by max_steps can be resumed with more") {
  TempFolder whole;
  const Result expected = run(whole.path(), "", -1, true);
  for (const int64_t steps : {1, 2, 3, 4, 7}) {  // 3 steps an epoch
    TempFolder first;
    const Result head = run(first.path(), "", steps, true);
    // The checkpoint made at the end of the last, perhaps unfinished, epoch.
    const std::string ckpt = first.path(cat("epoch", (steps - 1) / 3, ".ckpt"));
    const Result tail = run(first.path(), ckpt, -1, false);
    std::vector<float> losses = head.losses;
    losses.insert(losses.end(), tail.losses.begin(), tail.losses.end());
    INFO("after step " << steps);
    CHECK(losses == expected.losses);
    CHECK(tail.weights == expected.weights);
  }
}

TEST_CASE("trainer: an interrupted run leaves a checkpoint to go on from") {
  struct Interrupting : Callback {
    void on_train_batch_end(Trainer& t, TrainingModule&, const Tensor&, const Batch&,
                            int64_t) override {
      if (t.global_step() == 4) std::raise(SIGINT);
    }
  };
  const DefaultInterrupt no_handler;
  const auto fit = [](const std::string& folder, bool interrupt, const std::string& ckpt) {
    data::TensorDataset set = small_data(12);
    data::DataLoader loader(set, {.batch_size = 4, .shuffle = true});
    manual_seed(3);
    auto model = std::make_unique<Stateful>();
    TrainerOptions o = quiet({.max_epochs = 2});
    o.enable_checkpointing = true;
    o.callbacks = {ModelCheckpoint({.dirpath = folder, .save_on_exception = true})};
    if (interrupt) o.callbacks.push_back(Interrupting());
    Trainer t(std::move(o));
    if (interrupt)
      CHECK_THROWS_AS(t.fit(*model, loader), trainer::Interrupted);
    else
      t.fit(*model, loader, {.ckpt_path = ckpt});
    return bits(*model);
  };
  TempFolder whole;
  TempFolder part;
  const std::string expected = fit(whole.path(), false, "");
  fit(part.path(), true, "");
  CHECK(fit(part.path(), false, part.path("exception.ckpt")) == expected);
}

Checkpoint sample() {
  Checkpoint c;
  c.epoch = 2;
  c.global_step = 30;
  c.version = "0.0";
  c.state_dict["layer.weight"] = tensor<float>({1, 2, 3});
  c.optimizer_tensors["state.0.exp_avg"] = tensor<float>({4});
  c.hyper_parameters = {{"lr", 1e-3},
                        {"nan", std::numeric_limits<double>::quiet_NaN()},
                        {"inf", -std::numeric_limits<double>::infinity()},
                        {"flag", true},
                        {"count", int64_t{1} << 62},
                        {"seed", ~uint64_t{0}},
                        {"whole", 2.0},
                        {"text", "a \"b\"\n"}};
  c.callbacks["Some{thing}"] = {{"best", 0.1}};
  return c;
}

TEST_CASE("trainer: a checkpoint file gives back what was put in") {
  TempFolder folder;
  const std::string path = folder.path("a.ckpt");
  save_checkpoint(path, sample());
  const Checkpoint c = trainer::load_checkpoint(path);
  CHECK(c.epoch == 2);
  CHECK(c.global_step == 30);
  CHECK(c.hyper_parameters == sample().hyper_parameters);
  CHECK(c.callbacks == sample().callbacks);
  REQUIRE(c.state_dict.size() == 1);
  CHECK(c.state_dict.at("layer.weight").data<float>()[2] == 3);
  CHECK(c.optimizer_tensors.at("state.0.exp_avg").data<float>()[0] == 4);
  CHECK(c.gradients.empty());
}

TEST_CASE("trainer: a damaged checkpoint is refused in one sentence") {
  TempFolder folder;
  const std::string path = folder.path("a.ckpt");
  save_checkpoint(path, sample());
  const std::string good = read_bytes(path);
  const auto load = [&](const std::string& bytes) {
    folder.write("b.ckpt", bytes);
    return error_text([&] { trainer::load_checkpoint(folder.path("b.ckpt")); });
  };
  REQUIRE(load(good).empty());
  SECTION("any byte changed, any length") {
    for (size_t i = 0; i < good.size(); ++i) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 0x04);
      INFO("byte " << i);
      const std::string text = load(bad);
      // The blanks that pad the header are the only bytes that mean nothing, and 0x24 is none.
      CHECK_FALSE(text.empty());
      CHECK(text.find('\n') == std::string::npos);
    }
    for (size_t size = 0; size < good.size(); size += 7)
      CHECK_FALSE(load(good.substr(0, size)).empty());
  }
  SECTION("a weight") {
    std::string bad = good;
    bad[bad.size() - 2] = static_cast<char>(bad[bad.size() - 2] ^ 1);
    CHECK(load(bad).find("; the file is corrupt") != std::string::npos);
  }
  SECTION("a newer version") {
    save_safetensors(path, {}, {{"format", "cairn.checkpoint"}, {"format_version", "2"}});
    CHECK(error_text([&] { trainer::load_checkpoint(path); }) ==
          "load_checkpoint: '" + path +
              "' must have format version 1 or lower, got 2; a newer Cairn wrote it");
  }
  SECTION("another safetensors file") {
    save_safetensors(path, {{"w", tensor<float>({1})}});
    CHECK(error_text([&] { trainer::load_checkpoint(path); }) ==
          "load_checkpoint: '" + path +
              "' must be a checkpoint of Cairn, got a file without 'format'");
  }
  SECTION("no file") {
    CHECK(error_text([&] {
            trainer::load_checkpoint(folder.path("none.ckpt"));
          }).find(folder.path("none.ckpt")) != std::string::npos);
  }
}

// Trains `epochs` epochs of 5 batches with a ModelCheckpoint, logging `scores[epoch]` as "score".
struct Training {
  TempFolder folder;
  std::shared_ptr<ModelCheckpoint> checkpoint;
  std::vector<std::string> warnings;

  struct Model : SmallModel {
    std::vector<double> scores;
    void validation_step(const Batch&, int64_t) override {
      if (!scores.empty()) log("score", scores.at(static_cast<size_t>(current_epoch())));
    }
  } model;

  void fit(ModelCheckpointOptions options, int64_t epochs, std::vector<double> scores = {},
           const std::string& ckpt = "") {
    if (options.dirpath.empty()) options.dirpath = folder.path();
    data::TensorDataset set = small_data(10);
    data::DataLoader loader(set, {.batch_size = 2});
    data::DataLoader val(set, {.batch_size = 10});
    model.scores = std::move(scores);
    checkpoint = std::make_shared<ModelCheckpoint>(std::move(options));
    TrainerOptions o = quiet({.max_epochs = epochs});
    o.enable_checkpointing = true;
    o.callbacks = {checkpoint};
    Trainer t(std::move(o));
    t.fit(model, loader, val, {.ckpt_path = ckpt});
    warnings = t.warnings();
  }
  std::set<std::string> files() const {
    std::set<std::string> out;
    for (const auto& e : fs::directory_iterator(folder.path())) out.insert(e.path().filename());
    return out;
  }
};

using Files = std::set<std::string>;

TEST_CASE("trainer: ModelCheckpoint's file names and what it keeps") {
  Training t;
  SECTION("the newest") {
    t.fit({}, 3);
    CHECK(t.files() == Files{"epoch=2-step=15.ckpt"});
    CHECK(t.checkpoint->best_model_path() == t.folder.path("epoch=2-step=15.ckpt"));
  }
  SECTION("all") {
    t.fit({.save_top_k = -1}, 2);
    CHECK(t.files() == Files{"epoch=0-step=5.ckpt", "epoch=1-step=10.ckpt"});
  }
  SECTION("none") {
    t.fit({.save_top_k = 0}, 2);
    CHECK(t.files().empty());
  }
  SECTION("the best two, with formats") {
    t.fit({.filename = "e{epoch:02d}_{score:.2f}",
           .monitor = "score",
           .mode = "max",
           .save_top_k = 2,
           .auto_insert_metric_name = false},
          4, {0.5, 0.75, 0.25, 0.625});
    CHECK(t.files() == Files{"e01_0.75.ckpt", "e03_0.62.ckpt"});
    CHECK(t.checkpoint->best_model_score() == 0.75);
    CHECK(t.checkpoint->current_score() == 0.625);
  }
  SECTION("a slash in a metric's name makes a folder") {
    t.fit({.filename = "{epoch}/at"}, 1);
    CHECK(fs::exists(t.folder.path("epoch=0/at.ckpt")));
  }
  SECTION("last, as a copy and as a link") {
    t.fit({.save_last = true}, 2);
    CHECK(t.files() == Files{"epoch=1-step=10.ckpt", "last.ckpt"});
    CHECK(trainer::load_checkpoint(t.folder.path("last.ckpt")).global_step == 10);
    Training link;
    link.fit({.save_last = "link"}, 2);
    CHECK(fs::is_symlink(link.folder.path("last.ckpt")));
    CHECK(trainer::load_checkpoint(link.folder.path("last.ckpt")).global_step == 10);
  }
  SECTION("every n steps") {
    t.fit({.save_top_k = -1, .every_n_train_steps = 4}, 2);
    CHECK(t.files() == Files{"epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"});
  }
  SECTION("every n epochs") {
    t.fit({.save_top_k = -1, .every_n_epochs = 2}, 3);
    CHECK(t.files() == Files{"epoch=1-step=10.ckpt"});
  }
  SECTION("a step that waits for validation to make the metric") {
    t.fit({.filename = "{step}-{score:.1f}",
           .monitor = "score",
           .save_top_k = -1,
           .every_n_train_steps = 5},
          2, {0.5, 0.25});
    CHECK(t.files() == Files{"step=5-score=0.5.ckpt", "step=10-score=0.2.ckpt"});
  }
  SECTION("weights only") {
    t.fit({.save_weights_only = true}, 1);
    const Checkpoint c = trainer::load_checkpoint(t.folder.path("epoch=0-step=5.ckpt"));
    CHECK(c.state_dict.size() == 2);
    CHECK(c.optimizer_tensors.empty());
    CHECK(error_text([&] {
            t.fit({}, 2, {}, t.folder.path("epoch=0-step=5.ckpt"));
          }).find("must be a whole checkpoint to go on from, got one of weights only") !=
          std::string::npos);
  }
  SECTION("a taken name gets a version") {
    t.fit({}, 1);
    t.fit({}, 1);
    CHECK(t.files() == Files{"epoch=0-step=5.ckpt", "epoch=0-step=5-v1.ckpt"});
    t.fit({.enable_version_counter = false}, 1);
    CHECK(t.files() == Files{"epoch=0-step=5.ckpt", "epoch=0-step=5-v1.ckpt"});
  }
}

TEST_CASE("trainer: a NaN that comes first is beaten by any number") {
  Training t;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  t.fit({.monitor = "score", .mode = "max"}, 3, {nan, -5, nan});
  CHECK(t.checkpoint->best_model_score() == -5);
  CHECK(t.files() == Files{"epoch=1-step=10.ckpt"});
}

TEST_CASE("trainer: a metric that is missing is an error once validation has run") {
  Training t;
  CHECK(error_text([&] { t.fit({.monitor = "score"}, 1); }) ==
        "ModelCheckpoint: monitor must be a logged metric, got 'score', which is none of them");
}

TEST_CASE("trainer: a resumed run keeps the ranking, and the files of the first part") {
  Training t;
  t.fit({.monitor = "score", .save_top_k = 2, .save_last = true}, 2, {1, 2});
  t.fit({.monitor = "score", .save_top_k = 2, .save_last = true}, 4, {1, 2, 3, 0}, "last");
  CHECK(t.files() == Files{"epoch=0-step=5.ckpt", "epoch=3-step=20.ckpt", "last.ckpt"});
  CHECK(t.checkpoint->best_model_score() == 0);
  // In another folder only the best file's name is taken over.
  TempFolder other;
  t.fit({.dirpath = other.path(), .monitor = "score", .save_top_k = 2, .save_last = true}, 5,
        {1, 2, 3, 0, 9}, t.folder.path("last.ckpt"));
  REQUIRE(t.warnings.size() == 1);
  CHECK(t.warnings[0].find("only best_model_path is taken over") != std::string::npos);
}

TEST_CASE("trainer: 'last' without a file starts afresh, 'best' without one is an error") {
  Training t;
  t.fit({.save_last = true}, 1, {}, "last");
  CHECK(t.warnings ==
        std::vector<std::string>{"fit: there is no last.ckpt, so the run starts afresh"});
  CHECK(error_text([&] { t.fit({}, 1, {}, "best"); }) ==
        "fit: ckpt_path 'best' must follow a fit that saved a checkpoint, got none");
}

TEST_CASE("trainer: load_from_checkpoint gives the same outputs bit for bit") {
  Training t;
  t.fit({}, 2);
  const std::string path = t.checkpoint->best_model_path();
  const auto loaded = trainer::load_from_checkpoint<SmallModel>(path);
  CHECK(bits(*loaded) == bits(t.model));

  struct Other : TrainingModule {
    nn::Linear layer{child("layer"), 3, 4};
    nn::Linear extra{child("extra"), 1, 1};
  };
  const std::string text = error_text([&] { trainer::load_from_checkpoint<Other>(path); });
  CHECK(text.find("load_checkpoint: '" + path + "' must fit the model; ") == 0);
  CHECK(text.find("extra.weight") != std::string::npos);
  CHECK(text.find("layer.weight") != std::string::npos);

  Trainer trainer(quiet());
  SmallModel fresh;
  data::TensorDataset set = small_data(10);
  data::DataLoader loader(set, {.batch_size = 5});
  const auto direct = trainer.test(t.model, loader);
  CHECK(trainer.test(fresh, loader, {.ckpt_path = path}) == direct);
}

TEST_CASE("trainer: hooks and hyper-parameters travel in a checkpoint") {
  struct Keeping : SmallModel {
    explicit Keeping(double rate = 0) { save_hyperparameters({{"rate", rate}, {"kind", "small"}}); }
    int64_t kept = 0;
    void on_save_checkpoint(Checkpoint& c) override {
      c.user["kept"] = 42;
      c.user_tensors["kept"] = tensor<float>({1, 2});
    }
    void on_load_checkpoint(const Checkpoint& c) override {
      kept = require(c.user, "kept", "test").as_int() + c.user_tensors.at("kept").numel();
    }
  };
  TempFolder folder;
  Keeping model(0.5);
  data::TensorDataset set = small_data(4);
  data::DataLoader loader(set, {.batch_size = 2});
  Trainer t(quiet({.max_epochs = 1}));
  t.fit(model, loader);
  t.save_checkpoint(folder.path("a.ckpt"));
  CHECK(trainer::load_checkpoint(folder.path("a.ckpt")).hyper_parameters ==
        State{{"rate", 0.5}, {"kind", "small"}});
  CHECK(trainer::load_from_checkpoint<Keeping>(folder.path("a.ckpt"), 0.25)->kept == 44);
}

TEST_CASE("trainer: what ModelCheckpoint refuses") {
  const auto text = [](ModelCheckpointOptions o) {
    return error_text([&] { ModelCheckpoint(std::move(o)); });
  };
  CHECK(text({.mode = "best"}) == "ModelCheckpoint: mode must be min or max, got best");
  CHECK(text({.save_top_k = -2}) == "ModelCheckpoint: save_top_k must be at least -1, got -2");
  CHECK(text({.save_top_k = 3}) ==
        "ModelCheckpoint: save_top_k must be -1, 0 or 1 without monitor, got 3");
  CHECK(text({.every_n_train_steps = 1, .every_n_epochs = 1}) ==
        "ModelCheckpoint: at most one of every_n_train_steps, every_n_epochs and "
        "train_time_interval_s must be given, got 2");
  CHECK(text({.every_n_epochs = -1}) ==
        "ModelCheckpoint: every_n_epochs must be at least 0, got -1");
  CHECK(text({.filename = "{epoch"}) ==
        "ModelCheckpoint: filename must close every {, got '{epoch'");
  CHECK(text({.filename = "{epoch:s}"}) ==
        "ModelCheckpoint: format must be like 02d or .3f, got s");
  CHECK(text({.filename = "/tmp/a"}) ==
        "ModelCheckpoint: filename must be relative to dirpath, got '/tmp/a'");
  CHECK(error_text([] { trainer::SaveLast("copy"); }) ==
        "ModelCheckpoint: save_last must be false, true or link, got 'copy'");
  TempFolder folder;
  folder.write("file", "");
  Training t;
  CHECK(error_text([&] { t.fit({.dirpath = folder.path("file")}, 1); })
            .find("ModelCheckpoint: dirpath must be a folder that can be written, got '" +
                  folder.path("file") + "'") == 0);
}

}  // namespace
}  // namespace cairn::test
