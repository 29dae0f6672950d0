// Trainer: runs a TrainingModule over data. It owns the loop; the strategy owns where and how, the
// callbacks what happens around it.
// Invariant: `Progress` is the only loop state, so a run resumed from any checkpoint does, bit for
// bit, what the undisturbed run would have done.
//
//   trainer::Trainer trainer({.max_epochs = 10});
//   trainer.fit(model, train_loader, val_loader);
//   double accuracy = trainer.test(model, test_loader).at("test_accuracy");
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cairn/data/data_loader.h"
#include "cairn/optim/config.h"
#include "cairn/tensor/profiler.h"
#include "cairn/trainer/callback.h"
#include "cairn/trainer/checkpoint.h"
#include "cairn/trainer/data_module.h"
#include "cairn/trainer/interrupt.h"
#include "cairn/trainer/loggers/logger.h"
#include "cairn/trainer/metrics.h"
#include "cairn/trainer/module.h"
#include "cairn/trainer/options.h"
#include "cairn/trainer/precision.h"
#include "cairn/trainer/progress.h"
#include "cairn/trainer/resident.h"
#include "cairn/trainer/stage.h"
#include "cairn/trainer/step_graph.h"
#include "cairn/trainer/strategy.h"

namespace cairn::trainer {

class ModelCheckpoint;

struct RunOptions {
  // A file, "best" (of the ModelCheckpoint of this trainer) or "last" (the newest last*.ckpt of its
  // folder; fit starts afresh, with a warning, where there is none). Empty: none.
  std::string ckpt_path = {};
};

class Trainer {
 public:
  // Throws Error for options that cannot mean anything.
  explicit Trainer(TrainerOptions options = {});
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // Trains, from step 0 or, with ckpt_path, from where the file was made. The loaders and the model
  // must live as long as the call, and differ. Errors reach on_exception and are thrown again;
  // Ctrl-C throws Interrupted after the running batch.
  void fit(TrainingModule& model, data::DataLoader& train, const RunOptions& options = {});
  void fit(TrainingModule& model, data::DataLoader& train, data::DataLoader& val,
           const RunOptions& options = {});
  void fit(TrainingModule& model, DataModule& data, const RunOptions& options = {});
  // Each returns the epoch's metrics. ckpt_path loads weights first.
  Metrics validate(TrainingModule& model, data::DataLoader& loader, const RunOptions& options = {});
  Metrics validate(TrainingModule& model, DataModule& data, const RunOptions& options = {});
  Metrics test(TrainingModule& model, data::DataLoader& loader, const RunOptions& options = {});
  Metrics test(TrainingModule& model, DataModule& data, const RunOptions& options = {});
  // One tensor per batch.
  std::vector<Tensor> predict(TrainingModule& model, data::DataLoader& loader,
                              const RunOptions& options = {});
  std::vector<Tensor> predict(TrainingModule& model, DataModule& data,
                              const RunOptions& options = {});

  // --- for callbacks and after a run -------------------------------------------------------------
  const TrainerOptions& options() const { return options_; }
  Stage stage() const { return stage_; }
  bool sanity_checking() const { return stage_ == Stage::sanity; }
  const Progress& progress() const { return progress_; }
  int64_t current_epoch() const { return progress_.epoch; }
  int64_t global_step() const { return progress_.global_step; }
  // Batches per epoch, limits applied. Validation: of the loop inside fit; of the process that has
  // most. Evaluation: of the running one (validation, test, predict), of this process.
  int64_t num_training_batches() const { return train_batches_; }
  int64_t num_val_batches() const { return val_batches_.most; }
  int64_t num_evaluation_batches() const { return evaluation_batches_; }
  // Absent: endless.
  std::optional<int64_t> max_epochs() const { return max_epochs_; }
  // Whether a validation comes after the batch that just ended.
  bool validation_due() const { return validation_due(progress_); }
  // global_step() after training batch `batch_idx` of the running epoch, where no batch is skipped.
  int64_t step_after(int64_t batch_idx) const;
  // Whether a validation has run inside this fit (the sanity check does not count).
  bool has_validated() const { return progress_.validated_at > 0; }
  // Whether the fit will validate exactly once an epoch, at its end.
  bool validates_once_per_epoch() const;

  // Ends the fit after the running batch (not before min_epochs and min_steps). `reason` is one
  // sentence for people.
  void stop(std::string reason);
  // With several processes: whether one of them asked, as all know since the last batch.
  bool stop_requested() const { return world_size() > 1 ? agreed_.stop : stop_requested_; }
  const std::string& stop_reason() const { return stop_reason_; }

  Metrics callback_metrics() const { return metrics_.callback_metrics(); }
  // Reads one of them.
  std::optional<double> callback_metric(const std::string& name) const {
    return metrics_.callback_metric(name);
  }
  const Metrics& logged_metrics() const { return metrics_.logged_metrics(); }
  Metrics progress_bar_metrics() const { return metrics_.progress_bar_metrics(); }
  // Gives metrics to the loggers now, beside those of log(). `step` counts optimizer steps from 0.
  void log_metrics(Metrics metrics, int64_t step);

