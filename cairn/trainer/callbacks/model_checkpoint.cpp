// ModelCheckpoint: when to save, under which name, and what to delete.
#include "cairn/trainer/callbacks/model_checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <vector>

#include "cairn/trainer/trainer.h"

namespace cairn::trainer {
namespace {

namespace fs = std::filesystem;
constexpr const char* kOp = "ModelCheckpoint";
constexpr const char* kExtension = ".ckpt";

// One number as printf would with `format` (no %); only digits, dots, signs and one of d e f g.
std::string format_number(const std::string& format, double value) {
  if (format.empty()) return cat(value);
  const char type = format.back();
  const bool typed = std::isalpha(static_cast<unsigned char>(type)) != 0;
  const std::string flags = typed ? format.substr(0, format.size() - 1) : format;
  check(flags.size() <= 6 && flags.find_first_not_of("0123456789.+- ") == std::string::npos &&
            (!typed || std::string_view("defg").find(type) != std::string_view::npos),
        kOp, ": format must be like 02d or .3f, got ", format);
  char text[512];
  if (type == 'd')
    std::snprintf(text, sizeof text, cat("%", flags, "lld").c_str(),
                  static_cast<long long>(std::isfinite(value) ? value : 0));
  else
    std::snprintf(text, sizeof text, cat("%", flags, typed ? type : 'g').c_str(), value);
  return text;
}

void make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  check(!error && fs::is_directory(path, error) && ::access(path.c_str(), W_OK | X_OK) == 0, kOp,
        ": dirpath must be a folder that can be written, got '", path, "'",
        error ? cat(" (", error.message(), ")") : std::string());
}

}  // namespace

SaveLast::SaveLast(const std::string& text) : on_(true), link_(true) {
  check(text == "link", kOp, ": save_last must be false, true or link, got '", text, "'");
}

ModelCheckpoint::ModelCheckpoint(ModelCheckpointOptions options) : options_(std::move(options)) {
  const auto& o = options_;
  check(o.mode == "min" || o.mode == "max", kOp, ": mode must be min or max, got ", o.mode);
  check(o.save_top_k >= -1, kOp, ": save_top_k must be at least -1, got ", o.save_top_k);
  check(!o.monitor.empty() || o.save_top_k <= 1, kOp,
        ": save_top_k must be -1, 0 or 1 without monitor, got ", o.save_top_k);
  check(!o.filename.empty() && o.filename.front() != '/', kOp,
        ": filename must be relative to dirpath, got '", o.filename, "'");
  check(o.every_n_train_steps.value_or(0) >= 0, kOp,
        ": every_n_train_steps must be at least 0, got ", o.every_n_train_steps.value_or(0));
  check(o.every_n_epochs.value_or(0) >= 0, kOp, ": every_n_epochs must be at least 0, got ",
        o.every_n_epochs.value_or(0));
  if (o.train_time_interval_s)
    check(*o.train_time_interval_s > 0, kOp, ": train_time_interval_s must be positive, got ",
          *o.train_time_interval_s);
  const int triggers = (o.every_n_train_steps.value_or(0) > 0 ? 1 : 0) +
                       (o.every_n_epochs.value_or(0) > 0 ? 1 : 0) +
                       (o.train_time_interval_s ? 1 : 0);
  check(triggers <= 1, kOp,
        ": at most one of every_n_train_steps, every_n_epochs and "
        "train_time_interval_s must be given, got ",
        triggers);
  every_n_train_steps_ = o.every_n_train_steps.value_or(0);
  const bool none = !o.every_n_train_steps && !o.every_n_epochs && !o.train_time_interval_s;
  every_n_epochs_ = none ? 1 : o.every_n_epochs.value_or(0);
  format_name(0, 0, {});  // the template's mistakes come out now
}

std::string ModelCheckpoint::state_key() const {
  return cat(kOp, "{monitor=", options_.monitor, ", mode=", options_.mode,
             ", every_n_train_steps=", every_n_train_steps_, ", every_n_epochs=", every_n_epochs_,
             ", train_time_interval=", options_.train_time_interval_s.value_or(0), "}");
}

