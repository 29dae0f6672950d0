// A fit by several processes that is taken up inside an epoch: each goes on with what it had.
#include <csignal>
#include <filesystem>

#include "cairn/trainer/callbacks/model_checkpoint.h"
#include "tests/catch.h"
#include "tests/trainer/ranks.h"

namespace cairn::test {
namespace {

// Each rank has random numbers of its own, and metrics of every kind.
struct DrawingModel : SyncedModel {
  DrawingModel() { dropout_p = 0.25; }
  Tensor training_step(const Batch& batch, int64_t i) override {
    const Tensor loss = SyncedModel::training_step(batch, i);
    const auto on_all = [&](const char* name, trainer::Reduce how) {
      log(name, loss, {.on_step = false, .on_epoch = true, .reduce_fx = how, .sync_dist = true});
    };
    on_all("total", trainer::Reduce::sum);
    on_all("least", trainer::Reduce::min);
    on_all("most", trainer::Reduce::max);
    log("own", loss, {.on_step = false, .on_epoch = true});
    if (trainer().progress().batch == 1)  // not again after the resume
      log("early", loss, {.on_step = false, .on_epoch = true, .sync_dist = true});
    return loss;
  }
};

struct End {
  std::vector<float> parameters;
  trainer::Metrics metrics;
  uint64_t seed = 0, offset = 0;
  std::vector<std::string> warnings;
};

using MakeCallbacks = std::function<std::vector<trainer::Held<Callback>>()>;

// By two ranks. Where `resume` is a file they go on from it, with other seeds at their start.
std::vector<End> fit_drawing(const TrainerOptions& options, const std::string& resume = "",
                             const MakeCallbacks& callbacks = {}) {
  std::vector<End> out(2);
  on_ranks(2, [&](const Group& group) {
    const auto rank = static_cast<uint64_t>(group->rank());
    manual_seed(rank + (resume.empty() ? 10 : 20));
    const data::TensorDataset set = small_data(48), val_set = small_data(12, 8);
    data::DataLoader loader(set, {.batch_size = 4, .shuffle = true});
    data::DataLoader val(val_set, {.batch_size = 4});
    DrawingModel model;
    TrainerOptions o = options;
    o.strategy = DDPStrategy({.group = group});
    if (callbacks) o.callbacks = callbacks();
    Trainer trainer(std::move(o));
    trainer.fit(model, loader, val, {.ckpt_path = resume});
    out[rank] = {values_of(model), trainer.callback_metrics(), default_generator().seed(),
                 default_generator().offset(), trainer.warnings()};
  });
  return out;
}

// Saves after this batch of the second epoch.
struct SaveAt : Callback {
  SaveAt(int64_t after_batch, std::string to) : batch(after_batch), path(std::move(to)) {}
  void on_train_batch_end(Trainer& trainer, TrainingModule&, const Tensor&, const Batch&,
                          int64_t batch_idx) override {
    if (trainer.current_epoch() == 1 && batch_idx == batch) trainer.save_checkpoint(path);
  }
  int64_t batch;
  std::string path;
};

void check_same(const std::vector<End>& got, const std::vector<End>& wanted) {
  for (size_t r = 0; r < wanted.size(); ++r) {
    INFO("rank " << r);
    CHECK(got[r].parameters == wanted[r].parameters);
    CHECK(got[r].metrics == wanted[r].metrics);
    CHECK(got[r].seed == wanted[r].seed);
    CHECK(got[r].offset == wanted[r].offset);
    CHECK(got[r].warnings == wanted[r].warnings);
  }
}

}  // namespace

TEST_CASE("trainer: an epoch is resumed in its middle by as many processes") {
  const OneThread one_thread;
  const TempFolder folder;
  Job job;
  job.options = quiet({.max_epochs = 2, .max_steps = 8});
  job.options.enable_checkpointing = true;
  job.change = [&](int, TrainerOptions& o) {
    o.callbacks = {trainer::ModelCheckpoint(
        {.dirpath = folder.path(), .filename = "mid", .every_n_train_steps = 8})};
  };
  (void)job.run(2);
  Job more{.options = quiet({.max_epochs = 2}), .resume = folder.path() + "/mid.ckpt"};
  CHECK(more.run(2)[0].parameters == Job{.options = quiet({.max_epochs = 2})}.run(2)[0].parameters);
  CHECK_THROWS_WITH(more.run(1), Catch::Matchers::Contains(
                                     "was made inside an epoch by 2 processes and must be resumed "
                                     "by as many, got 1"));
}

TEST_CASE("trainer: each of several processes goes on inside an epoch with its own part") {
  const OneThread one_thread;
  const TempFolder folder;
  const std::string path = folder.path("mid.ckpt");
  // With and without an accumulation window that is open where the file is made.
  for (const int64_t accumulate : {1, 3})
    for (const int64_t batch : {0, 3}) {
      INFO("window of " << accumulate << ", saved after batch " << batch);
      TrainerOptions options = quiet({.max_epochs = 3, .accumulate_grad_batches = accumulate});
      options.callbacks = {SaveAt(batch, path)};
      const auto whole = fit_drawing(options);
      CHECK(whole[0].parameters == whole[1].parameters);
      CHECK(whole[0].metrics.at("own") != whole[1].metrics.at("own"));
      CHECK(whole[0].seed != whole[1].seed);
      options.callbacks.clear();
      check_same(fit_drawing(options, path), whole);
      // Within the epoch, too.
      options.max_epochs = 2;
      const auto short_run = fit_drawing(options);
      check_same(fit_drawing(options, path), short_run);
    }
}

TEST_CASE("trainer: several processes that are interrupted save what all of them have") {
  const OneThread one_thread;
  const TempFolder folder;
  struct InterruptAt : Callback {
    void on_train_batch_end(Trainer& t, TrainingModule&, const Tensor&, const Batch&,
                            int64_t batch_idx) override {
      if (t.global_rank() == 1 && t.current_epoch() == 1 && batch_idx == 2) std::raise(SIGINT);
    }
  };
  TrainerOptions options = quiet({.max_epochs = 2, .accumulate_grad_batches = 4});
  const auto whole = fit_drawing(options);
  {
    const DefaultInterrupt no_handler;
    options.enable_checkpointing = true;
    const MakeCallbacks callbacks = [&]() -> std::vector<trainer::Held<Callback>> {
      return {InterruptAt(),
              trainer::ModelCheckpoint(
                  {.dirpath = folder.path(), .save_top_k = 0, .save_on_exception = true})};
    };
    CHECK_THROWS_AS(fit_drawing(options, "", callbacks), trainer::Interrupted);
  }
  options.enable_checkpointing = false;
  check_same(fit_drawing(options, folder.path("exception.ckpt")), whole);
}

TEST_CASE("trainer: a checkpoint of an epoch's middle by rank 0 alone is taken up with a warning") {
  const OneThread one_thread;
  const TempFolder folder;
  const std::string path = folder.path("mid.ckpt");
  TrainerOptions options = quiet({.max_epochs = 2});
  options.callbacks = {SaveAt(2, path)};
  (void)fit_drawing(options);
  trainer::Checkpoint old = trainer::load_checkpoint(path);
  REQUIRE(old.other_ranks.size() == 1);
  CHECK(old.other_ranks[0].rng.at("seed") == trainer::Value(11));
  old.other_ranks.clear();
  trainer::save_checkpoint(path, old);
  options.callbacks.clear();
  const auto resumed = fit_drawing(options, path);
  std::vector<std::string> warnings = {cat("fit: '", path,
                                           "' has metrics and random numbers of rank 0 alone, so "
                                           "all processes go on with those")};
  for (const End& end : resumed) CHECK(end.seed == 10);
  CHECK(resumed[1].warnings == warnings);
  warnings.emplace_back(
      "log: without sync_dist these are of process 0 alone, which sees 1 of 2 parts of the data: "
      "own");
  CHECK(resumed[0].warnings == warnings);
}

}  // namespace cairn::test
