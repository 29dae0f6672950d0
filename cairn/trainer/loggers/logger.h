// Logger: where a run's numbers go.
// Invariant: metrics arrive in order of steps; the trainer calls save() at least once an epoch and
// finalize() once at the end, whatever happened.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cairn/trainer/metrics.h"
#include "cairn/trainer/value.h"

namespace cairn::trainer {

class Logger {
 public:
  virtual ~Logger() = default;

  // The folder of this run's files; checkpoints go below it. Empty: the logger has none.
  virtual std::string log_dir() const { return {}; }
  virtual void log_hyperparams(const State& hyper_parameters) = 0;
  // `step` counts optimizer steps from 0; "epoch" is among the metrics.
  virtual void log_metrics(const Metrics& metrics, int64_t step) = 0;
  // Brings what was logged to its place.
  virtual void save() = 0;
  // How far the log is, for a checkpoint; called after save().
  virtual State state_dict() const { return {}; }
  // Takes the log of an earlier run back to where it was when its checkpoint was made.
  virtual void resume(const State&) {}
  // `status`: "success", "interrupted" or "failed".
  virtual void finalize(std::string_view status) = 0;
};

}  // namespace cairn::trainer
