// Learning-rate schedules.
#include "cairn/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace cairn::optim {
namespace {

void check_gamma(const char* name, double gamma) {
  check(std::isfinite(gamma) && gamma >= 0, name, ": gamma must be finite and not negative, got ",
        gamma);
}

double anneal(Anneal how, double from, double to, double part) {
  if (how == Anneal::linear) return (to - from) * part + from;
  return to + (from - to) / 2 * (std::cos(std::numbers::pi * part) + 1);
}

}  // namespace

// --- Schedule
// --------------------------------------------------------------------------------------

Schedule::Schedule(const char* name, Optimizer& optimizer) : name_(name), optimizer_(optimizer) {
  for (size_t g = 0; g < optimizer.group_count(); ++g) base_lrs_.push_back(optimizer.initial_lr(g));
}

void Schedule::step() {
  check(!needs_metric(), name_, ": step must be given the metric, got none");
  ++epoch_;
  apply();
}

void Schedule::step(double) { step(); }

void Schedule::apply() {
  for (size_t g = 0; g < base_lrs_.size(); ++g) optimizer_.set_lr(g, next_lr(g, optimizer_.lr(g)));
}

void Schedule::restart() {
  epoch_ = 0;
  for (size_t g = 0; g < base_lrs_.size(); ++g) optimizer_.set_lr(g, base_lrs_[g]);
  apply();
}

std::vector<double> Schedule::last_lr() const {
  std::vector<double> out;
  for (size_t g = 0; g < base_lrs_.size(); ++g) out.push_back(optimizer_.lr(g));
  return out;
}

State Schedule::state_dict() const {
  State out;
  out.numbers["last_epoch"] = static_cast<double>(epoch_);
  for (size_t g = 0; g < base_lrs_.size(); ++g) out.numbers[cat("base_lrs.", g)] = base_lrs_[g];
  return out;
}

void Schedule::load_state_dict(const State& state) {
  const double epoch = state.number(name_, "last_epoch");
  check(epoch >= 0 && epoch == std::floor(epoch) && epoch < 0x1p53, name_,
        ": last_epoch must be a whole number, not negative, got ", epoch);
  std::vector<double> base_lrs;
  for (size_t g = 0; g < base_lrs_.size(); ++g)
    base_lrs.push_back(state.number(name_, cat("base_lrs.", g)));
  check(state.numbers.count(cat("base_lrs.", base_lrs.size())) == 0, name_, ": state must have ",
        base_lrs.size(), " parameter groups, got more");
  epoch_ = static_cast<int64_t>(epoch);
  base_lrs_ = std::move(base_lrs);
}

// --- the plain ones
// --------------------------------------------------------------------------------

StepLR::StepLR(Optimizer& optimizer, const StepLROptions& options)
    : Schedule("step_lr", optimizer), options_(options) {
  check(options.step_size > 0, name_, ": step_size must be positive, got ", options.step_size);
  check_gamma(name_, options.gamma);
}

double StepLR::next_lr(size_t, double now) {
  return epoch_ == 0 || epoch_ % options_.step_size != 0 ? now : now * options_.gamma;
}

MultiStepLR::MultiStepLR(Optimizer& optimizer, const MultiStepLROptions& options)
    : Schedule("multi_step_lr", optimizer), options_(options) {
  check_gamma(name_, options.gamma);
  apply();
}

double MultiStepLR::next_lr(size_t, double now) {
  const auto times = std::count(options_.milestones.begin(), options_.milestones.end(), epoch_);
  return times == 0 ? now : now * std::pow(options_.gamma, static_cast<double>(times));
}

ExponentialLR::ExponentialLR(Optimizer& optimizer, const ExponentialLROptions& options)
    : Schedule("exponential_lr", optimizer), options_(options) {
  check_gamma(name_, options.gamma);
}

double ExponentialLR::next_lr(size_t, double now) {
  return epoch_ == 0 ? now : now * options_.gamma;
}

