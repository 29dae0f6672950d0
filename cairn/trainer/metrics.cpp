// MetricStore: one entry per logged name, hook and side (training or evaluation).
// Invariant: an entry's levels are fixed by its first call, so names never change during a run.
#include "cairn/trainer/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cairn/kernels/feed.h"
#include "cairn/tensor/raw.h"
#include "cairn/trainer/joined_value.h"
#include "cairn/trainer/strategy.h"

namespace cairn::trainer {
namespace {

Reduce parse_reduce(const std::string& text) {
  for (Reduce r : {Reduce::mean, Reduce::sum, Reduce::min, Reduce::max})
    if (text == name_of(r)) return r;
  fail("metrics: reduce_fx must be mean, sum, min or max, got ", text);
}

kernels::Running running_of(Reduce r) {
  switch (r) {
    case Reduce::mean:
      return kernels::Running::weighted_sum;
    case Reduce::sum:
      return kernels::Running::sum;
    case Reduce::min:
      return kernels::Running::min;
    case Reduce::max:
      return kernels::Running::max;
  }
  return kernels::Running::weighted_sum;
}

// What changes no value it is combined with.
double start_of(Reduce r) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return r == Reduce::min ? kInfinity : r == Reduce::max ? -kInfinity : 0;
}

}  // namespace

const char* name_of(Reduce how) {
  switch (how) {
    case Reduce::mean:
      return "mean";
    case Reduce::sum:
      return "sum";
    case Reduce::min:
      return "min";
    case Reduce::max:
      return "max";
  }
  return "mean";
}

double extreme(Reduce how, double a, double b) {
  if (std::isnan(b)) return b;
  return how == Reduce::min ? std::min(a, b) : std::max(a, b);
}

struct MetricStore::Entry {
  std::string name;
  std::string hook;
  bool evaluating = false;
  bool on_step = false;
  bool on_epoch = false;
  bool prog_bar = false;
  bool logger = true;
  Reduce reduce = Reduce::mean;
  bool sync_dist = false;
  bool restored = false;  // from a checkpoint: its first call may change the options
  // epoch accumulation
  double total = 0;
  double weight = 0;
  std::optional<double> joined;  // the value of all processes, since publish_epoch
  Tensor on_device;    // f64 0-d; where it is defined, `total` follows it when somebody asks
  bool ahead = false;  // it has what `total` has not
  // the batch's value
  bool fresh = false;
  LazyScalar last;
  LazyScalar* step_slot = nullptr;  // in published_, which never moves its nodes
  LazyScalar* plain_slot = nullptr;
  LazyScalar* bar_slot = nullptr;
};

MetricStore::MetricStore() = default;
MetricStore::~MetricStore() = default;

std::string MetricStore::step_name(const Entry& e) {
  return e.on_epoch ? e.name + "_step" : e.name;
}
std::string MetricStore::epoch_name(const Entry& e) {
  return e.on_step ? e.name + "_epoch" : e.name;
}

void MetricStore::log(std::string_view name, const Tensor& value, const LogOptions& options) {
  check(value.defined(), "log: value of '", name, "' must be a tensor, got an undefined one");
  check(value.numel() == 1, "log: value of '", name, "' must have one element, got shape ",
        value.shape());
  log_value(name, value.alias(), options);  // without the graph, which must not be kept
}

void MetricStore::log(std::string_view name, double value, const LogOptions& options) {
  log_value(name, value, options);
}

