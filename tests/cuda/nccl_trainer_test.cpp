// Fits by several processes with a GPU each, as threads: equal bits on all ranks and with captured
// steps, what one process gets from the joined batch, and ranks that fail.
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/data/data_loader.h"
#include "cairn/nn/linear.h"
#include "cairn/nn/norm.h"
#include "cairn/optim/adam.h"
#include "cairn/optim/sgd.h"
#include "cairn/tensor/raw.h"
#include "cairn/trainer/ddp_strategy.h"
#include "cairn/trainer/trainer.h"
#include "tests/catch.h"
#include "tests/cuda/nccl_ranks.h"
#include "tests/dist/thread_group.h"

namespace cairn::test {
namespace {

using Catch::Matchers::Contains;
using trainer::Callback;
using trainer::DDPStrategy;
using trainer::DDPStrategyOptions;
using trainer::Metrics;
using trainer::Trainer;
using trainer::TrainerOptions;
using trainer::TrainingModule;
using Group = std::shared_ptr<dist::ProcessGroup>;
using Clock = std::chrono::steady_clock;

// An MLP with or without batch norm.
struct Net : TrainingModule {
  explicit Net(bool normed) {
    if (normed) norm.emplace(child("norm"), 16);
    Generator generator(3);
    for (const auto& [name, p] : named_parameters())
      if (p.dim() > 1) raw::copy_(p, randn(p.shape(), {}, generator));
  }
  Tensor forward(const Tensor& x) {
    const Tensor hidden = up(x);
    return down(relu(norm ? (*norm)(hidden) : hidden));
  }
  Tensor training_step(const Batch& batch, int64_t) override {
    ++calls;
    const Tensor loss = cross_entropy(forward(batch.input), batch.target);
    log("loss", loss, {.on_step = false, .on_epoch = true, .sync_dist = true});
    return loss;
  }
  void validation_step(const Batch& batch, int64_t) override {
    log("val_loss", cross_entropy(forward(batch.input), batch.target), {.sync_dist = true});
  }
  OptimizerConfig configure_optimizers() override {
    // Biases before a batch norm have gradients of rounding errors, which Adam would follow.
    if (norm) return optim::sgd(parameters(), {.lr = 0.05});
    return optim::adam(parameters(), {.lr = 0.01});
  }

  int calls = 0;  // of training_step
  nn::Linear up{child("up"), 6, 16};
  std::optional<nn::BatchNorm1d> norm;
  nn::Linear down{child("down"), 16, 3};
};

data::TensorDataset samples(int64_t count, uint64_t seed) {
  Generator generator(seed);
  const Tensor x = randn({count, 6}, {}, generator);
  return data::TensorDataset(x, randint(0, 3, {count}, {DType::i64}, generator));
}

struct Fitted {
  std::string state;           // the bytes of the state dict
  std::vector<double> values;  // of the parameters
  Metrics metrics;
  std::vector<std::string> warnings;
  int calls = 0;
  int64_t steps = 0;
  uint64_t agreements = 0;  // collectives of the host
};

Fitted fitted(const Net& model, const Trainer& trainer) {
  Fitted out;
  for (const auto& [name, t] : model.state_dict()) {
    const Tensor host = raw::contiguous(raw::to(t, t.dtype(), kCPU));
    out.state.append(static_cast<const char*>(host.raw_data()), static_cast<size_t>(host.nbytes()));
  }
  for (const Tensor& p : model.parameters()) {
    const Tensor host = raw::contiguous(raw::to(p, DType::f64, kCPU));
    out.values.insert(out.values.end(), host.data<double>(), host.data<double>() + host.numel());
  }
  out.metrics = trainer.callback_metrics();
  for (const std::string& text : trainer.warnings())  // on a busy machine any rank may be slow
    if (text.find("the processes waited for") == std::string::npos) out.warnings.push_back(text);
  out.calls = model.calls;
  out.steps = trainer.global_step();
  return out;
}

TrainerOptions quiet(TrainerOptions options) {
  options.accelerator = "gpu";
  options.logger = false;
  options.enable_checkpointing = false;
  options.enable_progress_bar = false;
  return options;
}

// A fit by threads, each with a GPU. `batch_size` is that of all together.
struct Job {
  TrainerOptions options = {};
  bool normed = false;
  int64_t batch_size = 8;
  int64_t count = 96;
  DDPStrategyOptions strategy = {};
  std::function<void(int rank, TrainerOptions&, Net&)> change = {};