CosineAnnealingLR::CosineAnnealingLR(Optimizer& optimizer, const CosineAnnealingLROptions& options)
    : Schedule("cosine_annealing_lr", optimizer), options_(options) {
  check(options.t_max > 0, name_, ": t_max must be positive, got ", options.t_max);
  detail::check_not_negative(name_, "eta_min", options.eta_min);
}

// The closed form as a step from the rate before it; at the bottom, where that would divide by
// zero, the rise is added.
double CosineAnnealingLR::next_lr(size_t group, double now) {
  if (epoch_ == 0) return now;
  const double pi = std::numbers::pi;
  const double length = static_cast<double>(options_.t_max);
  const double epoch = static_cast<double>(epoch_);
  const double range = base_lr(group) - options_.eta_min;
  if ((epoch_ - 1 - options_.t_max) % (2 * options_.t_max) == 0)
    return now + range * (1 - std::cos(pi / length)) / 2;
  return (1 + std::cos(pi * epoch / length)) / (1 + std::cos(pi * (epoch - 1) / length)) *
             (now - options_.eta_min) +
         options_.eta_min;
}

LinearLR::LinearLR(Optimizer& optimizer, const LinearLROptions& options)
    : Schedule("linear_lr", optimizer), options_(options) {
  check(options.start_factor > 0 && options.start_factor <= 1, name_,
        ": start_factor must lie in (0, 1], got ", options.start_factor);
  check(options.end_factor >= 0 && options.end_factor <= 1, name_,
        ": end_factor must lie in [0, 1], got ", options.end_factor);
  check(options.total_iters > 0, name_, ": total_iters must be positive, got ",
        options.total_iters);
  apply();
}

double LinearLR::next_lr(size_t, double now) {
  if (epoch_ == 0) return now * options_.start_factor;
  if (epoch_ > options_.total_iters) return now;
  const double rise = options_.end_factor - options_.start_factor;
  const double before = static_cast<double>(options_.total_iters) * options_.start_factor +
                        static_cast<double>(epoch_ - 1) * rise;
  return now * (1 + rise / before);
}

LambdaLR::LambdaLR(Optimizer& optimizer, std::function<double(int64_t)> fn)
    : Schedule("lambda_lr", optimizer), fn_(std::move(fn)) {
  check(fn_ != nullptr, name_, ": fn must be callable, got none");
  apply();
}

double LambdaLR::next_lr(size_t group, double) { return base_lr(group) * fn_(epoch_); }

// --- OneCycleLR
// ------------------------------------------------------------------------------------

OneCycleLR::OneCycleLR(Optimizer& optimizer, const OneCycleLROptions& options)
    : Schedule("one_cycle_lr", optimizer), options_(options) {
  const OneCycleLROptions& o = options_;
  detail::check_not_negative(name_, "max_lr", o.max_lr);
  check(o.total_steps > 0, name_, ": total_steps must be positive, got ", o.total_steps);
  check(o.pct_start >= 0 && o.pct_start <= 1, name_, ": pct_start must lie in [0, 1], got ",
        o.pct_start);
  check(o.div_factor > 0 && o.final_div_factor > 0, name_,
        ": div_factor and final_div_factor must be positive, got ", o.div_factor, " and ",
        o.final_div_factor);
  const double first = o.max_lr / o.div_factor;
  const double last = first / o.final_div_factor;
  const double total = static_cast<double>(o.total_steps);
  const double low = o.base_momentum, high = o.max_momentum;
  phases_.push_back({o.pct_start * total - 1, first, o.max_lr, high, low});
  if (o.three_phase) {
    phases_.push_back({2 * o.pct_start * total - 2, o.max_lr, first, low, high});
    phases_.push_back({total - 1, first, last, high, high});
  } else {
    phases_.push_back({total - 1, o.max_lr, last, low, high});
  }
  apply();
}

double OneCycleLR::at_epoch(bool momentum) const {
  const double step = static_cast<double>(epoch_);
  double start = 0;
  for (size_t i = 0; i < phases_.size(); ++i) {
    const Phase& phase = phases_[i];
    if (step > phase.end && i + 1 < phases_.size()) {
      start = phase.end;
      continue;
    }
    // A phase may have no length; and step total_steps, which follows the last batch, keeps the
    // end.
    const double length = phase.end - start;
    const double part = length > 0 ? std::min((step - start) / length, 1.0) : 1;
    return momentum ? anneal(options_.anneal_strategy, phase.from_momentum, phase.to_momentum, part)
                    : anneal(options_.anneal_strategy, phase.from_lr, phase.to_lr, part);
  }
  return 0;  // not reached: the last phase takes every step
}

