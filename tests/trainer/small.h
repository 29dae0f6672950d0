// A model, data and a recorder small enough that a test can follow every step.
#pragma once

#include <csignal>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/embedding.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/data/data_loader.h"
#include "cairn/nn/linear.h"
#include "cairn/optim/adam.h"
#include "cairn/optim/sgd.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "cairn/trainer/trainer.h"
#include "tests/temp_folder.h"

namespace cairn::test {

using trainer::Callback;
using trainer::EpochControl;
using trainer::Stage;
using trainer::Trainer;
using trainer::TrainerOptions;
using trainer::TrainingModule;

// y = w x + b over three features, with dropout, so that the random state matters too.
struct SmallModel : TrainingModule {
  nn::Linear layer{child("layer"), 3, 2};
  bool skip_batches = false;
  double dropout_p = 0.25;
  std::vector<float> losses;

  Tensor forward(const Tensor& x) {
    return layer.forward(cairn::dropout(x, dropout_p, training()));
  }
  Tensor training_step(const Batch& batch, int64_t) override {
    if (skip_batches) return {};
    Tensor loss = mse_loss(forward(batch.input), batch.target);
    losses.push_back(loss.item<float>());
    log("loss", loss, {.on_step = true, .on_epoch = true, .prog_bar = true});
    return loss;
  }
  void validation_step(const Batch& batch, int64_t) override {
    log("val_loss", mse_loss(forward(batch.input), batch.target));
  }
  void test_step(const Batch& batch, int64_t) override {
    log("test_loss", mse_loss(forward(batch.input), batch.target));
  }
  Tensor predict_step(const Batch& batch, int64_t) override { return forward(batch.input); }
  OptimizerConfig configure_optimizers() override {
    return optim::adam(parameters(), {.lr = 0.05});
  }
};

inline data::TensorDataset small_data(int64_t samples, uint64_t seed = 7) {
  Generator generator(seed);
  return data::TensorDataset(randn({samples, 3}, {}, generator),
                             randn({samples, 2}, {}, generator));
}

// No files, no output: what most tests want.
inline TrainerOptions quiet(TrainerOptions options = {}) {
  options.logger = false;
  options.enable_checkpointing = false;
  options.enable_progress_bar = false;
  return options;
}

// Takes the test framework's SIGINT handler away for a while: the trainer leaves foreign ones
// alone.
class DefaultInterrupt {
 public:
  DefaultInterrupt() : before_(std::signal(SIGINT, SIG_DFL)) {}
  ~DefaultInterrupt() { std::signal(SIGINT, before_); }
  DefaultInterrupt(const DefaultInterrupt&) = delete;
  DefaultInterrupt& operator=(const DefaultInterrupt&) = delete;

 private:
  void (*before_)(int);
};

// Values of all parameters, bit for bit.
inline std::string bits(const nn::Module& model) {
  std::string out;
  for (const auto& [name, tensor] : model.state_dict()) {
    const Tensor values = raw::contiguous(tensor);
    out.append(static_cast<const char*>(values.raw_data()), static_cast<size_t>(values.nbytes()));
  }
  return out;
}

}  // namespace cairn::test