  std::vector<Fitted> run(int ranks) const {
    std::vector<Fitted> out(static_cast<size_t>(ranks));
    on_ranks(ranks, [&](const Group& group) {
      const data::TensorDataset train_set = samples(count, 1), val_set = samples(8, 2);
      data::DataLoader train(train_set, {.batch_size = batch_size / ranks, .shuffle = true});
      data::DataLoader val(val_set, {.batch_size = 4});
      Net model(normed);
      TrainerOptions o = quiet(options);
      if (change) change(group->rank(), o, model);
      DDPStrategyOptions s = strategy;
      s.group = group;
      o.strategy = DDPStrategy(std::move(s));
      Trainer trainer(std::move(o));
      check(trainer.strategy().root_device() == gpu(group->rank()),
            "each rank must have a GPU of its own");
      trainer.fit(model, train, val);
      out[static_cast<size_t>(group->rank())] = fitted(model, trainer);
      out[static_cast<size_t>(group->rank())].agreements = group->sequence();
    });
    return out;
  }
};

double largest_difference(const Fitted& a, const Fitted& b) {
  if (a.values.size() != b.values.size()) return 1e9;
  double largest = 0;
  for (size_t i = 0; i < a.values.size(); ++i)
    largest = std::max(largest, std::abs(a.values[i] - b.values[i]));
  return largest;
}

// With captured steps and without, by two ranks: the same bits everywhere.
struct Both {
  std::vector<Fitted> captured, eager;
};
Both check_captured(Job job) {
  const auto captured = job.run(2);
  job.options.capture_steps = "off";
  job.options.resident_data = "off";
  const auto eager = job.run(2);
  CHECK((captured[0].state == captured[1].state));
  CHECK((captured[0].state == eager[0].state));
  CHECK((eager[0].state == eager[1].state));
  CHECK(captured[0].metrics == captured[1].metrics);
  CHECK(captured[0].metrics == eager[0].metrics);
  for (const auto* run : {&captured, &eager})
    for (const Fitted& rank : *run) CHECK(rank.warnings == std::vector<std::string>{});
  CHECK(captured[0].calls == captured[1].calls);
  CHECK(captured[0].calls < eager[0].calls / 2);
  return {captured, eager};
}

}  // namespace

TEST_CASE("cuda: nccl trainer: two ranks train what one does, captured or not, bit for bit") {
  const WithFakeNccl fake;
  Job job{.options = {.max_epochs = 2}};
  SECTION("plain") {}
  SECTION("accumulated") { job.options.accumulate_grad_batches = 4; }
  SECTION("clipped by norm") { job.options.gradient_clip_val = 0.1; }
  SECTION("synchronised batch norm") {
    job.normed = true;
    job.options.sync_batchnorm = true;
  }
  SECTION("validation inside the epoch") { job.options.val_check_interval = 5; }
  SECTION("every step logged") { job.options.log_every_n_steps = 1; }
  const auto two = check_captured(job).captured;
  const auto one = job.run(1);
  CHECK(two[0].steps == one[0].steps);
  CHECK(largest_difference(one[0], two[0]) < 1e-5);
  for (const char* name : {"loss", "val_loss"})
    CHECK(two[0].metrics.at(name) == Approx(one[0].metrics.at(name)).margin(1e-5));
  CHECK(emulator::nccl_log().live == 0);
  CHECK(emulator::nccl_log().aborted == 0);
}

TEST_CASE("cuda: nccl trainer: batch norm of each rank alone") {
  const WithFakeNccl fake;
  // Rank 0's running statistics are everybody's after each step; its last ones are told in between.
  const auto two = check_captured({.options = {.max_epochs = 2}, .normed = true}).captured;
  const Job alone{.options = {.max_epochs = 2, .sync_batchnorm = true}, .normed = true};
  CHECK(largest_difference(alone.run(2)[0], two[0]) > 1e-3);
}

TEST_CASE("cuda: nccl trainer: three ranks, and gradients that travel as bf16") {
  const WithFakeNccl fake;
  Job job{.options = {.max_epochs = 2}, .batch_size = 12};
  job.strategy.gradient_compression = "bf16";
  const auto three = job.run(3);
  job.options.capture_steps = "off";
  const auto eager = job.run(3);
  for (int r = 0; r < 3; ++r) {
    CHECK((three[static_cast<size_t>(r)].state == three[0].state));
    CHECK((eager[static_cast<size_t>(r)].state == three[0].state));
  }
  CHECK(three[0].calls < eager[0].calls);
}

TEST_CASE("cuda: nccl trainer: why steps run one by one, on all ranks") {
  const WithFakeNccl fake;
  Job job{.options = {.max_epochs = 1}};
  job.strategy.find_unused_parameters = true;
  for (const Fitted& rank : job.run(2)) {
    CHECK(rank.calls == 12);
    CHECK(rank.warnings ==
          std::vector<std::string>{
              "fit: steps run one by one, because strategy ddp does not capture them"});
  }
}

TEST_CASE("cuda: nccl trainer: several ranks launch several steps at once") {
  const WithFakeNccl fake;
  Job job{.options = {.max_epochs = 2, .log_every_n_steps = 0}, .count = 320};
  const auto [two, eager] = check_captured(job);
  // 40 steps an epoch: three by themselves, then 16, 16, 4 and 1; later 16, 16, 4 and 4.
  CHECK(two[0].calls == 3 + 16 + 4 + 1);
  CHECK(two[0].steps == 80);
  // Before each batch or launch all agree whether to go on, here also on what to launch, and before
  // and after each of three captures on whether it can be.
  CHECK(eager[0].agreements - two[0].agreements == 80 - 2 * (7 + 4) - 2 * 3);

  // Whatever keeps one rank from a launch, all make the same steps in the same way: the emulated
  // NCCL does not let captured calls meet others.
  struct Watching : Callback {
    void on_train_batch_end(Trainer& t, TrainingModule&, const Tensor&, const Batch&,
                            int64_t) override {
      if (stops && t.global_step() == 25) t.stop("enough");
    }
    bool needs_batch(const Trainer& t, int64_t batch_idx) const override {
      return t.step_after(batch_idx) % 5 == 0;
    }
    bool stops = false;
  };
  struct Changing : Callback {
    void on_train_batch_end(Trainer& t, TrainingModule& m, const Tensor&, const Batch&,
                            int64_t) override {
      if (t.global_step() == 41) dynamic_cast<Net&>(m).up.eval();  // changes nothing in its output
    }
    bool needs_batch(const Trainer& t, int64_t batch_idx) const override {
      return t.step_after(batch_idx) == 41;
    }
  };
  const std::string one_by_one = "fit: steps run one by one, because ";
  Job mixed{.options = {.max_epochs = 2, .log_every_n_steps = 0}, .count = 320};
  {
    INFO("one rank captures nothing");
    mixed.change = [](int rank, TrainerOptions& o, Net&) {
      if (rank == 1) o.capture_steps = "off";
    };
    const auto got = mixed.run(2);
    CHECK((got[0].state == two[0].state));
    CHECK((got[1].state == two[0].state));
    CHECK(got[0].calls == 80);
    CHECK(got[1].calls == 80);
    CHECK(got[0].warnings ==
          std::vector<std::string>{one_by_one + "another process does not capture them"});
    CHECK(got[1].warnings.empty());
  }
  {
    INFO("one rank has another model in its graphs from a step on");
    mixed.change = [](int rank, TrainerOptions& o, Net&) {
      if (rank == 1) o.callbacks = {std::make_shared<Changing>()};
    };
    const auto got = mixed.run(2);
    CHECK((got[0].state == two[0].state));
    CHECK((got[1].state == two[0].state));
    CHECK(got[0].calls > two[0].calls);
    CHECK(got[0].calls < 80);
    CHECK(got[0].warnings.empty());
    CHECK(got[1].warnings.empty());
  }
  {
    INFO("one rank finds that it cannot, when all have agreed on 16");
    mixed.change = [](int rank, TrainerOptions&, Net& net) {
      if (rank == 1) on_grad_ready(net.up.weight, [](const Tensor&) {});
    };
    const auto got = mixed.run(2);
    CHECK((got[0].state == two[0].state));
    CHECK((got[1].state == two[0].state));
    CHECK(got[0].warnings ==
          std::vector<std::string>{one_by_one + "another process could not capture them"});
    CHECK(got[1].warnings ==
          std::vector<std::string>{one_by_one +
                                   "a parameter has a hook for its gradient (on_grad_ready)"});
  }
  for (const bool stops : {false, true}) {
    INFO("one rank has a callback that looks" << (stops ? ", and stops all" : ""));
    mixed.change = [stops](int rank, TrainerOptions& o, Net&) {
      if (rank == 0) return;
      const auto watching = std::make_shared<Watching>();
      watching->stops = stops;
      o.callbacks = {watching};
    };
    const auto got = mixed.run(2);
    CHECK((got[0].state == got[1].state));
    CHECK((got[0].state == two[0].state) == !stops);
    CHECK(got[0].steps == (stops ? 25 : 80));
    CHECK(got[1].steps == got[0].steps);
    CHECK(got[0].calls < 25);
  }
}

namespace {

// What each rank of two hears when rank 1's step number `at` does `what`.
std::vector<std::string> errors_when(const std::string& capture, int64_t at,
                                     const std::function<void()>& what, dist::Milliseconds timeout,
                                     bool reads = false) {
  struct Failing : Callback {
    void on_train_batch_start(Trainer& t, TrainingModule&, const Batch&, int64_t) override {
      if (t.global_rank() == 1 && t.global_step() == at) what();
    }
    void on_train_batch_end(Trainer&, TrainingModule&, const Tensor& loss, const Batch&,
                            int64_t) override {
      if (reads) loss.item();
    }
    int64_t at = 0;
    bool reads = false;
    std::function<void()> what;
  };
  std::vector<std::string> errors(2);
  on_ranks(
      2,
      [&](Group group) {
        const auto rank = static_cast<size_t>(group->rank());
        const data::TensorDataset set = samples(96, 1);
        data::DataLoader loader(set, {.batch_size = 4});
        Net model(false);
        const auto failing = std::make_shared<Failing>();
        failing->at = at;
        failing->reads = reads;
        failing->what = what;
        TrainerOptions o =
            quiet({.max_epochs = 1, .callbacks = {failing}, .capture_steps = capture});
        o.strategy = DDPStrategy({.group = group});
        auto trainer = std::make_unique<Trainer>(std::move(o));
        errors[rank] = error_of([&] { trainer->fit(model, loader); });
      },
      timeout);
  return errors;
}

}  // namespace

TEST_CASE("cuda: nccl trainer: the error of one rank ends the others, captured or not") {
  const WithFakeNccl fake;
  for (const char* capture : {"auto", "off"})
    for (const bool reads : {false, true}) {
      INFO("capture_steps " << capture << ", rank 0 " << (reads ? "reads" : "does not read"));
      const auto start = Clock::now();
      const auto errors = errors_when(
          capture, 8, [] { fail("step: on purpose"); }, std::chrono::seconds(60), reads);
      CHECK(errors[1] == "step: on purpose");
      CHECK_THAT(errors[0], Contains("rank 1 failed: step: on purpose") ||
                                Contains("rank 1 of 2 gave it up: step: on purpose"));
      CHECK(Clock::now() - start < std::chrono::seconds(30));
      CHECK(emulator::nccl_log().live == 0);
    }
}

TEST_CASE("cuda: nccl trainer: a rank that falls silent is a time-out, also for what a GPU does") {
  const WithFakeNccl fake;
  for (const char* capture : {"auto", "off"}) {
    INFO("capture_steps " << capture);
    const auto start = Clock::now();
    const auto errors = errors_when(
        capture, 8, [] { std::this_thread::sleep_for(std::chrono::seconds(5)); },
        std::chrono::seconds(2), true);
    CHECK_THAT(errors[0],
               Contains("must be done within 2000 ms") || Contains("no answer within 2000 ms"));
    CHECK(errors[1] != "no error");
    CHECK(Clock::now() - start < std::chrono::seconds(40));
    CHECK(emulator::nccl_log().live == 0);
  }
}

}  // namespace cairn::test