double OneCycleLR::next_lr(size_t, double) { return at_epoch(false); }

void OneCycleLR::apply() {
  check(epoch_ <= options_.total_steps, name_, ": steps must number at most ", options_.total_steps,
        ", got ", epoch_);
  Schedule::apply();
  if (!options_.cycle_momentum) return;
  for (size_t g = 0; g < optimizer_.group_count(); ++g) optimizer_.set_momentum(g, at_epoch(true));
}

// --- SequentialLR
// ----------------------------------------------------------------------------------

SequentialLR::SequentialLR(Optimizer& optimizer, std::vector<std::unique_ptr<Schedule>> schedules,
                           std::vector<int64_t> milestones)
    : Schedule("sequential_lr", optimizer),
      schedules_(std::move(schedules)),
      milestones_(std::move(milestones)) {
  check(!schedules_.empty() && milestones_.size() + 1 == schedules_.size(), name_,
        ": milestones must number one less than schedules, got ", milestones_.size(), " and ",
        schedules_.size());
  for (const auto& schedule : schedules_)
    check(schedule != nullptr && !schedule->needs_metric(), name_,
          ": schedules must not need a metric, got ",
          schedule ? "one that does" : "a null pointer");
  check(std::is_sorted(milestones_.begin(), milestones_.end()), name_,
        ": milestones must be in order, got one below its predecessor");
  // Making the schedules has set their first rates, one upon the other.
  schedules_[0]->restart();
}

void SequentialLR::apply() {
  const auto after = std::upper_bound(milestones_.begin(), milestones_.end(), epoch_);
  const auto index = static_cast<size_t>(after - milestones_.begin());
  if (index > 0 && milestones_[index - 1] == epoch_)
    schedules_[index]->restart();
  else
    schedules_[index]->step();
}

double SequentialLR::next_lr(size_t, double now) { return now; }

void SequentialLR::restart() {
  epoch_ = 0;
  schedules_[0]->restart();
}

State SequentialLR::state_dict() const {
  State out = Schedule::state_dict();
  for (size_t i = 0; i < schedules_.size(); ++i)
    for (const auto& [name, value] : schedules_[i]->state_dict().numbers)
      out.numbers[cat("schedules.", i, ".", name)] = value;
  return out;
}

void SequentialLR::load_state_dict(const State& state) {
  std::vector<State> parts(schedules_.size());
  for (const auto& [name, value] : state.numbers)
    for (size_t i = 0; i < parts.size(); ++i) {
      const std::string prefix = cat("schedules.", i, ".");
      if (name.compare(0, prefix.size(), prefix) == 0)
        parts[i].numbers[name.substr(prefix.size())] = value;
    }
  Schedule::load_state_dict(state);
  for (size_t i = 0; i < parts.size(); ++i) schedules_[i]->load_state_dict(parts[i]);
}

// --- ReduceLROnPlateau
// -----------------------------------------------------------------------------

namespace {
double worst(PlateauMode mode) {
  const double infinity = std::numeric_limits<double>::infinity();
  return mode == PlateauMode::min ? infinity : -infinity;
}
}  // namespace

ReduceLROnPlateau::ReduceLROnPlateau(Optimizer& optimizer, const ReduceLROnPlateauOptions& options)
    : Schedule("reduce_lr_on_plateau", optimizer), options_(options), best_(worst(options.mode)) {
  check(options.factor > 0 && options.factor < 1, name_, ": factor must lie in (0, 1), got ",
        options.factor);
  check(options.patience >= 0 && options.cooldown >= 0, name_,
        ": patience and cooldown must not be negative, got ", options.patience, " and ",
        options.cooldown);
  detail::check_not_negative(name_, "threshold", options.threshold);
  detail::check_not_negative(name_, "min_lr", options.min_lr);
  detail::check_not_negative(name_, "eps", options.eps);
}

