// TrainerOptions: what a run may be told, with Lightning's names and defaults.
// Invariant: every option does something; check_options throws for every value that cannot mean
// anything, before any work is done.
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cairn/trainer/callback.h"
#include "cairn/trainer/loggers/logger.h"
#include "cairn/trainer/strategy.h"

namespace cairn::trainer {

// A number of batches (integer) or a share of them (floating): 1 is one batch, 1.0 is all.
class Limit {
 public:
  template <std::integral I>
  Limit(I count) : is_count_(true), count_(static_cast<int64_t>(count)) {}
  template <std::floating_point F>
  Limit(F share) : share_(static_cast<double>(share)) {}

  bool is_count() const { return is_count_; }
  int64_t count() const { return count_; }
  double share() const { return share_; }
  bool is_zero() const { return is_count_ ? count_ == 0 : share_ == 0; }
  // Of `size` batches.
  int64_t of(int64_t size) const;

 private:
  bool is_count_ = false;
  int64_t count_ = 0;
  double share_ = 1;
};
void append_text(std::string& out, const Limit& limit);

// "auto" (as many as whoever started this process says, else 1), a count, or a count as text.
class Devices {
 public:
  Devices(const char* text) : text_(text) {}
  Devices(std::string text) : text_(std::move(text)) {}
  Devices(int count) : text_(std::to_string(count)) {}
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// "auto", the name of a strategy, or a strategy.
class StrategyChoice {
 public:
  StrategyChoice(const char* name) : name_(name) {}
  StrategyChoice(std::string name) : name_(std::move(name)) {}
  template <class T>
  requires std::convertible_to<T, Held<Strategy>> StrategyChoice(T strategy)
      : strategy_(std::move(strategy)) {}
  const std::string& name() const { return name_; }
  const Held<Strategy>& strategy() const { return strategy_; }

 private:
  std::string name_;
  Held<Strategy> strategy_;
};

// true (a CSVLogger below default_root_dir), false, a logger, or several.
class LoggerChoice {
 public:
  LoggerChoice(bool enabled) : automatic_(enabled) {}
  template <class T>
  requires std::convertible_to<T, Held<Logger>> LoggerChoice(T logger)
      : loggers_{Held<Logger>(std::move(logger))} {}
  LoggerChoice(std::vector<Held<Logger>> loggers) : loggers_(std::move(loggers)) {}
  bool automatic() const { return automatic_; }
  const std::vector<Held<Logger>>& loggers() const { return loggers_; }

 private:
  bool automatic_ = false;
  std::vector<Held<Logger>> loggers_;
};

// A duration, or text "days:hours:minutes:seconds".
class TimeLimit {
 public:
  template <class Rep, class Period>
  TimeLimit(std::chrono::duration<Rep, Period> d)
      : seconds_(std::chrono::duration<double>(d).count()) {}
  TimeLimit(const char* text) : TimeLimit(std::string(text)) {}
  TimeLimit(const std::string& text);
  double seconds() const { return seconds_; }

 private:
  double seconds_ = 0;
};

struct TrainerOptions {
  // Neither max_epochs nor max_steps: 1000 epochs. -1: no limit. max_steps counts optimizer steps
  // and may end a run inside an epoch. min_* only hold back an early stop.
  std::optional<int64_t> max_epochs = {};
  std::optional<int64_t> min_epochs = {};
  int64_t max_steps = -1;
  std::optional<int64_t> min_steps = {};
  // Looked at after every batch; time of earlier fits of a resumed run counts.
  std::optional<TimeLimit> max_time = {};

  // Processes on this host, each with one device, and hosts. They must be what this process's
  // launcher started (`cairn launch`, torchrun, srun, mpirun; see dist/environment.h): the trainer
  // starts none, since the running program cannot be copied; see launch_ranks().
  Devices devices = "auto";
  std::optional<int> num_nodes = {};  // absent: as the launcher says
  std::string accelerator = "auto";   // "auto" (the GPU where there is one), "cpu", "gpu" ("cuda")
  // "auto" ("ddp" for several processes, else "single_device"), "ddp",
  // "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", or a Strategy.
  // "single_device" in one process of several evaluates, but a fit is an Error. With several
  // processes a fit compares what must be the same: options that decide its steps, the optimizer,
  // and learning rates as it goes; what differs is an Error on all that names it.
  StrategyChoice strategy = "auto";
  // With several processes, loaders without a sampler of their own give each process its share: a
  // DistributedSampler, shuffled where the loader was. batch_size is that of one process. Where the
  // samples do not divide by the processes some are seen twice, in evaluations too.
  bool use_distributed_sampler = true;
  // With several processes: batch normalisation over the batches of all of them.
  bool sync_batchnorm = false;
  // "32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"; see precision.h.
  std::string precision = "32-true";

  std::vector<Held<Callback>> callbacks = {};
  LoggerChoice logger = true;
  std::string default_root_dir = {};  // empty: the working directory
  // Adds a ModelCheckpoint when no checkpoint callback is given; false with one given is an error.
  bool enable_checkpointing = true;
  // Adds a ProgressBar when none is given; false with one given is an error.
  bool enable_progress_bar = true;

  // 0 switches the stage off; its loader is then never asked for.
  Limit limit_train_batches = 1.0;
  Limit limit_val_batches = 1.0;
  Limit limit_test_batches = 1.0;
  Limit limit_predict_batches = 1.0;
  // Every so many batches (integer), or after each such share of an epoch (at least one batch).
  Limit val_check_interval = 1.0;
  // Absent: val_check_interval must be an integer and counts across epochs.
  std::optional<int64_t> check_val_every_n_epoch = 1;
  int64_t num_sanity_val_steps = 2;  // validation batches before training; -1: all
  int64_t log_every_n_steps = 50;    // step values reach the loggers at every n-th step; 0: never

  // The loss is divided by it; the optimizer steps at every n-th batch and at an epoch's last one.
  int64_t accumulate_grad_batches = 1;
  std::optional<double> gradient_clip_val = {};
  std::string gradient_clip_algorithm = "norm";  // "norm", "value"

  // On a GPU. "auto": a dataset that lies in memory (images behind a byte table, tensors) is kept
  // on the device, if it takes at most a quarter of it, and batches are made there; "off": never.
  std::string resident_data = "auto";
  // On a GPU. "auto": after a few steps whole steps are captured and launched as one, up to 16 at
  // once where nothing looks at the steps in between; where that cannot be, warnings() has the
  // reason. What training_step does on the host (counting, printing) is then not repeated. "off":
  // step by step. The numbers are the same bit for bit.
  std::string capture_steps = "auto";

  // "simple": each run is recorded, kernel by kernel and hook by hook; see Trainer::profile().
  std::string profiler = {};
};

// Throws Error `Trainer: option must be …, got …`.
void check_options(const TrainerOptions& options);

// The strategy that accelerator, devices and strategy together ask for.
Held<Strategy> choose_strategy(const TrainerOptions& options);

}  // namespace cairn::trainer