template <class T>
void MetricStore::log_value(std::string_view name, const T& value, const LogOptions& options) {
  const Hook& hook = context.hook;
  check(!name.empty(), "log: name must not be empty");
  check(hook.log != LogRule::never, "log: '", name,
        "' must be logged in a step or an epoch hook, got ",
        hook.name[0] == '\0' ? "a call outside of the trainer" : hook.name);
  const bool on_step = options.on_step.value_or(hook.log == LogRule::step);
  const bool on_epoch = options.on_epoch.value_or(hook.log != LogRule::step);
  check(!(on_step && hook.log == LogRule::epoch_only), "log: '", name, "' must be on_epoch in ",
        hook.name, ", got on_step");
  check(on_step || on_epoch, "log: '", name, "' must be on_step or on_epoch, got neither");
  check(options.batch_size.value_or(1) > 0, "log: batch_size of '", name,
        "' must be positive, got ", options.batch_size.value_or(1));

  Entry& entry = entry_of(name, on_step, on_epoch, options);
  entry.joined.reset();
  if (entry.sync_dist && on_step && strategy != nullptr) {
    check(recording_ == nullptr, "log: '", name,
          "' must be without sync_dist or on_epoch alone in a captured step");
    check(context.fewest_batches == context.most_batches, "log: '", name,
          "' must be without sync_dist or on_epoch alone where processes have unequal numbers of "
          "batches, got ",
          context.fewest_batches, " to ", context.most_batches);
    return log_joined(entry, value, on_epoch, options);
  }
  const auto weight =
      static_cast<double>(options.batch_size.value_or(std::max<int64_t>(context.batch_size, 1)));
  if constexpr (std::is_same_v<T, Tensor>) {
    if (value.device().type != DeviceType::cpu) {
      if (on_epoch) add_on_device(entry, value, weight);
      const Record record{&entry, value, weight};
      return recording_ != nullptr ? recording_->push_back(record) : replay(record);
    }
  }
  check(recording_ == nullptr, "log: '", name,
        "' must be a tensor of the device in a captured step, got a number of the host");
  entry.fresh = true;
  if (on_step) set_last(entry, LazyScalar(value));
  if (!on_epoch) return;
  if constexpr (std::is_same_v<T, double>)
    add(entry, value, weight);
  else
    add(entry, value.template item<double>(), weight);
}

// A step's value is joined at once, while all processes are at the same place; an epoch's later.
template <class T>
void MetricStore::log_joined(Entry& entry, const T& value, bool on_epoch,
                             const LogOptions& options) {
  double number;
  if constexpr (std::is_same_v<T, Tensor>)
    number = value.template item<double>();
  else
    number = value;
  if (on_epoch)
    add(entry, number,
        static_cast<double>(options.batch_size.value_or(std::max<int64_t>(context.batch_size, 1))));
  entry.fresh = true;
  set_last(entry, LazyScalar(joined_value(*strategy, entry.name, entry.reduce, number)));
}

void MetricStore::set_last(Entry& entry, const LazyScalar& value) {
  entry.last = value;
  *entry.step_slot = value;
  if (entry.plain_slot != nullptr) *entry.plain_slot = value;
  if (entry.bar_slot != nullptr) *entry.bar_slot = value;
}

void MetricStore::start_recording(std::vector<Record>& records) { recording_ = &records; }

void MetricStore::replay(const Record& record) {
  Entry& entry = *record.entry;
  entry.fresh = true;
  if (entry.on_step) set_last(entry, LazyScalar(record.value));
  if (!entry.on_epoch) return;
  entry.weight += record.weight;
  entry.ahead = true;
}

MetricStore::Entry& MetricStore::entry_of(std::string_view name, bool on_step, bool on_epoch,
                                          const LogOptions& options) {
  for (const auto& e : entries_) {
    if (e->name != name || e->hook != context.hook.name || e->evaluating != context.evaluating)
      continue;
    const bool same = e->on_step == on_step && e->on_epoch == on_epoch &&
                      e->reduce == options.reduce_fx && e->prog_bar == options.prog_bar &&
                      e->logger == options.logger && e->sync_dist == options.sync_dist;
    if (same) return *e;
    check(e->restored && on_epoch && e->reduce == options.reduce_fx, "log: options of '", name,
          "' must stay the same in ", context.hook.name);
    e->sync_dist = options.sync_dist;
    e->restored = false;  // the program that resumes may log it otherwise
    set_levels(*e, on_step, on_epoch, options.prog_bar, options.logger);
    return *e;
  }
  auto entry = std::make_unique<Entry>();
  entry->name = name;
  entry->hook = context.hook.name;
  entry->evaluating = context.evaluating;
  entry->reduce = options.reduce_fx;
  entry->sync_dist = options.sync_dist;
  set_levels(*entry, on_step, on_epoch, options.prog_bar, options.logger);
  entries_.push_back(std::move(entry));
  return *entries_.back();
}

void MetricStore::set_levels(Entry& e, bool on_step, bool on_epoch, bool prog_bar, bool logger) {
  e.on_step = on_step;
  e.on_epoch = on_epoch;
  e.prog_bar = prog_bar;
  e.logger = logger;
  e.step_slot = on_step ? &published_[step_name(e)] : nullptr;
  e.plain_slot = on_step && on_epoch ? &published_[e.name] : nullptr;
  e.bar_slot = on_step && prog_bar ? &bar_[step_name(e)] : nullptr;
}

