// A fit by several processes, with ranks as threads: equal results, files of rank 0 alone, what is
// agreed upon.
#include "cairn/trainer/ddp_strategy.h"

#include <atomic>
#include <filesystem>
#include <thread>

#include "cairn/nn/norm.h"
#include "cairn/trainer/callbacks/early_stopping.h"
#include "cairn/trainer/callbacks/model_checkpoint.h"
#include "cairn/trainer/callbacks/progress_bar.h"
#include "cairn/trainer/loggers/csv_logger.h"
#include "tests/catch.h"
#include "tests/trainer/ranks.h"

namespace cairn::test {

TEST_CASE("trainer: a fit by two processes equals one with the joined batch") {
  const OneThread one_thread;
  // The shares of a DistributedSampler, taken in turns, are the permutation of one process.
  Job job{.options = quiet({.max_epochs = 4})};
  const auto one = job.run(1);
  const auto two = job.run(2);
  CHECK(two[0].parameters == two[1].parameters);
  CHECK(largest_difference(one[0].parameters, two[0].parameters) < 1e-5);
  CHECK(two[0].steps == one[0].steps);
  // Metrics are of all, and the same on both.
  CHECK(two[0].metrics == two[1].metrics);
  for (const char* name : {"loss_epoch", "val_loss"})
    CHECK(two[0].metrics.at(name) == Approx(one[0].metrics.at(name)).margin(1e-5));
  CHECK(two[0].metrics.at("batches") == 6);  // 20 samples: 10 each, in 3 batches
  CHECK(two[0].warnings.empty());
}

TEST_CASE("trainer: accumulated steps of two processes") {
  const OneThread one_thread;
  Job job{.options = quiet({.max_epochs = 2, .accumulate_grad_batches = 4})};
  const auto one = job.run(1);
  const auto two = job.run(2);
  CHECK(two[0].parameters == two[1].parameters);
  CHECK(largest_difference(one[0].parameters, two[0].parameters) < 1e-5);
}

TEST_CASE("trainer: metrics of one process are told of, once") {
  const OneThread one_thread;
  const auto two = Job{.options = quiet({.max_epochs = 2}), .sync = false}.run(2);
  CHECK(two[0].warnings == std::vector<std::string>{
                               "log: without sync_dist these are of process 0 alone, which sees 1 "
                               "of 2 parts of the data: val_loss, largest, batches",
                               "log: without sync_dist these are of process 0 alone, which sees 1 "
                               "of 2 parts of the data: loss"});
  CHECK(two[1].warnings.empty());
  CHECK(two[0].metrics.at("batches") == 3);
}

TEST_CASE("trainer: the progress bar shows the samples of all processes") {
  const OneThread one_thread;
  std::FILE* file = std::tmpfile();
  Job job{.options = quiet({.max_epochs = 1})};
  job.options.enable_progress_bar = true;
  job.options.callbacks = {trainer::ProgressBar({.stream = file, .terminal = false})};
  job.run(2);
  std::string text(static_cast<size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  REQUIRE(std::fread(text.data(), 1, text.size(), file) == text.size());
  std::fclose(file);
  INFO(text);
  const size_t batches = text.rfind(" it/s"), samples = text.rfind(" samples/s");
  REQUIRE(samples != std::string::npos);
  REQUIRE(batches < samples);
  const auto number_before = [&](size_t end) {
    return std::stod(text.substr(text.rfind(' ', end - 1) + 1, end));
  };
  CHECK(number_before(samples) / number_before(batches) == Approx(8).epsilon(0.1));  // 4 each
}

TEST_CASE("trainer: all processes stop together") {
  const OneThread one_thread;
  struct StopAt : Callback {
    StopAt(int rank_that_stops, int64_t at_step) : rank(rank_that_stops), step(at_step) {}
    void on_train_batch_end(Trainer& t, TrainingModule&, const Tensor&, const Batch&,
                            int64_t) override {
      if (t.global_rank() == rank && t.global_step() == step) t.stop("enough");
    }
    int rank;
    int64_t step;
  };
  Job job{.options = quiet({.max_epochs = 3, .callbacks = {StopAt(1, 4)}})};
  const auto two = job.run(2);
  CHECK(two[0].steps == 4);
  CHECK(two[1].steps == 4);
  CHECK(two[0].stop_reason == "another process asked for it");
  CHECK(two[1].stop_reason == "enough");

  // By time: rank 0 has none left from the start.
  job = Job{.options = quiet({.max_epochs = 3})};
  job.change = [](int rank, TrainerOptions& o) {
    o.max_time = std::chrono::nanoseconds(rank == 0 ? 1 : 3600000000000);
  };
  const auto by_time = job.run(2);
  CHECK(by_time[0].steps == by_time[1].steps);
  CHECK(by_time[0].steps <= 1);

  // By a callback that looks at metrics.
  job = Job{.options = quiet({.max_epochs = 20})};
  job.change = [](int, TrainerOptions& o) {
    o.callbacks = {
        trainer::EarlyStopping({.monitor = "val_loss", .min_delta = 100, .patience = 2})};
  };
  const auto early = job.run(2);
  CHECK(early[0].steps == 18);  // the first check is the best
  CHECK(early[1].steps == 18);
}

TEST_CASE("trainer: rank 0 alone writes, and all load") {
  const OneThread one_thread;
  const TempFolder folder;
  Job job;
  job.options = {.max_epochs = 2, .default_root_dir = folder.path(), .enable_progress_bar = false};
  job.change = [&](int, TrainerOptions& o) {
    o.callbacks = {
        trainer::ModelCheckpoint({.monitor = "val_loss", .save_top_k = 1, .save_last = true})};
  };
  const auto two = job.run(2);
  int files = 0;
  std::string last;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
    if (entry.path().filename() == "last.ckpt") last = entry.path().string();
    files += entry.is_regular_file() ? 1 : 0;
  }
  CHECK(std::filesystem::exists(folder.path() + "/cairn_logs/version_0/metrics.csv"));
  CHECK(!std::filesystem::exists(folder.path() + "/cairn_logs/version_1"));
  CHECK(files == 4);  // metrics.csv, hparams.yaml, the best, the last
  REQUIRE(!last.empty());

  // An undisturbed run of 4 epochs ends where a resumed one does, by two processes or by one.
  Job more{.options = quiet({.max_epochs = 4})};
  const auto whole = more.run(2);
  more.resume = last;
  const auto resumed = more.run(2);
  CHECK(resumed[0].parameters == whole[0].parameters);
  CHECK(resumed[1].parameters == whole[0].parameters);
  const auto alone = more.run(1);
  CHECK(alone[0].steps == whole[0].steps);
  CHECK(largest_difference(alone[0].parameters, whole[0].parameters) < 1e-5);
}

TEST_CASE("trainer: an error of saving reaches all processes") {
  const OneThread one_thread;
  const TempFolder folder;
  std::ofstream(folder.path() + "/file") << "no folder";
  std::vector<std::string> errors(2);
  on_ranks(2, [&](const Group& group) {
    SyncedModel model;
    const data::TensorDataset set = small_data(8);
    data::DataLoader loader(set, {.batch_size = 2});
    TrainerOptions o = quiet({.max_epochs = 1});
    o.enable_checkpointing = true;
    o.callbacks = {trainer::ModelCheckpoint({.dirpath = folder.path() + "/file/below"})};
    o.strategy = DDPStrategy({.group = group});
    Trainer trainer(std::move(o));
    errors[static_cast<size_t>(group->rank())] = error_of([&] { trainer.fit(model, loader); });
  });
  CHECK_THAT(errors[0], Catch::Matchers::Contains("dirpath must be a folder"));
  CHECK(errors[1] == errors[0] + " (on rank 0)");
}

TEST_CASE("trainer: processes with different numbers of batches are refused") {
  const OneThread one_thread;
  std::vector<std::string> errors(2);
  on_ranks(2, [&](const Group& group) {
    SyncedModel model;
    const data::TensorDataset set = small_data(group->rank() == 0 ? 8 : 12);
    data::DataLoader loader(set, {.batch_size = 2});
    TrainerOptions o = quiet({.max_epochs = 1});
    o.use_distributed_sampler = false;
    o.strategy = DDPStrategy({.group = group});
    Trainer trainer(std::move(o));
    errors[static_cast<size_t>(group->rank())] = error_of([&] { trainer.fit(model, loader); });
  });
  for (const std::string& error : errors)
    CHECK(error ==
          "fit: all processes must have equally many training batches, got 4 to 6; a "
          "DistributedSampler gives each the same number");
}

TEST_CASE("trainer: data is prepared once, and loaders with a sampler stay as they are") {
  const OneThread one_thread;
  struct Counting : SyncedModel {
    explicit Counting(std::atomic<int>& count) : prepared(count) {}
    void prepare_data() override { ++prepared; }
    std::atomic<int>& prepared;
  };
  std::atomic<int> prepared = 0;
  std::vector<int64_t> steps(2);
  on_ranks(2, [&](const Group& group) {
    const data::TensorDataset set = small_data(16);
    data::DataLoader loader(
        set, {.batch_size = 2, .sampler = std::make_shared<data::SequentialSampler>(16)});
    Counting model(prepared);
    TrainerOptions o = quiet({.max_epochs = 1});
    o.strategy = DDPStrategy({.group = group});
    Trainer trainer(std::move(o));
    trainer.fit(model, loader);
    steps[static_cast<size_t>(group->rank())] = trainer.global_step();
  });
  CHECK(prepared == 1);
  CHECK(steps == std::vector<int64_t>{8, 8});
}

TEST_CASE("trainer: batch norm over all processes is switched on for the fit") {
  const OneThread one_thread;
  struct Normed : TrainingModule {
    nn::Linear in{child("in"), 3, 4};
    nn::BatchNorm1d norm{child("norm"), 4};
    nn::Linear out{child("out"), 4, 2};
    Normed() {
      Generator generator(3);
      for (const auto& [name, p] : named_parameters())
        if (p.dim() > 1) raw::copy_(p, randn(p.shape(), {}, generator));
    }
    Tensor training_step(const Batch& batch, int64_t) override {
      return mse_loss(out(norm(in(batch.input))), batch.target);
    }
    OptimizerConfig configure_optimizers() override {
      return optim::sgd(parameters(), {.lr = 0.05});
    }
  };
  const auto fit = [](int ranks, bool sync) {
    std::vector<std::vector<float>> out(static_cast<size_t>(ranks));
    on_ranks(ranks, [&](const Group& group) {
      const data::TensorDataset set = small_data(48);
      data::DataLoader loader(set, {.batch_size = 8 / ranks, .shuffle = true});
      Normed model;
      TrainerOptions o = quiet({.max_epochs = 3, .sync_batchnorm = sync});
      o.strategy = DDPStrategy({.group = group});
      Trainer trainer(std::move(o));
      trainer.fit(model, loader);
      out[static_cast<size_t>(group->rank())] = values_of(model);
    });
    return out;
  };
  const auto one = fit(1, true);
  const auto two = fit(2, true);
  CHECK(two[0] == two[1]);
  CHECK(largest_difference(one[0], two[0]) < 1e-5);
  CHECK(largest_difference(one[0], fit(2, false)[0]) > 1e-3);
}

TEST_CASE("trainer: the error of one process is what the others fail by") {
  const OneThread one_thread;
  struct Failing : SyncedModel {
    Tensor training_step(const Batch& batch, int64_t i) override {
      check(i != 2 || trainer().global_rank() != 1, "step: on purpose");
      return SyncedModel::training_step(batch, i);
    }
  };
  std::vector<std::string> errors(2);
  on_ranks(2, [&](const Group& group) {
    const data::TensorDataset set = small_data(16);
    data::DataLoader loader(set, {.batch_size = 2});
    Group mine = group;
    Failing model;
    TrainerOptions o = quiet({.max_epochs = 1});
    o.strategy = DDPStrategy({.group = group});
    auto trainer = std::make_unique<Trainer>(std::move(o));
    errors[static_cast<size_t>(group->rank())] = error_of([&] { trainer->fit(model, loader); });
  });
  CHECK(errors[1] == "step: on purpose");
  CHECK_THAT(errors[0], Catch::Matchers::Contains("rank 1 failed: step: on purpose"));
}

TEST_CASE("trainer: the processes that waited for a slow one say so") {
  const OneThread one_thread;
  struct Slow : Callback {
    void on_train_batch_start(Trainer& t, TrainingModule&, const Batch&, int64_t) override {
      if (t.global_rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(250));
    }
  };
  const auto two = Job{.options = quiet({.max_epochs = 1, .callbacks = {Slow()}})}.run(2);
  REQUIRE(two[0].warnings.size() == 1);
  CHECK_THAT(two[0].warnings[0],
             Catch::Matchers::StartsWith("fit: the processes waited for rank 1; time spent "
                                         "waiting: rank 0 "));
}

}  // namespace cairn::test