bool ReduceLROnPlateau::is_better(double metric) const {
  const double t = options_.threshold;
  const bool relative = options_.threshold_mode == ThresholdMode::rel;
  if (options_.mode == PlateauMode::min) return metric < (relative ? best_ * (1 - t) : best_ - t);
  return metric > (relative ? best_ * (1 + t) : best_ + t);
}

void ReduceLROnPlateau::step(double metric) {
  ++epoch_;
  if (is_better(metric)) {
    best_ = metric;
    bad_ = 0;
  } else {
    ++bad_;
  }
  if (cooling_ > 0) {
    --cooling_;
    bad_ = 0;
  }
  if (bad_ <= options_.patience) return;
  for (size_t g = 0; g < optimizer_.group_count(); ++g)
    optimizer_.set_lr(g, next_lr(g, optimizer_.lr(g)));
  cooling_ = options_.cooldown;
  bad_ = 0;
}

double ReduceLROnPlateau::next_lr(size_t, double now) {
  const double next = std::max(now * options_.factor, options_.min_lr);
  return now - next > options_.eps ? next : now;
}

void ReduceLROnPlateau::restart() {
  Schedule::restart();
  best_ = worst(options_.mode);
  bad_ = cooling_ = 0;
}

State ReduceLROnPlateau::state_dict() const {
  State out = Schedule::state_dict();
  out.numbers["best"] = best_;
  out.numbers["num_bad_epochs"] = static_cast<double>(bad_);
  out.numbers["cooldown_counter"] = static_cast<double>(cooling_);
  return out;
}

void ReduceLROnPlateau::load_state_dict(const State& state) {
  const double best = state.number(name_, "best");
  const double bad = state.number(name_, "num_bad_epochs");
  const double cooling = state.number(name_, "cooldown_counter");
  Schedule::load_state_dict(state);
  best_ = best;
  bad_ = static_cast<int64_t>(bad);
  cooling_ = static_cast<int64_t>(cooling);
}

// --- factories
// -------------------------------------------------------------------------------------

std::unique_ptr<Schedule> step_lr(Optimizer& optimizer, const StepLROptions& options) {
  return std::make_unique<StepLR>(optimizer, options);
}
std::unique_ptr<Schedule> multi_step_lr(Optimizer& optimizer, const MultiStepLROptions& options) {
  return std::make_unique<MultiStepLR>(optimizer, options);
}
std::unique_ptr<Schedule> exponential_lr(Optimizer& optimizer,
                                         const ExponentialLROptions& options) {
  return std::make_unique<ExponentialLR>(optimizer, options);
}
std::unique_ptr<Schedule> cosine_annealing_lr(Optimizer& optimizer,
                                              const CosineAnnealingLROptions& options) {
  return std::make_unique<CosineAnnealingLR>(optimizer, options);
}
std::unique_ptr<Schedule> linear_lr(Optimizer& optimizer, const LinearLROptions& options) {
  return std::make_unique<LinearLR>(optimizer, options);
}
std::unique_ptr<Schedule> one_cycle_lr(Optimizer& optimizer, const OneCycleLROptions& options) {
  return std::make_unique<OneCycleLR>(optimizer, options);
}
std::unique_ptr<Schedule> lambda_lr(Optimizer& optimizer, std::function<double(int64_t)> fn) {
  return std::make_unique<LambdaLR>(optimizer, std::move(fn));
}
std::unique_ptr<Schedule> reduce_lr_on_plateau(Optimizer& optimizer,
                                               const ReduceLROnPlateauOptions& options) {
  return std::make_unique<ReduceLROnPlateau>(optimizer, options);
}
std::unique_ptr<Schedule> sequential_lr(Optimizer& optimizer,
                                        std::vector<std::unique_ptr<Schedule>> schedules,
                                        std::vector<int64_t> milestones) {
  return std::make_unique<SequentialLR>(optimizer, std::move(schedules), std::move(milestones));
}

}  // namespace cairn::optim