void MetricStore::add(Entry& e, double value, double weight) {
  fold(e);
  const bool first = e.weight == 0;
  switch (e.reduce) {
    case Reduce::mean:
      e.total += value * weight;
      break;
    case Reduce::sum:
      e.total += value;
      break;
    case Reduce::min:
    case Reduce::max:
      e.total = first ? value : extreme(e.reduce, e.total, value);
      break;
  }
  e.weight += weight;
  if (e.on_device.defined()) raw::fill_(e.on_device, e.total);
}

// A kernel adds to the total where the values are. The total is made by the first value; what the
// entry already has (a resumed epoch's) goes there too.
void MetricStore::add_on_device(Entry& e, const Tensor& value, double weight) {
  const Device device = value.device();
  if (!e.on_device.defined() || e.on_device.device() != device) {
    check(recording_ == nullptr, "log: '", e.name,
          "' must be logged by every step to be captured, got a step that is the first");
    fold(e);
    e.on_device = full({}, e.weight > 0 ? e.total : start_of(e.reduce), {DType::f64, device});
  }
  kernels::accumulate(device, e.on_device, value, running_of(e.reduce), weight);
}

// An empty accumulation.
void MetricStore::reset(Entry& e) {
  e.total = e.weight = 0;
  e.joined.reset();
  e.ahead = false;
  if (e.on_device.defined()) raw::fill_(e.on_device, start_of(e.reduce));
}

void MetricStore::fold(Entry& e) {
  if (e.ahead) e.total = e.on_device.item<double>();
  e.ahead = false;
}

double MetricStore::epoch_value(Entry& e) {
  if (e.joined) return *e.joined;
  fold(e);
  return e.reduce == Reduce::mean ? e.total / e.weight : e.total;
}

void MetricStore::begin_epoch(bool evaluating) {
  for (const auto& e : entries_) {
    if (e->evaluating != evaluating) continue;
    reset(*e);
    e->fresh = false;
  }
}

void MetricStore::begin_batch(bool evaluating) {
  for (const auto& e : entries_)
    if (e->evaluating == evaluating) e->fresh = false;
}

Metrics MetricStore::step_metrics(bool evaluating) {
  Metrics out;
  for (const auto& e : entries_)
    if (e->evaluating == evaluating && e->fresh && e->on_step && e->logger) {
      out[step_name(*e)] = e->last.get();
      e->fresh = false;
    }
  return out;
}

// What checkpoints and other processes are told of an entry.
State MetricStore::tell(const Entry& e) {
  return {{"name", e.name},       {"hook", e.hook},         {"reduce", name_of(e.reduce)},
          {"on_step", e.on_step}, {"prog_bar", e.prog_bar}, {"logger", e.logger},
          {"total", e.total},     {"weight", e.weight}};
}

// An entry with nothing in it.
MetricStore::Entry& MetricStore::add_entry(const State& told) {
  const auto field = [&](const char* key) { return require(told, key, "metrics"); };
  auto entry = std::make_unique<Entry>();
  entry->name = field("name").as_text();
  entry->hook = field("hook").as_text();
  entry->reduce = parse_reduce(field("reduce").as_text());
  set_levels(*entry, field("on_step").as_bool(), true, field("prog_bar").as_bool(),
             field("logger").as_bool());
  entries_.push_back(std::move(entry));
  return *entries_.back();
}

// This process's entry for another's. It has none where it saw no batches.
MetricStore::Entry& MetricStore::same_entry(const State& told, bool evaluating) {
  const std::string name = require(told, "name", "metrics").as_text();
  const std::string hook = require(told, "hook", "metrics").as_text();
  for (const auto& e : entries_)
    if (e->name == name && e->hook == hook && e->evaluating == evaluating) return *e;
  Entry& e = add_entry(told);
  e.evaluating = evaluating;
  e.sync_dist = true;
  return e;
}