std::string ModelCheckpoint::format_name(int64_t epoch, int64_t step,
                                         const Metrics& metrics) const {
  const std::string& text = options_.filename;
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '{') {
      out += text[i];
      continue;
    }
    const size_t close = text.find('}', i);
    check(close != std::string::npos, kOp, ": filename must close every {, got '", text, "'");
    const std::string field = text.substr(i + 1, close - i - 1);
    const size_t colon = field.rfind(':');
    const std::string name = field.substr(0, colon);
    const std::string format = colon == std::string::npos ? "" : field.substr(colon + 1);
    check(!name.empty() && name.find("..") == std::string::npos, kOp,
          ": filename must name a metric in every {}, got '", text, "'");
    double value = std::numeric_limits<double>::quiet_NaN();  // a metric not yet logged
    if (name == "epoch")
      value = static_cast<double>(epoch);
    else if (name == "step")
      value = static_cast<double>(step);
    else if (const auto it = metrics.find(name); it != metrics.end())
      value = it->second;
    if (options_.auto_insert_metric_name) out += cat(name, "=");
    out += format_number(format, value);
    i = close;
  }
  return out + kExtension;
}

void ModelCheckpoint::setup(Trainer& trainer, TrainingModule&, Stage stage) {
  if (stage != Stage::fit) return;
  const std::string folder = !options_.dirpath.empty()
                                 ? options_.dirpath
                                 : (fs::path(trainer.log_dir()) / "checkpoints").string();
  std::error_code error;
  dirpath_ = fs::absolute(folder, error).lexically_normal().string();
  if (dirpath_.size() > 1 && dirpath_.back() == '/') dirpath_.pop_back();
  trainer.strategy().on_rank_zero([&] { make_folder(dirpath_); });
}

void ModelCheckpoint::on_train_start(Trainer& trainer, TrainingModule&) {
  if (!warning_.empty()) trainer.warn(warning_);
  warning_.clear();
  last_time_s_ = trainer.progress().seconds;
}

bool ModelCheckpoint::may_save(const Trainer& trainer) const {
  return trainer.stage() == Stage::fit && trainer.global_step() != last_saved_step_;
}

bool ModelCheckpoint::saves_on_epoch_end(const Trainer& trainer) const {
  if (options_.save_on_train_epoch_end) return *options_.save_on_train_epoch_end;
  return trainer.num_val_batches() == 0 || trainer.validates_once_per_epoch();
}

bool ModelCheckpoint::epoch_is_due(const Trainer& trainer) const {
  return every_n_epochs_ > 0 && (trainer.current_epoch() + 1) % every_n_epochs_ == 0;
}

void ModelCheckpoint::on_train_batch_end(Trainer& trainer, TrainingModule&, const Tensor&,
                                         const Batch&, int64_t) {
  if (!may_save(trainer) || trainer.global_step() == 0) return;
  const bool step_due =
      every_n_train_steps_ > 0 && trainer.global_step() % every_n_train_steps_ == 0;
  const double now = trainer.progress().seconds;
  const bool time_due =
      options_.train_time_interval_s &&
      trainer.strategy().any(now - last_time_s_ >= *options_.train_time_interval_s);
  if (!step_due && !time_due) return;
  // Validation is about to make the metric, or to renew it.
  if (!options_.monitor.empty() && trainer.num_val_batches() > 0 &&
      (trainer.validation_due() || !trainer.callback_metric(options_.monitor))) {
    deferred_ = true;
    return;
  }
  save(trainer);
}

bool ModelCheckpoint::needs_batch(const Trainer& trainer, int64_t batch_idx) const {
  return options_.train_time_interval_s ||
         (every_n_train_steps_ > 0 && trainer.step_after(batch_idx) % every_n_train_steps_ == 0);
}

void ModelCheckpoint::on_validation_end(Trainer& trainer, TrainingModule&) {
  if (!may_save(trainer)) return;
  if (deferred_ || (!saves_on_epoch_end(trainer) && epoch_is_due(trainer))) save(trainer);
}

