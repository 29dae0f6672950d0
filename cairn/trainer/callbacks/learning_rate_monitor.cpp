// LearningRateMonitor: reads the optimizer before it steps, so the rate is the one that is used.
#include "cairn/trainer/callbacks/learning_rate_monitor.h"

#include "cairn/trainer/trainer.h"

namespace cairn::trainer {

LearningRateMonitor::LearningRateMonitor(LearningRateMonitorOptions options)
    : options_(std::move(options)) {
  check(options_.interval == "step" || options_.interval == "epoch",
        "LearningRateMonitor: interval must be step or epoch, got ", options_.interval);
}

void LearningRateMonitor::on_train_start(Trainer& trainer, TrainingModule&) {
  check(!trainer.loggers().empty(), "LearningRateMonitor: trainer must have a logger, got none");
}

void LearningRateMonitor::on_before_optimizer_step(Trainer& trainer, TrainingModule&,
                                                   optim::Optimizer& optimizer) {
  if (is_logged(trainer, trainer.global_step() + 1)) log_rates(trainer, optimizer);
}

bool LearningRateMonitor::needs_batch(const Trainer& trainer, int64_t batch_idx) const {
  return is_logged(trainer, trainer.step_after(batch_idx));
}

bool LearningRateMonitor::is_logged(const Trainer& trainer, int64_t step) const {
  const int64_t every = trainer.options().log_every_n_steps;
  return options_.interval == "step" && every > 0 && step % every == 0;
}

void LearningRateMonitor::on_train_epoch_start(Trainer& trainer, TrainingModule&) {
  if (options_.interval == "epoch") log_rates(trainer, trainer.optimizer());
}

void LearningRateMonitor::log_rates(Trainer& trainer, optim::Optimizer& optimizer) const {
  Metrics metrics;
  const size_t groups = optimizer.group_count();
  for (size_t g = 0; g < groups; ++g) {
    const std::string name =
        groups == 1 ? cat("lr-", optimizer.name()) : cat("lr-", optimizer.name(), "/pg", g + 1);
    metrics[name] = optimizer.lr(g);
    if (options_.log_momentum) metrics[name + "-momentum"] = optimizer.momentum(g);
  }
  trainer.log_metrics(metrics, trainer.global_step());
}

}  // namespace cairn::trainer
