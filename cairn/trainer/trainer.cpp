// A run from setup to teardown: what is common to fit, validate, test and predict.
// Invariant: however a run ends, callbacks hear of it, loggers are finalised and the model is let
// go.
#include "cairn/trainer/trainer.h"

#include <algorithm>
#include <filesystem>
#include <typeinfo>
#include <utility>

#include "cairn/dist/failure_report.h"
#include "cairn/trainer/callbacks/model_checkpoint.h"
#include "cairn/trainer/callbacks/progress_bar.h"
#include "cairn/trainer/loggers/csv_logger.h"

namespace cairn::trainer {
namespace {

constexpr int64_t kDefaultMaxEpochs = 1000;

bool is_progress_bar(const Held<Callback>& c) {
  return dynamic_cast<const ProgressBar*>(c.get()) != nullptr;
}

// The callbacks the options ask for.
std::vector<Held<Callback>> choose_callbacks(const TrainerOptions& o) {
  std::vector<Held<Callback>> out = o.callbacks;
  const auto bars = std::count_if(out.begin(), out.end(), is_progress_bar);
  check(bars <= 1, "Trainer: callbacks must have at most one ProgressBar, got ", bars);
  check(o.enable_progress_bar || bars == 0,
        "Trainer: enable_progress_bar must be true with a ProgressBar among the callbacks, got "
        "false");
  if (o.enable_progress_bar && bars == 0) out.emplace_back(ProgressBar());

  const bool checkpoints =
      std::any_of(out.begin(), out.end(), [](const auto& c) { return c->is_checkpoint(); });
  check(o.enable_checkpointing || !checkpoints,
        "Trainer: enable_checkpointing must be true with a "
        "ModelCheckpoint among the callbacks, got false");
  if (o.enable_checkpointing && !checkpoints) out.emplace_back(ModelCheckpoint());
  return out;
}

}  // namespace

Trainer::Trainer(TrainerOptions options)
    : options_(std::move(options)), precision_(options_.precision) {
  check_options(options_);
  strategy_ = choose_strategy(options_);
  given_callbacks_ = choose_callbacks(options_);
  callbacks_ = given_callbacks_;
  loggers_ = options_.logger.loggers();
  if (options_.logger.automatic())
    loggers_.emplace_back(CSVLogger(
        {.save_dir = options_.default_root_dir.empty() ? "." : options_.default_root_dir}));
  max_epochs_ = options_.max_epochs;
  if (!max_epochs_ && options_.max_steps < 0 && !options_.max_time) max_epochs_ = kDefaultMaxEpochs;
  if (max_epochs_ == -1) max_epochs_.reset();
}

Trainer::~Trainer() = default;

void Trainer::fit(TrainingModule& model, data::DataLoader& train, const RunOptions& options) {
  run(Stage::fit, model, {.train = &train}, options);
}
void Trainer::fit(TrainingModule& model, data::DataLoader& train, data::DataLoader& val,
                  const RunOptions& options) {
  check(&train != &val,
        "fit: the validation loader must be another object than the training loader");
  run(Stage::fit, model, {.train = &train, .evaluation = &val}, options);
}
void Trainer::fit(TrainingModule& model, DataModule& data, const RunOptions& options) {
  run(Stage::fit, model, {.module = &data}, options);
}

Metrics Trainer::validate(TrainingModule& model, data::DataLoader& loader,
                          const RunOptions& options) {
  run(Stage::validate, model, {.evaluation = &loader}, options);
  return result_;
}
Metrics Trainer::validate(TrainingModule& model, DataModule& data, const RunOptions& options) {
  run(Stage::validate, model, {.module = &data}, options);
  return result_;
}
Metrics Trainer::test(TrainingModule& model, data::DataLoader& loader, const RunOptions& options) {
  run(Stage::test, model, {.evaluation = &loader}, options);
  return result_;
}
Metrics Trainer::test(TrainingModule& model, DataModule& data, const RunOptions& options) {
  run(Stage::test, model, {.module = &data}, options);
  return result_;
}
std::vector<Tensor> Trainer::predict(TrainingModule& model, data::DataLoader& loader,
                                     const RunOptions& options) {
  run(Stage::predict, model, {.evaluation = &loader}, options);
  return std::exchange(predictions_, {});
}
std::vector<Tensor> Trainer::predict(TrainingModule& model, DataModule& data,
                                     const RunOptions& options) {
  run(Stage::predict, model, {.module = &data}, options);
  return std::exchange(predictions_, {});
}

void Trainer::run(Stage stage, TrainingModule& model, const Loaders& loaders,
                  const RunOptions& options) {
  check(stage_ == Stage::none, stage, ": trainer must not be in a run already, got ", stage_);
  const InterruptScope interrupts;
  begin(stage, model, loaders);
  try {
    run_stage(options);
    clean_up("success");
  } catch (const Interrupted& error) {
    handle_exception(error, "interrupted");
    throw;
  } catch (const CommError& error) {
    // Ctrl-C reaches all processes; one that was waiting for another hears of it in this way.
    const bool interrupted = InterruptScope::requested();
    handle_exception(error, interrupted ? "interrupted" : "failed");
    if (interrupted) throw Interrupted(cat(stage, ": interrupted"));
    throw;
  } catch (const std::exception& error) {
    handle_exception(error, "failed");
    throw;
  } catch (...) {
    handle_exception(Error("run: unknown exception"), "failed");
    throw;
  }
}

void Trainer::begin(Stage stage, TrainingModule& model, const Loaders& loaders) {
  check(model.trainer_ == nullptr, stage, ": model must not be in another trainer's run");
  profile_.reset();
  if (options_.profiler == "simple") profile_ = std::make_unique<profiler::Profile>();
  stage_ = stage;
  model_ = &model;
  loaders_ = loaders;
  metrics_.clear();
  metrics_.strategy = nullptr;
  agreed_ = {};
  result_.clear();
  predictions_.clear();
  warnings_.clear();
  resume_.reset();
  // Of a run whose end failed too; a group waits for graphs with its calls.
  steps_.reset();
  resident_.reset();
  written_.clear();
  if (stage == Stage::fit) {
    progress_ = {};
    optimizer_ = {};
    train_batches_ = val_every_batches_ = 0;
    val_batches_ = {};
    val_asked_ = stop_requested_ = false;
    stop_reason_.clear();
  }
  model.trainer_ = this;
  model.metrics_ = &metrics_;
}

void Trainer::run_stage(const RunOptions& options) {
  start_ranks();
  arrange_callbacks();
  set_up();
  if (stage_ == Stage::fit)
    run_fit(options);
  else
    run_evaluation(options);
  tear_down();
}

// Given callbacks in their order, those of the model replacing the ones of their class, checkpoint
// callbacks last.
void Trainer::arrange_callbacks() {
  std::vector<Held<Callback>> own = model_->configure_callbacks();
  callbacks_.clear();
  for (const auto& c : given_callbacks_) {
    if (!is_global_zero() && is_progress_bar(c)) continue;
    const auto same_class = [&](const Held<Callback>& other) {
      if (!other) return false;
      const Callback& a = *c;
      const Callback& b = *other;
      return typeid(a) == typeid(b);
    };
    if (std::none_of(own.begin(), own.end(), same_class)) callbacks_.push_back(c);
  }
  for (auto& c : own) {
    check(static_cast<bool>(c), "configure_callbacks: callbacks must not be null");
    callbacks_.push_back(std::move(c));
  }
  std::stable_partition(callbacks_.begin(), callbacks_.end(),
                        [](const auto& c) { return !c->is_checkpoint(); });
  std::vector<std::string> keys;
  for (const auto& c : callbacks_) {
    if (c->state_dict().empty()) continue;
    keys.push_back(c->state_key());
    check(std::count(keys.begin(), keys.end(), keys.back()) == 1,
          "Trainer: callbacks with a state must differ in state_key, got ", keys.back(), " twice");
  }
}

void Trainer::set_up() {
  prepare_data();
  if (loaders_.module != nullptr) loaders_.module->setup(stage_);
  call(hooks::kSetup, &Callback::setup, &TrainingModule::setup, stage_);
  model_->configure_model();
}

void Trainer::tear_down() {
  if (loaders_.module != nullptr) loaders_.module->teardown(stage_);
  call(hooks::kTeardown, &Callback::teardown, &TrainingModule::teardown, stage_);
}

void Trainer::handle_exception(const std::exception& error, std::string_view status) {
  // What goes wrong here must not hide the error that led here.
  const auto attempt = [&](auto&& action) {
    try {
      action();
    } catch (const std::exception& second) {
      warn(cat("while ending the run: ", second.what()));
      strategy_->on_exception(second);
    }
  };
  dist::report_failure(error);
  // Interrupted processes are all at the same place, so that callbacks may still save what all
  // have.
  if (!agreed_.interrupted || dynamic_cast<const Interrupted*>(&error) == nullptr)
    strategy_->on_exception(error);
  enter(hooks::kException);
  for (const auto& c : callbacks_) attempt([&] { c->on_exception(*this, *model_, error); });
  if (loaders_.module != nullptr) attempt([&] { loaders_.module->on_exception(error); });
  attempt([&] { clean_up(status); });
}

void Trainer::clean_up(std::string_view status) {
  if (profile_) profile_->stop();
  metrics_.context = {};
  model_->restore_modes();
  model_->trainer_ = nullptr;
  model_->metrics_ = nullptr;
  resume_.reset();
  loaders_ = {};
  shares_.clear();
  const bool was_fit = stage_ == Stage::fit;
  stage_ = Stage::none;
  strategy_->teardown();
  if (was_fit && status == "success") note_stragglers();
  steps_.reset();
  resident_.reset();
  written_.clear();
  if (is_global_zero())
    for (const auto& logger : loggers_) logger->finalize(status);
}

void Trainer::check_interrupt() const {
  // With several processes, all end after the same batch; see agree().
  const bool together = world_size() > 1 && stage_ == Stage::fit && !metrics_.context.evaluating;
  if (together ? agreed_.interrupted : InterruptScope::requested())
    throw Interrupted(cat(stage_, ": interrupted after step ", progress_.global_step));
}

void Trainer::stop(std::string reason) {
  stop_requested_ = true;
  if (stop_reason_.empty()) stop_reason_ = std::move(reason);
}

// After a step, its values go by its number from 0.
void Trainer::emit(Metrics metrics) {
  if (!metrics.empty())
    log_metrics(std::move(metrics), std::max<int64_t>(progress_.global_step - 1, 0));
}

void Trainer::log_metrics(Metrics metrics, int64_t step) {
  metrics["epoch"] = static_cast<double>(progress_.epoch);
  metrics_.note_logged(metrics);
  if (!is_global_zero()) return;
  for (const auto& logger : loggers_) logger->log_metrics(metrics, step);
}

void Trainer::save_loggers() const {
  if (!is_global_zero()) return;
  for (const auto& logger : loggers_) logger->save();
}

optim::Optimizer& Trainer::optimizer() const {
  check(optimizer_.optimizer != nullptr, "optimizer: trainer must be in a fit");
  return *optimizer_.optimizer;
}

const OptimizerConfig& Trainer::optimizer_config() const {
  check(optimizer_.optimizer != nullptr, "optimizer_config: trainer must be in a fit");
  return optimizer_;
}

ModelCheckpoint* Trainer::checkpoint_callback() const {
  for (const auto& c : callbacks_)
    if (auto* found = dynamic_cast<ModelCheckpoint*>(c.get())) return found;
  return nullptr;
}

std::string Trainer::log_dir() const {
  if (!log_dir_.empty()) return log_dir_;
  for (const auto& logger : loggers_)
    if (std::string dir = logger->log_dir(); !dir.empty()) return dir;
  return options_.default_root_dir.empty() ? "." : options_.default_root_dir;
}

void Trainer::warn(const std::string& text) {
  if (std::find(warnings_.begin(), warnings_.end(), text) != warnings_.end()) return;
  warnings_.push_back(text);
  for (const auto& c : callbacks_) c->on_warning(*this, text);
}

}  // namespace cairn::trainer
