// ProgressBar: shows people where a run stands.
// Invariant: it writes to one given stream and reads metrics only when it writes: at most ten times
// a second on a terminal, and about every ten seconds in plain lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

#include "cairn/trainer/callback.h"

namespace cairn::trainer {

struct ProgressBarOptions {
  std::FILE* stream = stderr;         // kept open by the caller
  std::optional<bool> terminal = {};  // absent: asked of the stream
  double refresh_seconds = 0.1;       // on a terminal
  double line_seconds = 10;           // elsewhere
};

class ProgressBar : public Callback {
 public:
  explicit ProgressBar(ProgressBarOptions options = {});

  void on_sanity_check_start(Trainer& trainer, TrainingModule& model) override;
  void on_sanity_check_end(Trainer& trainer, TrainingModule& model) override;
  void on_train_start(Trainer& trainer, TrainingModule& model) override;
  void on_train_epoch_start(Trainer& trainer, TrainingModule& model) override;
  void on_train_batch_end(Trainer& trainer, TrainingModule& model, const Tensor& loss,
                          const Batch& batch, int64_t batch_idx) override;
  void on_validation_start(Trainer& trainer, TrainingModule& model) override;
  void on_validation_batch_end(Trainer& trainer, TrainingModule& model, const Batch& batch,
                               int64_t batch_idx) override;
  void on_validation_end(Trainer& trainer, TrainingModule& model) override;
  void on_train_epoch_end(Trainer& trainer, TrainingModule& model) override;
  void on_test_start(Trainer& trainer, TrainingModule& model) override;
  void on_test_batch_end(Trainer& trainer, TrainingModule& model, const Batch& batch,
                         int64_t batch_idx) override;
  void on_test_end(Trainer& trainer, TrainingModule& model) override;
  void on_predict_start(Trainer& trainer, TrainingModule& model) override;
  void on_predict_batch_end(Trainer& trainer, TrainingModule& model, const Tensor& prediction,
                            const Batch& batch, int64_t batch_idx) override;
  void on_predict_end(Trainer& trainer, TrainingModule& model) override;
  void on_exception(Trainer& trainer, TrainingModule& model, const std::exception& error) override;
  void on_warning(Trainer& trainer, const std::string& text) override;
  bool needs_batch(const Trainer&, int64_t) const override { return false; }  // it only counts them

 private:
  using Clock = std::chrono::steady_clock;

  // Speed of a loop: batches and samples since its start.
  struct Meter {
    Clock::time_point start;
    int64_t batches = 0;
    int64_t samples = 0;  // of all processes, as if each had as many as this one
  };

  bool due();
  void begin_epoch(Trainer& trainer);
  void show_training(Trainer& trainer, int64_t done);
  void start_evaluation(Trainer& trainer, const char* what);
  void count_evaluation(Trainer& trainer, const char* what, const Batch& batch, int64_t batch_idx);
  void end_evaluation();
  std::string epoch_label(const Trainer& trainer) const;
  std::string bar_line(const std::string& label, int64_t done, int64_t total,
                       const std::string& tail) const;
  std::string speed(const Meter& meter) const;
  std::string time_left(const Trainer& trainer, int64_t done) const;
  std::string metrics_text(const Trainer& trainer) const;
  void refresh(const std::string& text);  // terminal: over the running line
  void print(const std::string& line);    // a line of its own

  ProgressBarOptions options_;
  bool terminal_ = false;
  size_t shown_ = 0;  // characters of the running line
  Clock::time_point last_shown_;
  Meter train_;
  Meter evaluation_;
  double paused_s_ = 0;      // time of the epoch spent on validation
  double validation_s_ = 0;  // of the last validation
  bool epoch_open_ = false;
};

}  // namespace cairn::trainer