  // The state of the running fit (or of the last one, while its model lives), to be saved; the
  // tensors are the model's and the optimizer's own. With several processes: as this one has it.
  Checkpoint make_checkpoint(bool weights_only = false);
  // All processes call it. The file also has what each of them has for itself: its part of the
  // epoch's metrics, its random numbers and, inside an accumulation window, its gradients.
  void save_checkpoint(const std::string& path, bool weights_only = false);

  Strategy& strategy() const { return *strategy_; }
  // Among the processes that train together. Rank 0 alone writes files, logs and shows progress.
  int global_rank() const { return strategy_->rank(); }
  int world_size() const { return strategy_->world_size(); }
  bool is_global_zero() const { return strategy_->is_global_zero(); }
  const Precision& precision() const { return precision_; }
  // Throw Error outside of a fit.
  optim::Optimizer& optimizer() const;
  const OptimizerConfig& optimizer_config() const;
  const std::vector<Held<Callback>>& callbacks() const { return callbacks_; }
  // The first ModelCheckpoint, or null.
  ModelCheckpoint* checkpoint_callback() const;
  const std::vector<Held<Logger>>& loggers() const { return loggers_; }
  // The first logger's folder, else default_root_dir; that of rank 0 on all.
  std::string log_dir() const;

  // The recording of the last run, stopped at its end; null without the option `profiler`.
  const profiler::Profile* profile() const { return profile_.get(); }

  // Says something that is no error, once per run: kept here and told to the callbacks.
  void warn(const std::string& text);
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  struct Loaders {
    data::DataLoader* train = nullptr;
    data::DataLoader* evaluation = nullptr;  // of fit: the validation loader
    DataModule* module = nullptr;
  };
  // What all processes know of each other's wishes. With one process: what it wants itself.
  struct Agreed {
    bool stop = false, out_of_time = false, interrupted = false;
    bool start_needed = false;  // of the next batch, see start_is_needed()
  };
  // Of an evaluation: how many this process has, and the fewest and the most of all.
  struct Batches {
    int64_t own = 0, fewest = 0, most = 0;
  };
  struct Evaluation;  // the hooks of one kind of evaluation
  // A callback with hooks in or around a step.
  struct Watcher {
    const Callback* callback;
    bool start, inside, end;
  };

  // trainer.cpp: a run from setup to teardown
  void run(Stage stage, TrainingModule& model, const Loaders& loaders, const RunOptions& options);
  void run_stage(const RunOptions& options);
  void begin(Stage stage, TrainingModule& model, const Loaders& loaders);
  void arrange_callbacks();
  void set_up();
  void tear_down();
  void handle_exception(const std::exception& error, std::string_view status);
  void clean_up(std::string_view status);
  void emit(Metrics metrics);
  void check_interrupt() const;
  void save_loggers() const;

  // across_ranks.cpp: what several processes must do alike
  void start_ranks();
  void prepare_data();
  void agree();
  bool out_of_time() const;
  Batches count_batches(int64_t own);
  void check_equal_settings();
  void check_equal_optimizers();
  void check_equal_batches();
  data::DataLoader* share(data::DataLoader* loader, bool training);
  void warn_of_local_metrics(bool evaluating);
  void note_stragglers();

  // fit_loop.cpp
  void run_fit(const RunOptions& options);
  void ask_train_loader();
  void ask_val_loader();
  void sanity_check();
  bool fits_nothing() const;
  bool done() const;
  void run_epoch();
  bool run_batches();  // whether the epoch is complete
  bool validation_due(const Progress& at) const;
  bool closes_window(int64_t batch_idx) const;
  EpochControl train_batch(const Batch* loaded);
  EpochControl start_batch(const Batch& batch);
  Tensor forward_backward(const Batch& batch, int64_t batch_idx, bool closes_window);
  void step_optimizer();
  void count_step();
  void end_batch(const Tensor& loss, const Batch& batch);
  void step_schedule(optim::Interval interval, int64_t count);
  void count_time();
  void log_step();
  void validate_in_fit();
  void end_epoch(bool complete);

  // captured_fit.cpp: data and whole steps on a GPU
  void prepare_captures();
  void keep_data_on_device();
  std::string why_not_captured() const;
  void stop_captures(const std::string& reason);
  bool start_is_needed() const;
  bool end_is_needed(int64_t batch_idx) const;
  int64_t steps_at_once(bool makes_batch) const;
  int64_t launch_size(const StepKind& kind, int64_t most);
  StepKind kind_of_next(const Batch& batch) const;
  StepGraph* next_graph(const Batch& batch);
  StepGraph* capture_steps(const StepKind& kind, int64_t count, const Batch& batch);
  void launch(StepGraph& graph, const Batch& batch);
  void look_at_model();
  void note_writes();

