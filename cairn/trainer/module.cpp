// TrainingModule's defaults and its view of the run.
#include "cairn/trainer/module.h"

#include "cairn/autograd/ops/elementwise.h"
#include "cairn/optim/clip.h"
#include "cairn/trainer/trainer.h"

namespace cairn::trainer {
namespace {

[[noreturn]] void not_overridden(const char* stage, const char* function) {
  fail(stage, ": model must override ", function);
}

}  // namespace

Tensor TrainingModule::training_step(const Batch&, int64_t) {
  not_overridden("fit", "training_step");
}
void TrainingModule::validation_step(const Batch&, int64_t) {
  not_overridden("validate", "validation_step");
}
void TrainingModule::test_step(const Batch&, int64_t) { not_overridden("test", "test_step"); }
Tensor TrainingModule::predict_step(const Batch&, int64_t) {
  not_overridden("predict", "predict_step");
}
OptimizerConfig TrainingModule::configure_optimizers() {
  not_overridden("fit", "configure_optimizers");
}

Batch TrainingModule::transfer_batch_to_device(const Batch& batch, Device device) {
  const auto moved = [&](const Tensor& t) {
    return t.defined() && t.device() != device ? cairn::to(t, device) : t;
  };
  return {moved(batch.input), moved(batch.target)};
}

// Not inline: overrides.h compares their addresses.
void TrainingModule::on_before_batch_transfer(Batch&) {}
void TrainingModule::on_after_batch_transfer(Batch&) {}
EpochControl TrainingModule::on_train_batch_start(const Batch&, int64_t) {
  return EpochControl::proceed;
}
void TrainingModule::on_before_zero_grad(optim::Optimizer&) {}
void TrainingModule::on_before_backward(const Tensor&) {}
void TrainingModule::on_after_backward() {}
void TrainingModule::on_before_optimizer_step(optim::Optimizer&) {}
void TrainingModule::on_train_batch_end(const Tensor&, const Batch&, int64_t) {}

void TrainingModule::optimizer_zero_grad(optim::Optimizer& optimizer) { optimizer.zero_grad(); }

void TrainingModule::configure_gradient_clipping(optim::Optimizer& optimizer,
                                                 std::optional<double> value,
                                                 const std::string& algorithm) {
  clip_gradients(optimizer, value, algorithm);
}

void TrainingModule::clip_gradients(optim::Optimizer& optimizer, std::optional<double> value,
                                    const std::string& algorithm) {
  if (!value) return;
  if (algorithm == "norm")
    optim::clip_grad_norm_(optimizer.parameters(), *value);
  else if (algorithm == "value")
    optim::clip_grad_value_(optimizer.parameters(), *value);
  else
    fail("clip_gradients: algorithm must be norm or value, got ", algorithm);
}

void TrainingModule::remember_modes() {
  modes_.clear();
  for (const auto& [name, module] : named_modules())
    modes_.emplace_back(module, module->training());
}

// Parents come first, so what a parent's train() does to its children is put right afterwards.
void TrainingModule::restore_modes() {
  for (const auto& [module, training] : modes_) module->train(training);
  modes_.clear();
}

void TrainingModule::on_validation_model_zero_grad() { zero_grad(); }
void TrainingModule::on_validation_model_eval() {
  remember_modes();
  eval();
}
void TrainingModule::on_validation_model_train() { restore_modes(); }
void TrainingModule::on_test_model_eval() {
  remember_modes();
  eval();
}
void TrainingModule::on_test_model_train() { restore_modes(); }
void TrainingModule::on_predict_model_eval() {
  remember_modes();
  eval();
}
void TrainingModule::on_predict_model_train() { restore_modes(); }

void TrainingModule::log(std::string_view name, const Tensor& value, const LogOptions& options) {
  if (metrics_ != nullptr) metrics_->log(name, value, options);
}
void TrainingModule::log(std::string_view name, double value, const LogOptions& options) {
  if (metrics_ != nullptr) metrics_->log(name, value, options);
}
void TrainingModule::log_dict(const Metrics& values, const LogOptions& options) {
  for (const auto& [name, value] : values) log(name, value, options);
}

void TrainingModule::save_hyperparameters(State values) {
  for (auto& [key, value] : values) hyper_parameters_[key] = std::move(value);
}

Trainer& TrainingModule::trainer() const {
  check(trainer_ != nullptr, "trainer: model must be run by a trainer");
  check(!metrics_->recording(), "trainer: a captured step must not ask for the trainer's state");
  return *trainer_;
}
int64_t TrainingModule::current_epoch() const { return trainer().current_epoch(); }
int64_t TrainingModule::global_step() const { return trainer().global_step(); }

}  // namespace cairn::trainer
