// A fit on the GPU: captured steps against steps one by one, bit for bit; what waits; what falls
// back.
#include <memory>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/embedding.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/data/data_loader.h"
#include "cairn/data/image_dataset.h"
#include "cairn/nn/linear.h"
#include "cairn/optim/adam.h"
#include "cairn/optim/schedule.h"
#include "cairn/optim/sgd.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/raw.h"
#include "cairn/trainer/callbacks/learning_rate_monitor.h"
#include "cairn/trainer/trainer.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"
#include "tests/temp_folder.h"

namespace cairn::test {
namespace {

using trainer::Callback;
using trainer::EpochControl;
using trainer::Metrics;
using trainer::Stage;
using trainer::Trainer;
using trainer::TrainerOptions;
using trainer::TrainingModule;

const Device kGpu(DeviceType::cuda, 0);

std::string bytes_of(const Tensor& t) {
  const Tensor host = raw::contiguous(raw::to(t, t.dtype(), kCPU));
  return std::string(static_cast<const char*>(host.raw_data()), static_cast<size_t>(host.nbytes()));
}

// How a model of the tests is trained.
struct Recipe {
  std::string optimizer = "adam";
  std::string schedule = {};  // "step", "epoch", "momentum"
  double dropout = 0.3;
};

struct Mlp : TrainingModule {
  explicit Mlp(Recipe recipe = {}) : recipe(std::move(recipe)) {}

  Tensor training_step(const Batch& batch, int64_t) override {
    ++calls;
    const Tensor hidden = dropout(relu(up(batch.input)), recipe.dropout, training());
    const Tensor loss = cross_entropy(down(hidden), batch.target);
    log("loss", loss, {.on_step = true, .on_epoch = true, .prog_bar = true});
    log("worst", loss, {.on_step = false, .on_epoch = true, .reduce_fx = trainer::Reduce::max});
    return loss;
  }
  void validation_step(const Batch& batch, int64_t) override {
    log("val_loss", cross_entropy(down(relu(up(batch.input))), batch.target));
  }
  OptimizerConfig configure_optimizers() override {
    std::unique_ptr<optim::Optimizer> made;
    if (recipe.optimizer == "adam")
      made = optim::adam(parameters(), {.lr = 0.01});
    else
      made = optim::sgd(parameters(), {.lr = 0.05, .momentum = 0.9});
    optim::Optimizer& o = *made;
    if (recipe.schedule == "step")
      return {std::move(made),
              optim::step_lr(o, {.step_size = 3, .gamma = 0.5}),
              {.interval = optim::Interval::step}};
    if (recipe.schedule == "epoch")
      return {std::move(made), optim::step_lr(o, {.step_size = 1, .gamma = 0.5})};
    if (recipe.schedule == "momentum")
      return {std::move(made),
              optim::one_cycle_lr(o, {.max_lr = 0.1, .total_steps = 100}),
              {.interval = optim::Interval::step}};
    return made;
  }

  Recipe recipe;
  int calls = 0;  // of training_step
  nn::Linear up{child("up"), 6, 16};
  nn::Linear down{child("down"), 16, 3};
};

// Rows as a logger gets them.
struct Rows : trainer::Logger {
  void log_hyperparams(const trainer::State&) override {}
  void log_metrics(const Metrics& metrics, int64_t step) override {
    rows.emplace_back(step, metrics);
  }
  void save() override {}
  void finalize(std::string_view) override {}
  std::vector<std::pair<int64_t, Metrics>> rows;
};

data::TensorDataset samples(int64_t count, uint64_t seed = 1) {
  Generator generator(seed);
  const Tensor x = randn({count, 6}, {}, generator);
  return data::TensorDataset(x, randint(0, 3, {count}, {DType::i64}, generator));
}

// One run of a model from fixed weights and draws, and all that can be seen of it.
struct Run {
  Recipe recipe = {};
  TrainerOptions options = {};
  int64_t batch_size = 4;
  int64_t count = 46;  // 11 batches and a shorter one
  bool validate = true;
  std::unique_ptr<Mlp> model = {};
  std::shared_ptr<Rows> rows = std::make_shared<Rows>();
  std::string parameters = {}, optimizer = {};
  uint64_t offset = 0;
  std::vector<std::string> warnings = {};

