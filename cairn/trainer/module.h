// TrainingModule: a model that says how it is trained.
// Invariant: it never sees the loop; the trainer calls its steps and hooks, and what it needs to
// know of the run it asks through the protected functions here.
//
//   struct ImageClassifier : trainer::TrainingModule {
//     nn::ResNet model{child("model"), nn::resnet18({.in_channels = 1, .num_classes = 10})};
//     Tensor training_step(const Batch& batch, int64_t) override {
//       Tensor loss = cross_entropy(model(batch.input), batch.target);
//       log("loss", loss, {.prog_bar = true});
//       return loss;
//     }
//     OptimizerConfig configure_optimizers() override { return optim::adam(parameters(), {}); }
//   };
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cairn/data/batch.h"
#include "cairn/nn/module.h"
#include "cairn/optim/config.h"
#include "cairn/trainer/callback.h"
#include "cairn/trainer/metrics.h"
#include "cairn/trainer/stage.h"

namespace cairn::trainer {

// What the module's on_train_batch_start answers.
enum class EpochControl : uint8_t { proceed, skip_rest };

class TrainingModule : public nn::Module {
 public:
  // --- what a model does -----------------------------------------------------------------------
  // The loss to minimise (one element), or an undefined tensor: the batch is skipped, with one
  // warning per run.
  virtual Tensor training_step(const Batch& batch, int64_t batch_idx);
  virtual void validation_step(const Batch& batch, int64_t batch_idx);
  virtual void test_step(const Batch& batch, int64_t batch_idx);
  virtual Tensor predict_step(const Batch& batch, int64_t batch_idx);
  // The optimizer over this module's parameters, with its schedules.
  virtual OptimizerConfig configure_optimizers();
  // Callbacks the model brings along; one replaces a callback of the same class given to the
  // trainer.
  virtual std::vector<Held<Callback>> configure_callbacks() { return {}; }

  // --- hooks, in the order they are called in ----------------------------------------------------
  virtual void prepare_data() {}  // by one process of each host; see DataModule
  virtual void setup(Stage) {}
  virtual void configure_model() {}
  virtual void on_fit_start() {}
  virtual void on_sanity_check_start() {}
  virtual void on_sanity_check_end() {}
  virtual void on_train_start() {}
  virtual void on_train_epoch_start() {}
  virtual void on_before_batch_transfer(Batch&);
  // Moves the batch; the default moves its tensors.
  virtual Batch transfer_batch_to_device(const Batch& batch, Device device);
  virtual void on_after_batch_transfer(Batch&);
  virtual EpochControl on_train_batch_start(const Batch&, int64_t batch_idx);
  virtual void on_before_zero_grad(optim::Optimizer&);
  virtual void optimizer_zero_grad(optim::Optimizer& optimizer);
  virtual void on_before_backward(const Tensor& loss);
  virtual void on_after_backward();
  virtual void on_before_optimizer_step(optim::Optimizer&);
  // The default calls clip_gradients with the trainer's gradient_clip_val and algorithm.
  virtual void configure_gradient_clipping(optim::Optimizer& optimizer, std::optional<double> value,
                                           const std::string& algorithm);
  virtual void on_train_batch_end(const Tensor& loss, const Batch&, int64_t batch_idx);

  // Around validation inside fit. The defaults clear gradients, switch everything to evaluation
  // mode and give every submodule its own mode back.
  virtual void on_validation_model_zero_grad();
  virtual void on_validation_model_eval();
  virtual void on_validation_start() {}
  virtual void on_validation_epoch_start() {}
  virtual void on_validation_batch_start(const Batch&, int64_t /*batch_idx*/) {}
  virtual void on_validation_batch_end(const Batch&, int64_t /*batch_idx*/) {}
  virtual void on_validation_epoch_end() {}
  virtual void on_validation_end() {}
  virtual void on_validation_model_train();

  virtual void on_train_epoch_end() {}
  virtual void on_train_end() {}
  virtual void on_fit_end() {}
  virtual void teardown(Stage) {}

  virtual void on_test_model_eval();
  virtual void on_test_start() {}
  virtual void on_test_epoch_start() {}
  virtual void on_test_batch_start(const Batch&, int64_t /*batch_idx*/) {}
  virtual void on_test_batch_end(const Batch&, int64_t /*batch_idx*/) {}
  virtual void on_test_epoch_end() {}
  virtual void on_test_end() {}
  virtual void on_test_model_train();

  virtual void on_predict_model_eval();
  virtual void on_predict_start() {}
  virtual void on_predict_epoch_start() {}
  virtual void on_predict_batch_start(const Batch&, int64_t /*batch_idx*/) {}
  virtual void on_predict_batch_end(const Tensor& /*prediction*/, const Batch&,
                                    int64_t /*batch_idx*/) {}
  virtual void on_predict_epoch_end() {}
  virtual void on_predict_end() {}
  virtual void on_predict_model_train();

  virtual void on_save_checkpoint(Checkpoint&) {}
  virtual void on_load_checkpoint(const Checkpoint&) {}

  // Settings the checkpoint and the loggers keep (see save_hyperparameters).
  const State& hyper_parameters() const { return hyper_parameters_; }

 protected:
  // Logs a number, or a tensor with one element, under `name`; see LogOptions for the levels.
  // Tensors are not read here. Does nothing while no trainer runs the module.
  void log(std::string_view name, const Tensor& value, const LogOptions& options = {});
  void log(std::string_view name, double value, const LogOptions& options = {});
  void log_dict(const Metrics& values, const LogOptions& options = {});
  // Keeps the settings the model was made with, for checkpoints and loggers.
  void save_hyperparameters(State values);

  // Clips the gradients of the optimizer's parameters: algorithm "norm" (one norm over all of them)
  // or "value"; does nothing without a value.
  void clip_gradients(optim::Optimizer& optimizer, std::optional<double> value,
                      const std::string& algorithm);

  // The trainer that runs this module; throws Error while none does, and inside a step that is
  // being captured, whose launches would not see what changes (TrainerOptions::capture_steps).
  Trainer& trainer() const;
  int64_t current_epoch() const;
  int64_t global_step() const;

 private:
  friend class Trainer;
  friend class TrainerRun;

  void remember_modes();
  void restore_modes();

  Trainer* trainer_ = nullptr;
  MetricStore* metrics_ = nullptr;
  State hyper_parameters_;
  std::vector<std::pair<nn::Module*, bool>> modes_;
};

}  // namespace cairn::trainer
