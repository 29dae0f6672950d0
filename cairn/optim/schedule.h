// Learning-rate schedules with PyTorch's names, options and values.
// Invariant: a schedule sets the first rate when it is made and the next one at each step(); where
// PyTorch derives a rate from the one before, so does this, so that schedules can be stacked and
// the values agree to the last bits.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "cairn/optim/optimizer.h"

namespace cairn::optim {

class Schedule {
 public:
  virtual ~Schedule() = default;
  Schedule(const Schedule&) = delete;
  Schedule& operator=(const Schedule&) = delete;

  // To be called after the epoch's (or batch's) optimizer steps.
  void step();
  // As step(), with the monitored value, which only ReduceLROnPlateau looks at.
  virtual void step(double metric);
  // Whether step() without a value is an error.
  virtual bool needs_metric() const { return false; }

  // Calls of step() since the start.
  int64_t last_epoch() const { return epoch_; }
  std::vector<double> last_lr() const;

  // Numbers only. Loading does not touch the optimizer, whose own state holds the rates.
  virtual State state_dict() const;
  virtual void load_state_dict(const State& state);

  // Back to the beginning: the optimizer gets its initial rates, then this schedule's first ones.
  virtual void restart();

 protected:
  Schedule(const char* name, Optimizer& optimizer);

  // The rate of `group` in epoch_, from the one it has now.
  virtual double next_lr(size_t group, double now) = 0;
  // Sets the rates of epoch_ in all groups.
  virtual void apply();
  double base_lr(size_t group) const { return base_lrs_[group]; }

  const char* name_;
  Optimizer& optimizer_;
  int64_t epoch_ = 0;

 private:
  std::vector<double> base_lrs_;
};

struct StepLROptions {
  int64_t step_size = 1;
  double gamma = 0.1;
};
// Times gamma every step_size epochs.
class StepLR final : public Schedule {
 public:
  StepLR(Optimizer& optimizer, const StepLROptions& options);

 private:
  double next_lr(size_t group, double now) override;
  StepLROptions options_;
};

struct MultiStepLROptions {
  std::vector<int64_t> milestones = {};
  double gamma = 0.1;
};
// Times gamma at each milestone (twice where it is listed twice).
class MultiStepLR final : public Schedule {
 public:
  MultiStepLR(Optimizer& optimizer, const MultiStepLROptions& options);

 private:
  double next_lr(size_t group, double now) override;
  MultiStepLROptions options_;
};

struct ExponentialLROptions {
  double gamma = 0.9;
};
// Times gamma every epoch.
class ExponentialLR final : public Schedule {
 public:
  ExponentialLR(Optimizer& optimizer, const ExponentialLROptions& options);

 private:
  double next_lr(size_t group, double now) override;
  ExponentialLROptions options_;
};

struct CosineAnnealingLROptions {
  int64_t t_max = 0;
  double eta_min = 0;
};
// Half a cosine from the base rate to eta_min in t_max epochs, and on (Loshchilov & Hutter 2017).
class CosineAnnealingLR final : public Schedule {
 public:
  CosineAnnealingLR(Optimizer& optimizer, const CosineAnnealingLROptions& options);

 private:
  double next_lr(size_t group, double now) override;
  CosineAnnealingLROptions options_;
};

struct LinearLROptions {
  double start_factor = 1.0 / 3;
  double end_factor = 1;
  int64_t total_iters = 5;
};
// The base rate times a factor that goes straight from start to end: linear warm-up.
class LinearLR final : public Schedule {
 public:
  LinearLR(Optimizer& optimizer, const LinearLROptions& options);

 private:
  double next_lr(size_t group, double now) override;
  LinearLROptions options_;
};

enum class Anneal { cos, linear };
struct OneCycleLROptions {
  double max_lr = 0;
  int64_t total_steps = 0;
  double pct_start = 0.3;
  Anneal anneal_strategy = Anneal::cos;
  // Momentum (Adam's first beta) goes the other way.
  bool cycle_momentum = true;
  double base_momentum = 0.85;
  double max_momentum = 0.95;
  double div_factor = 25;         // first rate = max_lr / div_factor
  double final_div_factor = 1e4;  // last rate = first rate / final_div_factor
  bool three_phase = false;
};
// Up to max_lr and down to almost nothing (Smith & Topin 2018); step it every batch.
class OneCycleLR final : public Schedule {
 public:
  OneCycleLR(Optimizer& optimizer, const OneCycleLROptions& options);