void ModelCheckpoint::on_train_epoch_end(Trainer& trainer, TrainingModule&) {
  if (may_save(trainer) && saves_on_epoch_end(trainer) && epoch_is_due(trainer)) save(trainer);
}

void ModelCheckpoint::on_exception(Trainer& trainer, TrainingModule&, const std::exception&) {
  if (options_.save_on_exception && may_save(trainer) && trainer.global_step() > 0)
    trainer.save_checkpoint((fs::path(dirpath_) / cat("exception", kExtension)).string(),
                            options_.save_weights_only);
}

void ModelCheckpoint::save(Trainer& trainer) {
  deferred_ = false;
  const Metrics metrics = trainer.callback_metrics();
  if (options_.save_top_k != 0) {
    if (options_.monitor.empty())
      save_newest(trainer, metrics);
    else
      save_ranked(trainer, metrics);
  }
  if (options_.save_last.on()) save_last(trainer);
}

void ModelCheckpoint::save_newest(Trainer& trainer, const Metrics& metrics) {
  const State before = state_dict();
  const std::string previous = best_model_path_;
  const std::string replaces = options_.save_top_k == 1 ? previous : "";
  const std::string path = new_path(
      trainer, format_name(trainer.current_epoch(), trainer.global_step(), metrics), replaces);
  best_model_path_ = path;
  write(trainer, path, before);
  newest_path_ = path;
  if (options_.save_top_k == 1 && !previous.empty() && previous != path) remove(trainer, previous);
}

void ModelCheckpoint::save_ranked(Trainer& trainer, const Metrics& metrics) {
  const auto it = metrics.find(options_.monitor);
  if (it == metrics.end()) {
    const std::string text = cat(kOp, ": monitor must be a logged metric, got '", options_.monitor,
                                 "', which is none of them");
    check(trainer.num_val_batches() > 0 && !trainer.has_validated(), text);
    trainer.warn(cat(text, " yet"));
    return;
  }
  const double inf = std::numeric_limits<double>::infinity();
  const double worst = options_.mode == "min" ? inf : -inf;
  // Rank 0's, so that all processes keep the same files; see sync_dist for one of all.
  double score = trainer.is_global_zero() ? it->second : 0;
  score = trainer.strategy().reduce(score, Reduce::sum);
  if (std::isnan(score)) score = worst;
  const auto count = static_cast<int64_t>(best_k_models_.size());
  const bool full = options_.save_top_k > 0 && count >= options_.save_top_k;
  if (full && !better(score, best_k_models_.at(kth_best_model_path_))) {
    current_score_ = score;
    return;
  }
  const State before = state_dict();
  const std::string evicted = full ? kth_best_model_path_ : "";
  const std::string path = new_path(
      trainer, format_name(trainer.current_epoch(), trainer.global_step(), metrics), evicted);
  current_score_ = score;
  if (full) best_k_models_.erase(evicted);
  best_k_models_[path] = score;
  rank();
  write(trainer, path, before);
  newest_path_ = path;
  if (full && evicted != path) remove(trainer, evicted);
}

void ModelCheckpoint::save_last(Trainer& trainer) {
  const State before = state_dict();
  const std::string path = new_path(trainer, cat("last", kExtension), last_model_path_);
  const std::string previous = last_model_path_;
  last_model_path_ = path;
  const bool saved_now = last_saved_step_ == trainer.global_step() && options_.save_top_k != 0;
  if (options_.save_last.link() && saved_now && link(trainer, path)) return;
  write(trainer, path, before);
  if (!previous.empty() && previous != path) remove(trainer, previous);
}

// Whether `path` now leads to the newest file.
bool ModelCheckpoint::link(Trainer& trainer, const std::string& path) const {
  std::error_code error;
  if (trainer.is_global_zero()) {
    const std::string temporary = path + ".tmp";
    fs::remove(temporary, error);
    fs::create_symlink(fs::path(newest_path_).lexically_relative(dirpath_), temporary, error);
    if (!error) fs::rename(temporary, path, error);
  }
  return !trainer.strategy().any(static_cast<bool>(error));
}

