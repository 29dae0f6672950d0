// The training loop: epochs, batches, accumulation, validation in between.
// Invariant: wherever a checkpoint can be made, progress_ tells exactly what is done; the loop
// decides from progress_ alone what comes next.
#include <algorithm>
#include <utility>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/trainer/trainer.h"

namespace cairn::trainer {

void Trainer::run_fit(const RunOptions& options) {
  check_equal_settings();
  load_to_resume(options.ckpt_path);
  restore_modules();
  precision_.convert(*model_);
  strategy_->setup(*model_);
  optimizer_ = model_->configure_optimizers();
  check(optimizer_.optimizer != nullptr, "configure_optimizers: optimizer must be given, got none");
  precision_.connect(*optimizer_.optimizer, strategy_->root_device());
  strategy_->connect(*model_, *optimizer_.optimizer);
  check_equal_optimizers();
  const bool resumed = resume_.has_value();
  restore_training();
  prepare_captures();
  if (is_global_zero())
    for (const auto& logger : loggers_) logger->log_hyperparams(model_->hyper_parameters());
  call(hooks::kFitStart, &Callback::on_fit_start, &TrainingModule::on_fit_start);
  model_->zero_grad();
  const auto modules = model_->named_modules();
  const auto frozen = std::count_if(modules.begin(), modules.end(),
                                    [](const auto& m) { return !m.second->training(); });
  if (frozen > 0) warn(cat("fit: ", frozen, " modules are in evaluation mode and stay in it"));

  if (!resumed) sanity_check();
  ask_train_loader();
  ask_val_loader();
  if (!fits_nothing()) {
    call(hooks::kTrainStart, &Callback::on_train_start, &TrainingModule::on_train_start);
    if (resume_) {  // last, so that nothing before the first batch can disturb them
      restore_random_state();
      resume_.reset();
    }
    clock_ = std::chrono::steady_clock::now();
    while (!done()) {
      run_epoch();
      agree();
    }
    call(hooks::kTrainEnd, &Callback::on_train_end, &TrainingModule::on_train_end);
  }
  call(hooks::kFitEnd, &Callback::on_fit_end, &TrainingModule::on_fit_end);
}

void Trainer::ask_train_loader() {
  if (options_.limit_train_batches.is_zero()) return check_equal_batches();
  if (loaders_.module != nullptr) loaders_.train = loaders_.module->train_dataloader();
  check(loaders_.train != nullptr, "fit: the DataModule must give a training loader, got none");
  loaders_.train = share(loaders_.train, true);
  train_batches_ = limit_batches(options_.limit_train_batches, loaders_.train->size());
  check_equal_batches();
  keep_data_on_device();
  const Limit& interval = options_.val_check_interval;
  if (!interval.is_count()) {
    val_every_batches_ = std::max<int64_t>(1, interval.of(train_batches_));
    return;
  }
  val_every_batches_ = interval.count();
  check(!options_.check_val_every_n_epoch || val_every_batches_ <= train_batches_,
        "fit: val_check_interval must be at most the ", train_batches_,
        " training batches of an epoch, got ", val_every_batches_,
        "; without check_val_every_n_epoch it counts across epochs");
}

void Trainer::ask_val_loader() {
  if (std::exchange(val_asked_, true)) return;
  int64_t own = 0;
  if (!options_.limit_val_batches.is_zero()) {
    if (loaders_.module != nullptr) loaders_.evaluation = loaders_.module->val_dataloader();
    loaders_.evaluation = share(loaders_.evaluation, false);
    if (loaders_.evaluation != nullptr)
      own = limit_batches(options_.limit_val_batches, loaders_.evaluation->size());
  }
  val_batches_ = count_batches(own);
}

void Trainer::sanity_check() {
  const bool possible = loaders_.evaluation != nullptr || loaders_.module != nullptr;
  const bool wanted = options_.num_sanity_val_steps != 0 && !options_.limit_val_batches.is_zero() &&
                      possible && !fits_nothing();
  if (!strategy_->any(wanted)) return;
  stage_ = Stage::sanity;
  const Generator generator = default_generator();
  call(hooks::kSanityStart, &Callback::on_sanity_check_start,
       &TrainingModule::on_sanity_check_start);
  ask_val_loader();
  Batches batches = val_batches_;
  for (int64_t* count : {&batches.own, &batches.fewest, &batches.most})
    if (options_.num_sanity_val_steps >= 0)
      *count = std::min(*count, options_.num_sanity_val_steps);
  evaluate_stage(loaders_.evaluation, batches);
  call(hooks::kSanityEnd, &Callback::on_sanity_check_end, &TrainingModule::on_sanity_check_end);
  metrics_.clear();
  default_generator() = generator;
  stage_ = Stage::fit;
}

// Nothing to train from the start: then no training hook is called at all.
bool Trainer::fits_nothing() const { return options_.limit_train_batches.is_zero() || done(); }

bool Trainer::done() const {
  if (options_.max_steps >= 0 && progress_.global_step >= options_.max_steps) return true;
  if (max_epochs_ && progress_.epoch >= *max_epochs_) return true;
  return (stop_requested() || out_of_time()) &&
         progress_.epoch >= options_.min_epochs.value_or(0) &&
         progress_.global_step >= options_.min_steps.value_or(0);
}

void Trainer::run_epoch() {
  if (progress_.batch == 0) {  // else it was resumed in its middle
    metrics_.begin_epoch(false);
    call(hooks::kTrainEpochStart, &Callback::on_train_epoch_start,
         &TrainingModule::on_train_epoch_start);
  }
  end_epoch(run_batches());
}

bool Trainer::run_batches() {
  data::DataLoader& loader = *loaders_.train;
  loader.set_epoch(progress_.epoch);  // keeps the place of a resumed epoch
  std::optional<data::DataLoader::Iterator> next;
  if (resident_) resident_->begin_epoch();
  model_looked_at_ = false;
  for (;;) {
    agree();
    check_interrupt();
    if (validation_due()) {
      validate_in_fit();
      agree();
    }
    if (progress_.batch >= train_batches_) return true;
    if (done()) return false;
    if (!resident_) {
      const profiler::Range range("next_batch");
      if (next)
        ++*next;
      else
        next.emplace(loader.begin());
    }
    check(resident_ ? resident_->left() > 0 : *next != loader.end(),
          "fit: the training loader must give ", train_batches_, " batches, got ", progress_.batch);
    if (train_batch(resident_ ? nullptr : &**next) == EpochControl::skip_rest) return true;
  }
}

bool Trainer::validation_due(const Progress& at) const {
  if (val_batches_.most == 0 || at.batch == 0 || stage_ != Stage::fit ||
      at.validated_at == at.total_batches)
    return false;
  const auto every = options_.check_val_every_n_epoch;
  if (!every) return at.total_batches % val_every_batches_ == 0;
  return (at.epoch + 1) % *every == 0 && at.batch % val_every_batches_ == 0;
}

bool Trainer::validates_once_per_epoch() const {
  return val_batches_.most > 0 && options_.check_val_every_n_epoch == 1 &&
         val_every_batches_ == train_batches_;
}

bool Trainer::closes_window(int64_t batch_idx) const {
  return (batch_idx + 1) % options_.accumulate_grad_batches == 0 || batch_idx + 1 == train_batches_;
}

int64_t Trainer::step_after(int64_t batch_idx) const {
  const int64_t every = options_.accumulate_grad_batches;
  const bool short_window = batch_idx + 1 == train_batches_ && train_batches_ % every != 0;
  return progress_.global_step + (batch_idx + 1) / every - progress_.batch / every +
         (short_window ? 1 : 0);
}

// `loaded` is null where batches are made on the device; there one call may do several of them.
EpochControl Trainer::train_batch(const Batch* loaded) {
  const profiler::Range range("train_batch");
  // Made by the step itself, unless somebody wants to see it before, on any process: graphs that
  // are launched together are of the same kind.
  const bool start_needed = world_size() > 1 ? agreed_.start_needed : start_is_needed();
  const bool step_makes_it = loaded == nullptr && !start_needed;
  Batch batch;
  if (!step_makes_it) {
    batch = loaded != nullptr ? transfer(*loaded) : resident_->next();
    if (start_batch(batch) == EpochControl::skip_rest) return EpochControl::skip_rest;
  }
  if (StepGraph* graph = next_graph(batch)) {
    launch(*graph, batch);
    return EpochControl::proceed;
  }
  if (step_makes_it) {
    batch = resident_->next();
    if (start_batch(batch) == EpochControl::skip_rest) return EpochControl::skip_rest;
  }
  const int64_t batch_idx = progress_.batch;
  const bool closes = closes_window(batch_idx);
  const Tensor loss = forward_backward(batch, batch_idx, closes);
  if (closes && progress_.window > 0) {
    step_optimizer();
    count_step();
  }
  end_batch(loss, batch);
  return EpochControl::proceed;
}

EpochControl Trainer::start_batch(const Batch& batch) {
  metrics_.begin_batch(false);
  metrics_.context.batch_size = batch.size();
  stepped_ = false;
  return call(hooks::kTrainBatchStart, &Callback::on_train_batch_start,
              &TrainingModule::on_train_batch_start, batch, progress_.batch);
}

// What the host does after a step on the running batch.
void Trainer::end_batch(const Tensor& loss, const Batch& batch) {
  const int64_t batch_idx = progress_.batch;
  ++progress_.batch;
  ++progress_.total_batches;
  if (progress_.batch == train_batches_ &&
      !(optimizer_.schedule && optimizer_.schedule->needs_metric()))
    step_schedule(optim::Interval::epoch, progress_.epoch + 1);
  count_time();
  call(hooks::kTrainBatchEnd, &Callback::on_train_batch_end, &TrainingModule::on_train_batch_end,
       loss, batch, batch_idx);
  log_step();
  metrics_.context.batch_size = 0;
}

// The loss as training_step gave it, without its graph; undefined for a batch that is skipped.
Tensor Trainer::forward_backward(const Batch& batch, int64_t batch_idx, bool closes_window) {
  Tensor loss;
  {
    const Precision::Scope scope(precision_);
    loss = call_own(hooks::kTrainingStep, &TrainingModule::training_step, batch, batch_idx);
  }
  if (!loss.defined()) {
    check(!metrics_.recording(), "training_step: a captured step must give a loss");
    check(world_size() == 1,
          "training_step: a loss must be given by every process where several train together");
    warn("fit: training_step gave no loss, so its batch was skipped");
    return loss;
  }
  check(loss.numel() == 1, "training_step: loss must have one element, got shape ", loss.shape());
  check(requires_grad(loss),
        "training_step: loss must depend on parameters that require a gradient");
  Tensor scaled = options_.accumulate_grad_batches == 1
                      ? loss
                      : div(loss, static_cast<double>(options_.accumulate_grad_batches));
  scaled = precision_.scaled(scaled);
  if (progress_.window == 0) {
    optim::Optimizer& optimizer = *optimizer_.optimizer;
    call(hooks::kBeforeZeroGrad, &Callback::on_before_zero_grad,
         &TrainingModule::on_before_zero_grad, optimizer);
    call_own(hooks::kBeforeZeroGrad, &TrainingModule::optimizer_zero_grad, optimizer);
  }
  call(hooks::kBeforeBackward, &Callback::on_before_backward, &TrainingModule::on_before_backward,
       scaled);
  {
    const profiler::Range range(hooks::kBackward.name);
    strategy_->backward(scaled, closes_window);
  }
  ++progress_.window;
  call(hooks::kAfterBackward, &Callback::on_after_backward, &TrainingModule::on_after_backward);
  return detach(loss);
}

void Trainer::step_optimizer() {
  optim::Optimizer& optimizer = *optimizer_.optimizer;
  precision_.before_step(optimizer);
  call(hooks::kBeforeOptimizerStep, &Callback::on_before_optimizer_step,
       &TrainingModule::on_before_optimizer_step, optimizer);
  call_own(hooks::kGradientClipping, &TrainingModule::configure_gradient_clipping, optimizer,
           options_.gradient_clip_val, options_.gradient_clip_algorithm);
  {
    const profiler::Range range(hooks::kOptimizerStep.name);
    strategy_->optimizer_step(optimizer);
    precision_.after_step();
  }
  progress_.window = 0;
}

void Trainer::count_step() {
  ++progress_.global_step;
  stepped_ = true;
  step_schedule(optim::Interval::step, progress_.global_step);
}

// Steps the schedule if it goes by this interval and `count` (epochs or steps done) is its turn.
void Trainer::step_schedule(optim::Interval interval, int64_t count) {
  if (!optimizer_.schedule || optimizer_.interval != interval || count % optimizer_.frequency != 0)
    return;
  optim::Schedule& schedule = *optimizer_.schedule;
  if (!schedule.needs_metric()) {
    schedule.step();
    return;
  }
  // Rank 0's, so that the rates stay the same on all processes; see sync_dist for one of all.
  const auto metric = metrics_.callback_metric(optimizer_.monitor);
  double told[] = {0, 0};  // whether there is one, and its value
  if (is_global_zero() && metric) {
    told[0] = 1;
    told[1] = *metric;
  }
  strategy_->reduce(std::span(told), Reduce::sum);
  check(told[0] != 0, "fit: monitor of the schedule must be a logged metric, got '",
        optimizer_.monitor, "', which is none of them");
  schedule.step(told[1]);
}

void Trainer::count_time() {
  const auto now = std::chrono::steady_clock::now();
  progress_.seconds += std::chrono::duration<double>(now - clock_).count();
  clock_ = now;
}

void Trainer::log_step() {
  if (!stepped_ || options_.log_every_n_steps == 0 ||
      progress_.global_step % options_.log_every_n_steps != 0)
    return;
  emit(metrics_.step_metrics(false));
}

void Trainer::validate_in_fit() {
  if (progress_.window == 0)
    call_own(hooks::kTransfer, &TrainingModule::on_validation_model_zero_grad);
  evaluate_stage(loaders_.evaluation, val_batches_);
  model_looked_at_ = false;
  count_time();
}

void Trainer::end_epoch(bool complete) {
  stepped_ = false;
  metrics_.publish_epoch(false);
  progress_.epoch_ended = complete;
  const auto call_callbacks = [&](bool checkpoints) {
    enter(hooks::kTrainEpochEnd);
    for (const auto& c : callbacks_)
      if (c->is_checkpoint() == checkpoints) c->on_train_epoch_end(*this, *model_);
    leave();
  };
  call_callbacks(false);
  call_own(hooks::kTrainEpochEnd, &TrainingModule::on_train_epoch_end);
  metrics_.publish_epoch(false);
  if (complete) {
    // Stepped before the checkpoint, which would else miss it.
    if (optimizer_.schedule && optimizer_.schedule->needs_metric())
      step_schedule(optim::Interval::epoch, progress_.epoch + 1);
    emit(metrics_.epoch_metrics(false));
  }
  call_callbacks(true);
  // An epoch that max_steps cut short may be resumed: its row is no part of the checkpoint's log.
  if (!complete) emit(metrics_.epoch_metrics(false));
  save_loggers();
  warn_of_local_metrics(false);
  count_time();
  if (!complete) return;
  ++progress_.epoch;
  progress_.batch = 0;
  progress_.window = 0;
  progress_.epoch_ended = false;
}

}  // namespace cairn::trainer