 private:
  struct Phase {
    double end;  // step it ends at
    double from_lr, to_lr;
    double from_momentum, to_momentum;
  };
  double next_lr(size_t group, double now) override;
  void apply() override;
  double at_epoch(bool momentum) const;
  OneCycleLROptions options_;
  std::vector<Phase> phases_;
};

// base rate times fn(epoch).
class LambdaLR final : public Schedule {
 public:
  LambdaLR(Optimizer& optimizer, std::function<double(int64_t epoch)> fn);

 private:
  double next_lr(size_t group, double now) override;
  std::function<double(int64_t)> fn_;
};

// Runs one schedule after another: number i + 1 takes over, from its beginning, at milestones[i].
class SequentialLR final : public Schedule {
 public:
  SequentialLR(Optimizer& optimizer, std::vector<std::unique_ptr<Schedule>> schedules,
               std::vector<int64_t> milestones);
  State state_dict() const override;
  void load_state_dict(const State& state) override;
  void restart() override;

 private:
  void apply() override;
  double next_lr(size_t group, double now) override;
  std::vector<std::unique_ptr<Schedule>> schedules_;
  std::vector<int64_t> milestones_;
};

enum class PlateauMode { min, max };
enum class ThresholdMode { rel, abs };
struct ReduceLROnPlateauOptions {
  PlateauMode mode = PlateauMode::min;
  double factor = 0.1;
  int64_t patience = 10;
  double threshold = 1e-4;
  ThresholdMode threshold_mode = ThresholdMode::rel;
  int64_t cooldown = 0;
  double min_lr = 0;
  double eps = 1e-8;  // smaller changes of the rate are not made
};
// Times factor when the metric has not got better for more than `patience` steps.
class ReduceLROnPlateau final : public Schedule {
 public:
  ReduceLROnPlateau(Optimizer& optimizer, const ReduceLROnPlateauOptions& options = {});
  using Schedule::step;
  void step(double metric) override;
  bool needs_metric() const override { return true; }
  State state_dict() const override;
  void load_state_dict(const State& state) override;
  void restart() override;

 private:
  double next_lr(size_t group, double now) override;
  void apply() override {}
  bool is_better(double metric) const;
  ReduceLROnPlateauOptions options_;
  double best_;
  int64_t bad_ = 0;
  int64_t cooling_ = 0;
};

// The same, made for an optimizer: optim::step_lr(*optimizer, {.step_size = 30}).
std::unique_ptr<Schedule> step_lr(Optimizer& optimizer, const StepLROptions& options);
std::unique_ptr<Schedule> multi_step_lr(Optimizer& optimizer, const MultiStepLROptions& options);
std::unique_ptr<Schedule> exponential_lr(Optimizer& optimizer, const ExponentialLROptions& options);
std::unique_ptr<Schedule> cosine_annealing_lr(Optimizer& optimizer,
                                              const CosineAnnealingLROptions& options);
std::unique_ptr<Schedule> linear_lr(Optimizer& optimizer, const LinearLROptions& options = {});
std::unique_ptr<Schedule> one_cycle_lr(Optimizer& optimizer, const OneCycleLROptions& options);
std::unique_ptr<Schedule> lambda_lr(Optimizer& optimizer, std::function<double(int64_t)> fn);
std::unique_ptr<Schedule> reduce_lr_on_plateau(Optimizer& optimizer,
                                               const ReduceLROnPlateauOptions& options = {});
std::unique_ptr<Schedule> sequential_lr(Optimizer& optimizer,
                                        std::vector<std::unique_ptr<Schedule>> schedules,
                                        std::vector<int64_t> milestones);

}  // namespace cairn::optim