  // evaluate.cpp
  void run_evaluation(const RunOptions& options);
  int64_t limit_batches(const Limit& limit, int64_t size) const;
  void evaluate_stage(data::DataLoader* loader, const Batches& batches);
  void evaluate(const Evaluation& kind, data::DataLoader* loader, const Batches& batches);
  void evaluate_batches(const Evaluation& kind, data::DataLoader& loader, int64_t batches);
  void evaluate_batch(const Evaluation& kind, Batch batch, int64_t batch_idx);
  Batch transfer(Batch batch);

  // state.cpp: checkpoints of a run
  std::string resolve_checkpoint(const std::string& ckpt_path);
  void load_to_resume(const std::string& ckpt_path);
  void restore_modules();
  void restore_training();
  void restore_random_state();
  bool takes_up_loader(const Checkpoint& c) const;
  void gather_ranks(Checkpoint& c);
  void take_own_part(Checkpoint& c);

  // Calls a hook of every callback, then the module's, with log() set to the hook's rule. What is
  // called while a step is captured is not called again at its launches, so callbacks are left out.
  template <class... CbArgs, class R, class... OwnArgs, class... Args>
  R call(const Hook& hook, void (Callback::*of_callback)(Trainer&, TrainingModule&, CbArgs...),
         R (TrainingModule::*of_module)(OwnArgs...), Args&&... args) {
    const profiler::Range range(hook.name);
    enter(hook);
    if (!metrics_.recording())
      for (const auto& c : callbacks_) (c.get()->*of_callback)(*this, *model_, args...);
    if constexpr (std::is_void_v<R>) {
      (model_->*of_module)(args...);
      leave();
    } else {
      R result = (model_->*of_module)(args...);
      leave();
      return result;
    }
  }
  // One function of the module alone.
  template <class R, class... OwnArgs, class... Args>
  R call_own(const Hook& hook, R (TrainingModule::*of_module)(OwnArgs...), Args&&... args) {
    const profiler::Range range(hook.name);
    enter(hook);
    if constexpr (std::is_void_v<R>) {
      (model_->*of_module)(args...);
      leave();
    } else {
      R result = (model_->*of_module)(args...);
      leave();
      return result;
    }
  }
  void enter(const Hook& hook) { metrics_.context.hook = hook; }
  void leave() { metrics_.context.hook = Hook{"", LogRule::never}; }

  TrainerOptions options_;
  Held<Strategy> strategy_;
  Precision precision_;
  std::vector<Held<Logger>> loggers_;
  std::vector<Held<Callback>> given_callbacks_;
  std::optional<int64_t> max_epochs_;

  // of the running (or last) run
  Stage stage_ = Stage::none;
  TrainingModule* model_ = nullptr;
  Loaders loaders_;
  std::vector<Held<Callback>> callbacks_;
  MetricStore metrics_;
  Metrics result_;  // of the last evaluation
  std::unique_ptr<profiler::Profile> profile_;
  std::vector<Tensor> predictions_;
  std::vector<std::string> warnings_;
  std::string log_dir_;  // rank 0's, where there are several
  // Each process's share of a loader, by the loader that was given.
  std::map<const data::DataLoader*, std::unique_ptr<data::DataLoader>> shares_;
  Agreed agreed_;
  int64_t evaluation_batches_ = 0;

  // of a fit
  Progress progress_;
  OptimizerConfig optimizer_;
  int64_t train_batches_ = 0;
  Batches val_batches_;
  int64_t val_every_batches_ = 0;
  bool val_asked_ = false;
  bool stepped_ = false;  // whether the running batch made an optimizer step
  bool stop_requested_ = false;
  std::string stop_reason_;
  std::chrono::steady_clock::time_point clock_;
  // Of a fit on a GPU; else null.
  std::unique_ptr<ResidentData> resident_;
  std::unique_ptr<StepGraphs> steps_;
  std::vector<Watcher> watchers_;
  std::vector<Tensor> written_;   // one tensor of each block of memory that the model has
  bool model_looked_at_ = false;  // since code of the user ran

  std::optional<Checkpoint> resume_;  // what is still to be restored from
  std::string resume_path_;
};

// Makes an M from `args` and loads the weights of a checkpoint into it. M is a TrainingModule; what
// it was made with stands in load_checkpoint(path).hyper_parameters, if it saved it.
template <class M, class... Args>
std::unique_ptr<M> load_from_checkpoint(const std::string& path, Args&&... args) {
  const Checkpoint checkpoint = load_checkpoint(path);
  auto model = std::make_unique<M>(std::forward<Args>(args)...);
  model->on_load_checkpoint(checkpoint);
  load_weights(*model, checkpoint, path);
  return model;
}

}  // namespace cairn::trainer
