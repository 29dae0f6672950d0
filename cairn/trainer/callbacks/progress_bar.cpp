// ProgressBar: one refreshed line on a terminal, plain lines at a bounded rate elsewhere.
#include "cairn/trainer/callbacks/progress_bar.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "cairn/trainer/trainer.h"

namespace cairn::trainer {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <class... Args>
std::string formatted(const char* format, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, format, args...);
  return text;
}

// 0:07, 12:34, 1:02:03
std::string clock_text(double seconds) {
  if (!(seconds >= 0) || seconds > 1e8) return "?";
  const auto s = static_cast<long>(seconds + 0.5);
  if (s < 3600) return formatted("%ld:%02ld", s / 60, s % 60);
  return formatted("%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace

ProgressBar::ProgressBar(ProgressBarOptions options) : options_(options) {
  check(options_.stream != nullptr, "ProgressBar: stream must be open, got none");
  check(options_.refresh_seconds >= 0 && options_.line_seconds >= 0,
        "ProgressBar: refresh_seconds and line_seconds must be at least 0");
  terminal_ = options_.terminal.value_or(::isatty(::fileno(options_.stream)) == 1);
}

bool ProgressBar::due() {
  if (seconds_since(last_shown_) < (terminal_ ? options_.refresh_seconds : options_.line_seconds))
    return false;
  last_shown_ = Clock::now();
  return true;
}

std::string ProgressBar::epoch_label(const Trainer& trainer) const {
  const auto limit = trainer.max_epochs();
  return limit ? cat("epoch ", trainer.current_epoch() + 1, "/", *limit)
               : cat("epoch ", trainer.current_epoch() + 1);
}

std::string ProgressBar::speed(const Meter& meter) const {
  const double elapsed = seconds_since(meter.start) - (&meter == &train_ ? paused_s_ : 0);
  if (meter.batches == 0 || elapsed <= 0) return "";
  const double rate = static_cast<double>(meter.batches) / elapsed;
  std::string out = rate >= 1 ? formatted("  %.1f it/s", rate) : formatted("  %.2f s/it", 1 / rate);
  if (meter.samples > 0)
    out += formatted("  %.0f samples/s", static_cast<double>(meter.samples) / elapsed);
  return out;
}

// Of the whole fit where it has an end, else of the epoch.
std::string ProgressBar::time_left(const Trainer& trainer, int64_t done) const {
  const double elapsed = seconds_since(train_.start) - paused_s_;
  if (train_.batches == 0) return "";
  const double per_batch = elapsed / static_cast<double>(train_.batches);
  double batches = static_cast<double>(trainer.num_training_batches() - done);
  double validations = trainer.validates_once_per_epoch() ? 1 : 0;
  if (const auto limit = trainer.max_epochs()) {
    const auto epochs = static_cast<double>(*limit - trainer.current_epoch() - 1);
    batches += epochs * static_cast<double>(trainer.num_training_batches());
    validations *= epochs + 1;
  }
  if (trainer.options().max_steps >= 0)
    batches = std::min(batches,
                       static_cast<double>((trainer.options().max_steps - trainer.global_step()) *
                                           trainer.options().accumulate_grad_batches));
  return cat("  left ", clock_text(batches * per_batch + validations * validation_s_));
}

std::string ProgressBar::metrics_text(const Trainer& trainer) const {
  std::string out;
  for (const auto& [name, value] : trainer.progress_bar_metrics())
    out += cat("  ", name, " ", formatted("%.4g", value));
  return out;
}

std::string ProgressBar::bar_line(const std::string& label, int64_t done, int64_t total,
                                  const std::string& tail) const {
  constexpr int64_t kWidth = 20;
  if (!terminal_) return cat(label, "  ", done, "/", total, tail);
  const int64_t filled = total > 0 ? done * kWidth / total : 0;
  return cat(label, " [", std::string(static_cast<size_t>(filled), '='),
             std::string(static_cast<size_t>(kWidth - filled), ' '), "] ", done, "/", total, tail);
}

void ProgressBar::refresh(const std::string& text) {
  if (!terminal_) {
    print(text);
    return;
  }
  // A line that wraps could not be taken back with \r.
  winsize window{};
  const bool known = ::ioctl(::fileno(options_.stream), TIOCGWINSZ, &window) == 0;
  const std::string line = known && window.ws_col > 1 ? text.substr(0, window.ws_col - 1u) : text;
  // Blanks wipe out what a longer line before left standing.
  const std::string wipe(shown_ > line.size() ? shown_ - line.size() : 0, ' ');
  std::fprintf(options_.stream, "\r%s%s", line.c_str(), wipe.c_str());
  std::fflush(options_.stream);
  shown_ = line.size();
}

void ProgressBar::print(const std::string& line) {
  if (terminal_) refresh(line);
  std::fprintf(options_.stream, "%s\n", terminal_ ? "" : line.c_str());
  std::fflush(options_.stream);
  shown_ = 0;
}

void ProgressBar::begin_epoch(Trainer& trainer) {
  train_ = {.start = Clock::now(), .batches = 0, .samples = 0};
  paused_s_ = 0;
  last_shown_ = Clock::now();
  epoch_open_ = true;
  if (!terminal_)
    print(cat(epoch_label(trainer), "  ", trainer.num_training_batches(), " batches"));
}

void ProgressBar::on_sanity_check_start(Trainer& trainer, TrainingModule&) {
  start_evaluation(trainer, "sanity check");
}
void ProgressBar::on_sanity_check_end(Trainer&, TrainingModule&) { end_evaluation(); }

void ProgressBar::on_train_start(Trainer& trainer, TrainingModule&) {
  epoch_open_ = false;
  validation_s_ = 0;
  if (trainer.progress().batch > 0 && !trainer.progress().epoch_ended) begin_epoch(trainer);
}

void ProgressBar::on_train_epoch_start(Trainer& trainer, TrainingModule&) { begin_epoch(trainer); }

void ProgressBar::on_train_batch_end(Trainer& trainer, TrainingModule&, const Tensor&,
                                     const Batch& batch, int64_t batch_idx) {
  ++train_.batches;
  train_.samples += batch.size() * trainer.world_size();
  if (due()) show_training(trainer, batch_idx + 1);
}

void ProgressBar::show_training(Trainer& trainer, int64_t done) {
  refresh(bar_line(epoch_label(trainer), done, trainer.num_training_batches(),
                   cat(metrics_text(trainer), speed(train_), time_left(trainer, done))));
}

void ProgressBar::on_train_epoch_end(Trainer& trainer, TrainingModule&) {
  if (!epoch_open_) return;
  epoch_open_ = false;
  print(bar_line(epoch_label(trainer), trainer.progress().batch, trainer.num_training_batches(),
                 cat(metrics_text(trainer), speed(train_), "  took ",
                     clock_text(seconds_since(train_.start)))));
}

void ProgressBar::start_evaluation(Trainer& trainer, const char* what) {
  evaluation_ = {.start = Clock::now(), .batches = 0, .samples = 0};
  if (!epoch_open_) last_shown_ = evaluation_.start;  // plain lines come only when it takes long
  if (!terminal_ || trainer.sanity_checking()) return;
  refresh(bar_line(what, 0, trainer.num_evaluation_batches(), ""));
}

void ProgressBar::count_evaluation(Trainer& trainer, const char* what, const Batch& batch,
                                   int64_t batch_idx) {
  ++evaluation_.batches;
  evaluation_.samples += batch.size() * trainer.world_size();
  if (due())
    refresh(bar_line(what, batch_idx + 1, trainer.num_evaluation_batches(), speed(evaluation_)));
}

void ProgressBar::end_evaluation() {
  if (terminal_ && shown_ > 0) refresh("");
}

void ProgressBar::on_validation_start(Trainer& trainer, TrainingModule&) {
  start_evaluation(trainer, "validation");
}
void ProgressBar::on_validation_batch_end(Trainer& trainer, TrainingModule&, const Batch& batch,
                                          int64_t batch_idx) {
  count_evaluation(trainer, trainer.sanity_checking() ? "sanity check" : "validation", batch,
                   batch_idx);
}
void ProgressBar::on_validation_end(Trainer& trainer, TrainingModule&) {
  validation_s_ = seconds_since(evaluation_.start);
  if (epoch_open_) paused_s_ += validation_s_;
  end_evaluation();
  if (trainer.stage() == Stage::validate) print(cat("validation done", metrics_text(trainer)));
}

void ProgressBar::on_test_start(Trainer& trainer, TrainingModule&) {
  start_evaluation(trainer, "test");
}
void ProgressBar::on_test_batch_end(Trainer& trainer, TrainingModule&, const Batch& batch,
                                    int64_t batch_idx) {
  count_evaluation(trainer, "test", batch, batch_idx);
}
void ProgressBar::on_test_end(Trainer& trainer, TrainingModule&) {
  print(bar_line("test", evaluation_.batches, trainer.num_evaluation_batches(),
                 cat(metrics_text(trainer), speed(evaluation_))));
}

void ProgressBar::on_predict_start(Trainer& trainer, TrainingModule&) {
  start_evaluation(trainer, "predict");
}
void ProgressBar::on_predict_batch_end(Trainer& trainer, TrainingModule&, const Tensor&,
                                       const Batch& batch, int64_t batch_idx) {
  count_evaluation(trainer, "predict", batch, batch_idx);
}
void ProgressBar::on_predict_end(Trainer& trainer, TrainingModule&) {
  print(bar_line("predict", evaluation_.batches, trainer.num_evaluation_batches(),
                 speed(evaluation_)));
}

void ProgressBar::on_exception(Trainer&, TrainingModule&, const std::exception&) {
  // The error itself is the program's to tell; only the running line is closed.
  if (terminal_ && shown_ > 0) std::fputc('\n', options_.stream);
  shown_ = 0;
}

void ProgressBar::on_warning(Trainer&, const std::string& text) {
  if (terminal_ && shown_ > 0) refresh("");
  std::fprintf(options_.stream, "%swarning: %s\n", terminal_ ? "\r" : "", text.c_str());
  std::fflush(options_.stream);
}

}  // namespace cairn::trainer
