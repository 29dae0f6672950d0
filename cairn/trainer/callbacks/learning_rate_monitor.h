// LearningRateMonitor: gives the learning rate of every parameter group to the loggers.
#pragma once

#include <string>

#include "cairn/trainer/callback.h"

namespace cairn::trainer {

struct LearningRateMonitorOptions {
  std::string interval = "step";  // "step" (as often as step values are logged) or "epoch"
  bool log_momentum = false;
};

// Names: "lr-adam", or "lr-adam/pg1", "lr-adam/pg2", … with several groups.
class LearningRateMonitor : public Callback {
 public:
  explicit LearningRateMonitor(LearningRateMonitorOptions options = {});

  // Throws Error without a logger.
  void on_train_start(Trainer& trainer, TrainingModule& model) override;
  void on_before_optimizer_step(Trainer& trainer, TrainingModule& model,
                                optim::Optimizer& optimizer) override;
  void on_train_epoch_start(Trainer& trainer, TrainingModule& model) override;
  bool needs_batch(const Trainer& trainer, int64_t batch_idx) const override;

 private:
  bool is_logged(const Trainer& trainer, int64_t step) const;
  void log_rates(Trainer& trainer, optim::Optimizer& optimizer) const;
  LearningRateMonitorOptions options_;
};

}  // namespace cairn::trainer