  Run& fit(const trainer::RunOptions& how = {}) {
    manual_seed(11);
    if (!model) model = std::make_unique<Mlp>(recipe);
    const data::TensorDataset train_set = samples(count), val_set = samples(8, 2);
    data::DataLoader train(train_set, {.batch_size = batch_size, .shuffle = true});
    data::DataLoader val(val_set, {.batch_size = 4});
    options.logger = std::shared_ptr<Rows>(rows);
    options.enable_checkpointing = false;
    options.enable_progress_bar = false;
    Trainer trainer(options);
    if (validate)
      trainer.fit(*model, train, val, how);
    else
      trainer.fit(*model, train, how);
    for (const auto& [name, tensor] : model->state_dict()) parameters += bytes_of(tensor);
    const auto checkpoint = trainer.make_checkpoint();
    for (const auto& [name, tensor] : checkpoint.optimizer_tensors)
      optimizer += name + bytes_of(tensor);
    for (const auto& [name, value] : checkpoint.optimizer) optimizer += name + value.to_text();
    offset = default_generator().offset();
    warnings = trainer.warnings();
    return *this;
  }
};

void check_same(const Run& a, const Run& b) {
  CHECK((a.parameters == b.parameters));
  CHECK((a.optimizer == b.optimizer));
  CHECK(a.offset == b.offset);
  REQUIRE(a.rows->rows.size() == b.rows->rows.size());
  for (size_t i = 0; i < a.rows->rows.size(); ++i) {
    CHECK(a.rows->rows[i].first == b.rows->rows[i].first);
    CHECK(a.rows->rows[i].second == b.rows->rows[i].second);
  }
}

// The run with captured steps equals the one without; `calls` is how often training_step was called
// for `steps` steps.
void compare(const Recipe& recipe, const TrainerOptions& options, int calls, int steps,
             int64_t count = 46) {
  for (const char* data : {"auto", "off"}) {
    INFO("resident_data " << data);
    TrainerOptions eager = options, captured = options;
    eager.capture_steps = "off";
    eager.resident_data = "off";
    captured.resident_data = data;
    Run a{.recipe = recipe, .options = eager, .count = count};
    Run b{.recipe = recipe, .options = captured, .count = count};
    check_same(a.fit(), b.fit());
    CHECK(a.model->calls == steps);
    CHECK(b.warnings.empty());
    if (std::string(data) == "auto") CHECK(b.model->calls == calls);
    CHECK(b.model->calls < steps);
  }
}

}  // namespace

TEST_CASE("cuda: trainer: the GPU is found, and what is not there is told") {
  CHECK(Trainer().strategy().root_device() == kGpu);
  CHECK(Trainer({.accelerator = "GPU"}).strategy().root_device() == kGpu);
  CHECK(Trainer({.accelerator = "cpu"}).strategy().root_device() == kCPU);
}

TEST_CASE("cuda: trainer: captured steps equal steps one by one, bit for bit") {
  // 12 batches an epoch; of them the last is smaller. One by one run 3 at first and the first
  // smaller one; a graph of n steps calls training_step n times when it is captured.
  SECTION("one step a launch, since every step is logged") {
    compare({}, {.max_epochs = 3, .log_every_n_steps = 1}, 3 + 1 + 1 + 1, 36);
  }
  SECTION("several steps a launch") {
    compare({}, {.max_epochs = 3, .log_every_n_steps = 50}, 3 + 1 + 4 + 1 + 1, 36);
  }
  SECTION("sixteen steps a launch") {
    compare({}, {.max_epochs = 2, .log_every_n_steps = 0}, 3 + 1 + 16 + 4 + 1 + 1, 82, 162);
  }
  SECTION("SGD with momentum, clipped by norm") {
    compare({.optimizer = "sgd"}, {.max_epochs = 2, .gradient_clip_val = 0.1}, 10, 24);
  }
  SECTION("clipped by value") {
    compare({}, {.max_epochs = 2, .gradient_clip_val = 0.01, .gradient_clip_algorithm = "value"},
            10, 24);
  }
  SECTION("a schedule by steps") { compare({.schedule = "step"}, {.max_epochs = 2}, 6, 24); }
  SECTION("a schedule that moves the momentum") {
    compare({.schedule = "momentum"}, {.max_epochs = 2}, 6, 24);
    compare({.optimizer = "sgd", .schedule = "momentum"}, {.max_epochs = 2}, 6, 24);
  }
  SECTION("a schedule by epochs") { compare({.schedule = "epoch"}, {.max_epochs = 3}, 10, 36); }
  SECTION("validation inside the epoch, and an end inside it") {
    compare({}, {.max_steps = 20, .val_check_interval = 5}, 9, 20);
  }
  SECTION("accumulated gradients") {
    // Windows of 5, 5 and 2 batches: a first, a middle and a closing kind; then the closing smaller
    // one.
    compare({}, {.max_epochs = 4, .accumulate_grad_batches = 5}, 3 + 2 + 1 + 1 + 1 + 1, 48);
  }
}

TEST_CASE("cuda: trainer: a resumed run goes on bit for bit") {
  const TempFolder folder;
  const std::string path = folder.path("middle.ckpt");
  struct Save : Callback {
    explicit Save(std::string to) : path(std::move(to)) {}
    void on_train_batch_end(Trainer& t, TrainingModule&, const Tensor&, const Batch&,
                            int64_t) override {
      if (t.global_step() == 19) t.save_checkpoint(path);
    }
    bool needs_batch(const Trainer& t, int64_t batch_idx) const override {
      return t.step_after(batch_idx) == 19;
    }
    std::string path;
  };
  for (const char* capture : {"auto", "off"}) {
    Run whole{.recipe = {.schedule = "epoch"},
              .options = {.max_epochs = 4, .callbacks = {Save(path)}, .capture_steps = capture}};
    Run rest{.recipe = {.schedule = "epoch"}, .options = {.max_epochs = 4}};
    whole.fit();
    rest.fit({.ckpt_path = path});
    CHECK((whole.parameters == rest.parameters));
    CHECK((whole.optimizer == rest.optimizer));
    CHECK(whole.offset == rest.offset);
    CHECK(whole.rows->rows.back() == rest.rows->rows.back());
  }
}

TEST_CASE(
    "cuda: trainer: a steady step waits for nothing and launches a constant number of times") {
  struct Meter : Callback {
    void on_train_batch_end(Trainer&, TrainingModule&, const Tensor&, const Batch&,
                            int64_t) override {
      waits.push_back(cuda::waits());
      runtime_waits.push_back(emulator::runtime_waits());
      if (counts_launches) {
        cuda::synchronize(kGpu);
        launches.push_back(emulator::launches());
      }
    }
    bool needs_batch(const Trainer&, int64_t) const override { return counts_launches; }
    bool counts_launches = false;
    std::vector<int64_t> waits, runtime_waits, launches;
  };
  for (const char* data : {"auto", "off"})
    for (const char* capture : {"auto", "off"}) {
      INFO("resident_data " << data << ", capture_steps " << capture);
      const auto meter = std::make_shared<Meter>();
      Run run{.options = {.max_epochs = 1,
                          .callbacks = {meter},
                          .log_every_n_steps = 0,
                          .gradient_clip_val = 0.1,
                          .resident_data = data,
                          .capture_steps = capture},
              .count = 160,
              .validate = false};
      run.fit();
      REQUIRE(meter->waits.size() == 40);
      CHECK(meter->waits.back() == meter->waits.front());
      CHECK(meter->runtime_waits.back() == meter->runtime_waits.front());
    }
  const auto meter = std::make_shared<Meter>();
  meter->counts_launches = true;
  Run run{.options = {.max_epochs = 1, .callbacks = {meter}, .log_every_n_steps = 0},
          .count = 80,
          .validate = false};
  run.fit();
  for (size_t i = 6; i < 20; ++i)  // one graph, and the copy of the loss for the callback
    CHECK(meter->launches[i] - meter->launches[i - 1] == meter->launches[5] - meter->launches[4]);
}

TEST_CASE("cuda: trainer: callbacks see what they would see without capture") {
  struct Losses : Callback {
    void on_train_batch_start(Trainer&, TrainingModule&, const Batch& batch, int64_t) override {
      inputs += bytes_of(batch.input);
    }
    void on_train_batch_end(Trainer& t, TrainingModule& model, const Tensor& loss, const Batch&,
                            int64_t) override {
      losses.push_back(loss);
      metrics.push_back(*t.callback_metric("loss_step"));
      weights += bytes_of(model.parameters()[0]);
    }
    std::string inputs, weights;
    std::vector<Tensor> losses;
    std::vector<double> metrics;
  };
  std::vector<std::shared_ptr<Losses>> seen;
  for (const char* capture : {"auto", "off"}) {
    seen.push_back(std::make_shared<Losses>());
    Run run{.options = {.max_epochs = 2, .callbacks = {seen.back()}, .capture_steps = capture}};
    run.fit();
    CHECK((run.model->calls < 24) == (std::string(capture) == "auto"));
  }
  CHECK((seen[0]->inputs == seen[1]->inputs));
  CHECK((seen[0]->weights == seen[1]->weights));
  CHECK(seen[0]->metrics == seen[1]->metrics);
  REQUIRE(seen[0]->losses.size() == 24);
  for (size_t i = 0; i < 24; ++i)  // each is its own, also when it is read late
    CHECK(seen[0]->losses[i].item() == seen[1]->losses[i].item());
}

TEST_CASE("cuda: trainer: the learning rate's monitor logs the same rows") {
  std::vector<std::vector<std::pair<int64_t, Metrics>>> rows;
  for (const char* capture : {"auto", "off"}) {
    Run run{.recipe = {.schedule = "step"},
            .options = {.max_epochs = 2,
                        .callbacks = {trainer::LearningRateMonitor({.interval = "step"})},
                        .log_every_n_steps = 4,
                        .capture_steps = capture}};
    rows.push_back(run.fit().rows->rows);
    CHECK(run.warnings.empty());
    CHECK((run.model->calls < 24) == (std::string(capture) == "auto"));
  }
  CHECK(rows[0] == rows[1]);
}

TEST_CASE("cuda: trainer: the graphs of a fit share their memory") {
  struct Memory : Callback {
    void on_train_end(Trainer&, TrainingModule&) override {
      Allocator* const allocator = backend_of(DeviceType::cuda, "test").allocator(kGpu);
      allocator->release_cached();  // not that of graphs
      bytes = allocator->stats().allocated + allocator->stats().cached;
    }
    int64_t bytes = 0;
  };
  struct Wide : TrainingModule {
    Tensor training_step(const Batch& batch, int64_t) override {
      ++calls;
      Tensor t = relu(up(batch.input));
      for (int i = 0; i < 6; ++i) t = dropout(t, 0.1, training());
      const Tensor loss = cross_entropy(down(t), batch.target);
      log("loss", loss, {.on_step = true, .on_epoch = true});
      return loss;
    }
    OptimizerConfig configure_optimizers() override { return optim::adam(parameters()); }
    int calls = 0;
    nn::Linear up{child("up"), 6, 8192};
    nn::Linear down{child("down"), 8192, 3};
  };
  // Of 8 images, 256 KiB an activation, and of 4.
  const auto measure = [&](int64_t count, int64_t log_every, int calls) {
    const data::TensorDataset set = samples(count);
    data::DataLoader loader(set, {.batch_size = 8});
    Wide model;
    const auto memory = std::make_shared<Memory>();
    Trainer trainer({.max_epochs = 3,
                     .callbacks = {memory},
                     .logger = false,
                     .enable_checkpointing = false,
                     .enable_progress_bar = false,
                     .log_every_n_steps = log_every,
                     .gradient_clip_val = 0.1});
    trainer.fit(model, loader);
    CHECK(model.calls == calls);
    return memory->bytes;
  };
  const int64_t one = measure(40, 1, 3 + 1);
  const int64_t several = measure(76, 0, 3 + 1 + 4 + 1 + 1);
  INFO(one << " bytes with one graph, " << several << " with three");
  CHECK(several <= one + (2 << 20));  // a segment
}

TEST_CASE("cuda: trainer: a model that changes is captured anew") {
  struct Thaw : Callback {
    void on_train_epoch_start(Trainer& t, TrainingModule& model) override {
      auto& mlp = static_cast<Mlp&>(model);
      for (const Tensor& p : mlp.up.parameters()) set_requires_grad(p, t.current_epoch() >= 2);
    }
  };
  std::vector<std::unique_ptr<Run>> runs;
  for (const char* capture : {"auto", "off"}) {
    runs.push_back(std::make_unique<Run>());
    runs.back()->recipe.optimizer = "sgd";
    runs.back()->options = {.max_epochs = 4, .callbacks = {Thaw()}, .capture_steps = capture};
    runs.back()->fit();
    CHECK(runs.back()->warnings.empty());
  }
  check_same(*runs[0], *runs[1]);
  CHECK(runs[0]->model->calls < 48);
}

namespace {

struct Reads : Mlp {
  Tensor training_step(const Batch& batch, int64_t index) override {
    const Tensor loss = Mlp::training_step(batch, index);
    read += loss.item();
    return loss;
  }
  double read = 0;
};
struct AsksForStep : Mlp {
  Tensor training_step(const Batch& batch, int64_t index) override {
    log("progress", static_cast<double>(global_step()));
    return Mlp::training_step(batch, index);
  }
};
struct LogsNumber : Mlp {
  Tensor training_step(const Batch& batch, int64_t index) override {
    log("number", 1.5);
    return Mlp::training_step(batch, index);
  }
};
struct OwnClipping : Mlp {
  void configure_gradient_clipping(optim::Optimizer& o, std::optional<double>,
                                   const std::string& algorithm) override {
    clip_gradients(o, 0.1, algorithm);
  }
};
struct AfterBackward : Mlp {
  void on_after_backward() override { ++afters; }
  int afters = 0;
};
struct Hooked : Mlp {
  Hooked() {
    on_grad_ready(up.weight, [this](const Tensor&) { ++grads; });
  }
  int grads = 0;
};
struct Inside : Callback {
  void on_before_backward(Trainer&, TrainingModule&, const Tensor&) override { ++count; }
  int count = 0;
};

template <class Model>
std::vector<std::string> warnings_of(TrainerOptions options = {}) {
  options.max_epochs = 1;
  Run run{.options = std::move(options)};
  manual_seed(5);
  run.model = std::make_unique<Model>();
  run.fit();
  CHECK(run.model->calls >= 12);  // every step was run
  Run eager{.options = {.max_epochs = 1, .capture_steps = "off"}};
  manual_seed(5);
  eager.model = std::make_unique<Model>();
  CHECK((eager.fit().parameters == run.parameters));
  CHECK(eager.warnings.empty());
  return run.warnings;
}

using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("cuda: trainer: why steps run one by one") {
  CHECK(warnings_of<Reads>() ==
        Texts{"fit: steps run one by one, because copy_: a captured step must not ask for a value, "
              "which waits for the device"});
  CHECK(warnings_of<AsksForStep>() ==
        Texts{"fit: steps run one by one, because trainer: a captured step must not ask for the "
              "trainer's state"});
  CHECK(
      warnings_of<LogsNumber>() ==
      Texts{"fit: steps run one by one, because log: 'number' must be a tensor of the device in a "
            "captured step, got a number of the host"});
  CHECK(warnings_of<OwnClipping>() ==
        Texts{"fit: steps run one by one, because the model overrides configure_gradient_clipping, "
              "which is called inside a step"});
  CHECK(warnings_of<AfterBackward>() ==
        Texts{"fit: steps run one by one, because the model overrides on_after_backward, which is "
              "called inside a step"});
  CHECK(warnings_of<Hooked>() ==
        Texts{"fit: steps run one by one, because a parameter has a hook for its gradient "
              "(on_grad_ready)"});
  CHECK(warnings_of<Mlp>({.callbacks = {Inside()}}) ==
        Texts{"fit: steps run one by one, because callback Inside overrides on_before_backward, "
              "which is called inside a step"});
  CHECK(warnings_of<Mlp>({.profiler = "simple"}) ==
        Texts{"fit: steps run one by one, because the profiler looks at every kernel"});
}

}  // namespace cairn::test
