// ModelCheckpoint: writes checkpoints during fit and keeps the best of them.
// Invariant: an older file is deleted only after the newer one is complete on disk; nothing is
// saved outside of fit, during the sanity check, or twice at the same optimizer step.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "cairn/trainer/callback.h"
#include "cairn/trainer/metrics.h"

namespace cairn::trainer {

// false, true (a file last.ckpt at every save), or "link" (a symbolic link to the newest file; a
// copy where the file system refuses links).
class SaveLast {
 public:
  SaveLast(bool on) : on_(on) {}
  SaveLast(const char* text) : SaveLast(std::string(text)) {}
  SaveLast(const std::string& text);
  bool on() const { return on_; }
  bool link() const { return link_; }

 private:
  bool on_ = false;
  bool link_ = false;
};

struct ModelCheckpointOptions {
  std::string dirpath =
      {};  // empty: `checkpoints` in the logger's folder, else in default_root_dir
  // {name} and {name:format} stand for epoch, step or a metric of callback_metrics; formats are
  // those of printf without the %, such as 02d or .3f. A / in a metric's name makes a folder.
  std::string filename = "{epoch}-{step}";
  std::string monitor = {};  // the metric that ranks the files; empty: the newest is the best
  std::string mode = "min";  // "min" or "max"
  int64_t save_top_k = 1;    // how many to keep; -1: all, 0: none. Without monitor: -1, 0 or 1
  SaveLast save_last = false;
  bool save_weights_only = false;
  // At most one of the three; with none of them, at the end of every epoch. 0 switches one off.
  std::optional<int64_t> every_n_train_steps = {};
  std::optional<int64_t> every_n_epochs = {};
  std::optional<double> train_time_interval_s = {};
  // Absent: true when nothing is validated, or once an epoch; else files are made after validation.
  std::optional<bool> save_on_train_epoch_end = {};
  bool auto_insert_metric_name = true;  // {loss} becomes loss=0.5
  bool enable_version_counter = true;   // a taken name gets -v1, -v2, …; false: overwrites
  bool save_on_exception = false;       // exception.ckpt when a fit fails or is interrupted
};

class ModelCheckpoint : public Callback {
 public:
  // Throws Error for options that contradict each other.
  explicit ModelCheckpoint(ModelCheckpointOptions options = {});

  const ModelCheckpointOptions& options() const { return options_; }
  const std::string& dirpath() const { return dirpath_; }
  const std::string& best_model_path() const { return best_model_path_; }
  std::optional<double> best_model_score() const { return best_model_score_; }
  std::optional<double> current_score() const { return current_score_; }
  const std::string& last_model_path() const { return last_model_path_; }
  // Path to score of the files kept.
  const std::map<std::string, double>& best_k_models() const { return best_k_models_; }
  // The newest last*.ckpt of dirpath; empty: none.
  std::string newest_last() const;
  // The file name for these values, without dirpath and version.
  std::string format_name(int64_t epoch, int64_t step, const Metrics& metrics) const;

  void setup(Trainer& trainer, TrainingModule& model, Stage stage) override;
  void on_train_start(Trainer& trainer, TrainingModule& model) override;
  void on_train_batch_end(Trainer& trainer, TrainingModule& model, const Tensor& loss,
                          const Batch& batch, int64_t batch_idx) override;
  void on_validation_end(Trainer& trainer, TrainingModule& model) override;
  void on_train_epoch_end(Trainer& trainer, TrainingModule& model) override;
  void on_exception(Trainer& trainer, TrainingModule& model, const std::exception& error) override;
  State state_dict() const override;
  void load_state_dict(const State& state) override;
  std::string state_key() const override;
  bool is_checkpoint() const override { return true; }
  bool needs_batch(const Trainer& trainer, int64_t batch_idx) const override;

 private:
  bool may_save(const Trainer& trainer) const;
  bool saves_on_epoch_end(const Trainer& trainer) const;
  bool epoch_is_due(const Trainer& trainer) const;
  void save(Trainer& trainer);
  void save_newest(Trainer& trainer, const Metrics& metrics);
  void save_ranked(Trainer& trainer, const Metrics& metrics);
  void save_last(Trainer& trainer);
  // Writes the file, which already counts in the state it contains; undoes `state` on an error.
  void write(Trainer& trainer, const std::string& path, const State& before);
  bool link(Trainer& trainer, const std::string& path) const;
  void remove(const Trainer& trainer, const std::string& path) const;
  bool better(double a, double b) const;
  void rank();
  std::string new_path(Trainer& trainer, const std::string& name,
                       const std::string& may_replace) const;

  ModelCheckpointOptions options_;
  int64_t every_n_train_steps_ = 0;
  int64_t every_n_epochs_ = 0;
  std::string dirpath_;

  std::string best_model_path_;
  std::optional<double> best_model_score_;
  std::optional<double> current_score_;
  std::map<std::string, double> best_k_models_;
  std::string kth_best_model_path_;
  std::string last_model_path_;
  std::string newest_path_;  // of the files in this run that are not last.ckpt
  int64_t last_saved_step_ = -1;
  bool deferred_ = false;
  double last_time_s_ = 0;  // progress.seconds of the newest file
  std::string warning_;     // from load_state_dict, told at the start of training
};

}  // namespace cairn::trainer