void ModelCheckpoint::write(Trainer& trainer, const std::string& path, const State& before) {
  last_saved_step_ = trainer.global_step();
  last_time_s_ = trainer.progress().seconds;
  try {
    trainer.strategy().on_rank_zero([&] { make_folder(fs::path(path).parent_path().string()); });
    trainer.save_checkpoint(path, options_.save_weights_only);
  } catch (...) {
    load_state_dict(before);
    throw;
  }
}

void ModelCheckpoint::remove(const Trainer& trainer, const std::string& path) const {
  if (!trainer.is_global_zero()) return;
  std::error_code error;
  fs::remove(path, error);  // a file that somebody else took away is no concern
}

bool ModelCheckpoint::better(double a, double b) const {
  return options_.mode == "min" ? a < b : a > b;
}

// Best and worst of the files kept.
void ModelCheckpoint::rank() {
  best_model_path_.clear();
  kth_best_model_path_.clear();
  for (const auto& [path, score] : best_k_models_) {
    if (best_model_path_.empty() || better(score, best_k_models_.at(best_model_path_)))
      best_model_path_ = path;
    if (kth_best_model_path_.empty() || better(best_k_models_.at(kth_best_model_path_), score))
      kth_best_model_path_ = path;
  }
  best_model_score_.reset();
  if (!best_model_path_.empty()) best_model_score_ = best_k_models_.at(best_model_path_);
}

std::string ModelCheckpoint::new_path(Trainer& trainer, const std::string& name,
                                      const std::string& may_replace) const {
  const std::string stem = name.substr(0, name.size() - std::string_view(kExtension).size());
  std::string path = (fs::path(dirpath_) / name).string();
  std::error_code error;
  for (int version = 1; options_.enable_version_counter && path != may_replace &&
                        fs::exists(fs::symlink_status(path, error));
       ++version)
    path = (fs::path(dirpath_) / cat(stem, "-v", version, kExtension)).string();
  return trainer.strategy().broadcast(std::move(path));
}

std::string ModelCheckpoint::newest_last() const {
  std::string newest;
  fs::file_time_type time{};
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dirpath_, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("last") || !name.ends_with(kExtension)) continue;
    const auto written = fs::last_write_time(entry.path(), error);
    if (error || (!newest.empty() && written <= time)) continue;
    newest = entry.path().string();
    time = written;
  }
  return newest;
}

State ModelCheckpoint::state_dict() const {
  State s{{"monitor", options_.monitor},
          {"dirpath", dirpath_},
          {"best_model_path", best_model_path_},
          {"kth_best_model_path", kth_best_model_path_},
          {"last_model_path", last_model_path_},
          {"last_saved_step", last_saved_step_},
          {"deferred", deferred_}};
  if (best_model_score_) s["best_model_score"] = *best_model_score_;
  if (current_score_) s["current_score"] = *current_score_;
  for (const auto& [path, score] : best_k_models_) s[cat("best_k_models.", path)] = score;
  return s;
}

void ModelCheckpoint::load_state_dict(const State& state) {
  const auto score = [&](const char* key) -> std::optional<double> {
    const auto it = state.find(key);
    return it == state.end() ? std::nullopt : std::optional(it->second.as_double());
  };
  best_model_path_ = require(state, "best_model_path", kOp).as_text();
  const std::string& folder = require(state, "dirpath", kOp).as_text();
  if (!dirpath_.empty() && folder != dirpath_) {
    warning_ = cat(kOp, ": dirpath changed from '", folder, "' to '", dirpath_,
                   "'; of the saved state only best_model_path is taken over");
    return;
  }
  best_model_score_ = score("best_model_score");
  current_score_ = score("current_score");
  kth_best_model_path_ = require(state, "kth_best_model_path", kOp).as_text();
  last_model_path_ = require(state, "last_model_path", kOp).as_text();
  last_saved_step_ = require(state, "last_saved_step", kOp).as_int();
  deferred_ = require(state, "deferred", kOp).as_bool();
  best_k_models_.clear();
  for (const auto& [path, value] : take_prefix(state, "best_k_models"))
    best_k_models_[path] = value.as_double();
}

}  // namespace cairn::trainer
