// Two fits by one trainer, of which the first fails: by an error of the rank that the argument
// names, or of all ("all"); or a test before a fit ("after"), behind whose last collective rank 1
// fails. The second argument is the backend.
// Invariant: a rank writes "first: ERROR" and, after the second run, its parameters.
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "cairn/autograd/ops/loss.h"
#include "cairn/dist/failure_report.h"
#include "cairn/nn/linear.h"
#include "cairn/optim/sgd.h"
#include "cairn/trainer/ddp_strategy.h"
#include "cairn/trainer/trainer.h"

namespace {

using namespace cairn;

struct Failing : trainer::TrainingModule {
  Tensor training_step(const Batch& batch, int64_t batch_idx) override {
    if (fails && batch_idx == 2) fail("data: image 7 must be whole, got half");
    return mse_loss(layer(batch.input), batch.target);
  }
  void test_step(const Batch&, int64_t) override {}
  void on_test_end() override {
    if (trainer().global_rank() == 1) fail("data: image 7 must be whole, got half");
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
  OptimizerConfig configure_optimizers() override { return optim::sgd(parameters(), {.lr = 0.1}); }

  nn::Linear layer{child("layer"), 3, 2};
  bool fails = false;
};

void run(const std::string& culprit, const std::string& backend) {
  Generator generator(1);
  const data::TensorDataset set(randn({36, 3}, {}, generator), randn({36, 2}, {}, generator));
  data::DataLoader loader(set, {.batch_size = 2});
  Failing model;
  trainer::Trainer trainer({.max_epochs = 1,
                            .strategy = trainer::DDPStrategy({.process_group_backend = backend}),
                            .logger = false,
                            .enable_checkpointing = false,
                            .enable_progress_bar = false});
  model.fails = culprit == "all" || culprit == std::to_string(trainer.global_rank());
  try {
    if (culprit == "after")
      trainer.test(model, loader);
    else
      trainer.fit(model, loader);
  } catch (const std::exception& error) {
    std::printf("first: %s\n", error.what());
  }
  model.fails = false;
  trainer.fit(model, loader);
  std::printf("parameters:");
  for (const Tensor& p : model.parameters())
    for (int64_t i = 0; i < p.numel(); ++i) std::printf(" %a", p.data<float>()[i]);
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    check(argc == 3, "again: a rank and a backend must be given, got ", argc - 1, " arguments");
    run(argv[1], argv[2]);
    return 0;
  } catch (const std::exception& error) {
    dist::report_failure(error);
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
