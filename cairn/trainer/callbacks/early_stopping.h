// EarlyStopping: ends a fit when a metric has stopped getting better.
// Invariant: it counts checks, not epochs; a check is made after each validation (or training
// epoch) and asks, in this order: finite? past the goal? diverged? better? out of patience?
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cairn/trainer/callback.h"

namespace cairn::trainer {

struct EarlyStoppingOptions {
  std::string monitor = {};                         // must be given
  double min_delta = 0;                             // a smaller change is none
  int64_t patience = 3;                             // checks without a better value
  std::string mode = "min";                         // "min" or "max"
  bool strict = true;                               // a metric that is missing is an error
  bool check_finite = true;                         // NaN and infinities stop the run
  std::optional<double> stopping_threshold = {};    // reaching it stops the run
  std::optional<double> divergence_threshold = {};  // getting worse than it stops the run
  // Absent: after validation where there is any, else after the training epoch.
  std::optional<bool> check_on_train_epoch_end = {};
};

class EarlyStopping : public Callback {
 public:
  explicit EarlyStopping(EarlyStoppingOptions options);

  double best_score() const { return best_score_; }
  int64_t wait_count() const { return wait_count_; }
  // The epoch in which it stopped the run; absent: it did not.
  std::optional<int64_t> stopped_epoch() const { return stopped_epoch_; }

  void on_validation_end(Trainer& trainer, TrainingModule& model) override;
  void on_train_epoch_end(Trainer& trainer, TrainingModule& model) override;
  State state_dict() const override;
  void load_state_dict(const State& state) override;
  std::string state_key() const override;

 private:
  bool checks_on_epoch_end(const Trainer& trainer) const;
  void run_check(Trainer& trainer);
  // The sentence to stop with; empty: go on.
  std::string judge(double value);
  bool better(double a, double b) const;

  EarlyStoppingOptions options_;
  double best_score_;
  int64_t wait_count_ = 0;
  std::optional<int64_t> stopped_epoch_;
};

}  // namespace cairn::trainer
