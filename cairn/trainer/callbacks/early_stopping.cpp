// EarlyStopping: the order of its questions.
#include "cairn/trainer/callbacks/early_stopping.h"

#include <cmath>
#include <limits>

#include "cairn/trainer/trainer.h"

namespace cairn::trainer {

EarlyStopping::EarlyStopping(EarlyStoppingOptions options) : options_(std::move(options)) {
  check(!options_.monitor.empty(), "EarlyStopping: monitor must be given, got none");
  check(options_.mode == "min" || options_.mode == "max",
        "EarlyStopping: mode must be min or max, got ", options_.mode);
  check(options_.patience >= 0, "EarlyStopping: patience must be at least 0, got ",
        options_.patience);
  check(std::isfinite(options_.min_delta), "EarlyStopping: min_delta must be finite, got ",
        options_.min_delta);
  const double inf = std::numeric_limits<double>::infinity();
  best_score_ = options_.mode == "min" ? inf : -inf;
}

std::string EarlyStopping::state_key() const {
  return cat("EarlyStopping{monitor=", options_.monitor, ", mode=", options_.mode, "}");
}

bool EarlyStopping::better(double a, double b) const {
  return options_.mode == "min" ? a < b : a > b;
}

bool EarlyStopping::checks_on_epoch_end(const Trainer& trainer) const {
  return options_.check_on_train_epoch_end.value_or(trainer.num_val_batches() == 0);
}

void EarlyStopping::on_validation_end(Trainer& trainer, TrainingModule&) {
  if (trainer.stage() == Stage::fit && !checks_on_epoch_end(trainer)) run_check(trainer);
}

void EarlyStopping::on_train_epoch_end(Trainer& trainer, TrainingModule&) {
  if (checks_on_epoch_end(trainer)) run_check(trainer);
}

void EarlyStopping::run_check(Trainer& trainer) {
  const auto value = trainer.callback_metric(options_.monitor);
  if (!value) {
    const std::string text = cat("EarlyStopping: monitor must be a logged metric, got '",
                                 options_.monitor, "', which is none of them");
    check(!options_.strict, text);
    trainer.warn(text);
    return;
  }
  const std::string reason = judge(*value);
  // Every process must come to the same end.
  if (trainer.strategy().reduce(reason.empty() ? 0 : 1, Reduce::max) == 0) return;
  stopped_epoch_ = trainer.current_epoch();
  trainer.stop(reason.empty() ? "EarlyStopping: another process stopped" : reason);
}

std::string EarlyStopping::judge(double value) {
  const auto text = [&](const auto&... parts) {
    return cat("EarlyStopping: ", options_.monitor, " = ", value, " ", parts...);
  };
  if (options_.check_finite && !std::isfinite(value)) return text("is not finite");
  if (options_.stopping_threshold && better(value, *options_.stopping_threshold))
    return text("is past the goal of ", *options_.stopping_threshold);
  if (options_.divergence_threshold && better(*options_.divergence_threshold, value))
    return text("is past the limit of ", *options_.divergence_threshold);
  const double delta = options_.mode == "min" ? -options_.min_delta : options_.min_delta;
  if (better(value, best_score_ + delta)) {
    best_score_ = value;
    wait_count_ = 0;
    return {};
  }
  if (++wait_count_ < options_.patience) return {};
  return text("did not get better than ", best_score_, " in ", wait_count_, " checks");
}

State EarlyStopping::state_dict() const {
  return {{"best_score", best_score_},
          {"wait_count", wait_count_},
          {"stopped_epoch", stopped_epoch_.value_or(-1)}};
}

void EarlyStopping::load_state_dict(const State& state) {
  best_score_ = require(state, "best_score", "EarlyStopping").as_double();
  wait_count_ = require(state, "wait_count", "EarlyStopping").as_int();
  const int64_t epoch = require(state, "stopped_epoch", "EarlyStopping").as_int();
  stopped_epoch_ = epoch < 0 ? std::nullopt : std::optional(epoch);
}

}  // namespace cairn::trainer