// Every process tells what it has, and each joins all of it in order of rank.
void MetricStore::join_ranks(bool evaluating) {
  if (strategy == nullptr) return;
  State mine;
  int64_t count = 0;
  for (const auto& e : entries_) {
    if (e->evaluating != evaluating || !e->on_epoch || !e->sync_dist) continue;
    fold(*e);
    add_prefix(mine, cat(count++), tell(*e));
  }
  mine["count"] = count;
  struct Sum {
    double total = 0, weight = 0;
  };
  std::map<Entry*, Sum> sums;
  for (const std::string& text : strategy->all_gather(text_of(mine))) {
    const State its = state_of(text);
    for (int64_t i = 0; i < require(its, "count", "metrics").as_int(); ++i) {
      const State one = take_prefix(its, cat(i));
      Entry& e = same_entry(one, evaluating);
      if (!e.sync_dist) continue;  // this process keeps its own
      const std::string& how = require(one, "reduce", "metrics").as_text();
      check(how == name_of(e.reduce), "log: reduce_fx of '", e.name,
            "' must be the same on all processes, got ", name_of(e.reduce), " and ", how);
      const double total = require(one, "total", "metrics").as_double();
      const double weight = require(one, "weight", "metrics").as_double();
      if (weight == 0) continue;
      Sum& sum = sums[&e];
      const bool adds = e.reduce == Reduce::mean || e.reduce == Reduce::sum;
      sum.total = sum.weight == 0 ? total
                  : adds          ? sum.total + total
                                  : extreme(e.reduce, sum.total, total);
      sum.weight += weight;
    }
  }
  for (const auto& [e, sum] : sums)
    e->joined = e->reduce == Reduce::mean ? sum.total / sum.weight : sum.total;
}

std::vector<std::string> MetricStore::local_names(bool evaluating) const {
  std::vector<std::string> names;
  for (const auto& e : entries_)
    if (e->evaluating == evaluating && e->on_epoch && !e->sync_dist && e->weight > 0)
      names.push_back(e->name);
  return names;
}

void MetricStore::publish_epoch(bool evaluating) {
  join_ranks(evaluating);
  for (const auto& e : entries_) {
    if (e->evaluating != evaluating || !e->on_epoch) continue;
    fold(*e);
    if (e->weight == 0 && !e->joined) continue;
    const LazyScalar value(epoch_value(*e));
    published_[epoch_name(*e)] = value;
    if (e->on_step) published_[e->name] = value;
    if (e->prog_bar) bar_[epoch_name(*e)] = value;
  }
}

Metrics MetricStore::epoch_metrics(bool evaluating) const {
  Metrics out;
  for (const auto& e : entries_) {
    if (e->evaluating != evaluating || !e->on_epoch || !e->logger) continue;
    fold(*e);
    if (e->weight > 0 || e->joined) out[epoch_name(*e)] = epoch_value(*e);
  }
  return out;
}

Metrics MetricStore::callback_metrics() const {
  Metrics out;
  for (const auto& [name, value] : published_) out[name] = value.get();
  return out;
}

std::optional<double> MetricStore::callback_metric(const std::string& name) const {
  const auto it = published_.find(name);
  if (it == published_.end()) return {};
  return it->second.get();
}

Metrics MetricStore::progress_bar_metrics() const {
  Metrics out;
  for (const auto& [name, value] : bar_) out[name] = value.get();
  return out;
}

void MetricStore::note_logged(const Metrics& metrics) {
  for (const auto& [name, value] : metrics) logged_[name] = value;
}

void MetricStore::clear() {
  entries_.clear();
  published_.clear();
  bar_.clear();
  logged_.clear();
}

State MetricStore::state() const {
  State out;
  int64_t count = 0;
  for (const auto& e : entries_) {
    if (e->evaluating || !e->on_epoch) continue;
    fold(*e);
    if (e->weight == 0) continue;
    add_prefix(out, cat(count++), tell(*e));
    if (e->sync_dist && strategy != nullptr) out[cat(count - 1, ".sync_dist")] = true;
  }
  out["count"] = count;
  for (const auto& [name, value] : published_) out[cat("value.", name)] = value.get();
  for (const auto& [name, value] : bar_) out[cat("bar.", name)] = value.get();
  return out;
}

void MetricStore::load_state(const State& state) {
  clear();
  for (const auto& [name, value] : take_prefix(state, "value"))
    published_[name] = LazyScalar(value.as_double());
  for (const auto& [name, value] : take_prefix(state, "bar"))
    bar_[name] = LazyScalar(value.as_double());
  const int64_t count = require(state, "count", "metrics").as_int();
  for (int64_t i = 0; i < count; ++i) {
    const State one = take_prefix(state, cat(i));
    Entry& entry = add_entry(one);
    entry.total = require(one, "total", "metrics").as_double();
    entry.weight = require(one, "weight", "metrics").as_double();
    entry.sync_dist = one.contains("sync_dist");
    entry.restored = true;
  }
}

}  // namespace cairn::trainer
