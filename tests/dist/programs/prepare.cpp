// A fit whose rank 0 fails in prepare_data(), while the others wait for it with patience. Argument:
// throw, kill or exit.
// Invariant: as in faulty.cpp, "fault at NANOSECONDS" comes right before the fault and "heard at
// NANOSECONDS" when it has reached another rank; a rank takes no SIGTERM.
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "cairn/autograd/ops/loss.h"
#include "cairn/nn/linear.h"
#include "cairn/optim/sgd.h"
#include "cairn/trainer/ddp_strategy.h"
#include "cairn/trainer/trainer.h"

namespace {

using namespace cairn;

void say_moment(const char* what) {
  std::printf("%s at %lld\n", what,
              static_cast<long long>(std::chrono::steady_clock::now().time_since_epoch().count()));
  std::fflush(stdout);
}

struct Preparing : trainer::TrainingModule {
  explicit Preparing(std::string by) : fault(std::move(by)) {}
  void prepare_data() override {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));  // the others wait by now
    say_moment("fault");
    if (fault == "kill") raise(SIGKILL);
    if (fault == "exit") std::_Exit(3);
    fail("download: mirror must answer, got silence");
  }
  Tensor training_step(const Batch& batch, int64_t) override {
    return mse_loss(layer(batch.input), batch.target);
  }
  OptimizerConfig configure_optimizers() override { return optim::sgd(parameters(), {.lr = 0.1}); }

  nn::Linear layer{child("layer"), 3, 2};
  std::string fault;
};

void run(const std::string& fault) {
  const data::TensorDataset set(zeros({8, 3}), zeros({8, 2}));
  data::DataLoader loader(set, {.batch_size = 2});
  Preparing model(fault);
  trainer::Trainer trainer({.max_epochs = 1,
                            .strategy = trainer::DDPStrategy({.patience = std::chrono::minutes(2)}),
                            .logger = false,
                            .enable_checkpointing = false,
                            .enable_progress_bar = false});
  try {
    trainer.fit(model, loader);
  } catch (const std::exception&) {
    say_moment("heard");
    throw;
  }
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGTERM, SIG_IGN);
  try {
    check(argc == 2, "prepare: one fault must be given, got ", argc - 1);
    run(argv[1]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
