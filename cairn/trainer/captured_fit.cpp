// A fit on a GPU: data that stays there, and steps that are captured and launched as a whole.
// Invariant: with and without capture a run computes the same bits and calls the same hooks, except
// those that say they need not be called (Callback::needs_batch).
#include <algorithm>
#include <array>
#include <utility>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/raw.h"
#include "cairn/trainer/overrides.h"
#include "cairn/trainer/trainer.h"

namespace cairn::trainer {
namespace {

// The share of a device's memory that data may take.
constexpr int64_t kResidentShare = 4;

// Hooks that run inside a step, where a captured one has no host.
template <class Hooked>
bool watches_inside(const Hooked& object, const char*& name) {
  const auto one = [&](const char* hook, auto function) {
    const bool filled = overrides(object, function);
    if (filled) name = hook;
    return filled;
  };
  return one("on_before_zero_grad", &Hooked::on_before_zero_grad) ||
         one("on_before_backward", &Hooked::on_before_backward) ||
         one("on_after_backward", &Hooked::on_after_backward) ||
         one("on_before_optimizer_step", &Hooked::on_before_optimizer_step);
}

bool replaces_a_part(const TrainingModule& model, const char*& name) {
  if (overrides(model, &TrainingModule::optimizer_zero_grad))
    name = "optimizer_zero_grad";
  else if (overrides(model, &TrainingModule::configure_gradient_clipping))
    name = "configure_gradient_clipping";
  else
    return false;
  return true;
}

// FNV-1a over words.
struct Hash {
  uint64_t value = 0xcbf29ce484222325;
  void add(uint64_t word) { value = (value ^ word) * 0x100000001b3; }
  void add(const void* p) { add(reinterpret_cast<uintptr_t>(p)); }
};

}  // namespace

// After the callbacks and the optimizer are known.
void Trainer::prepare_captures() {
  steps_.reset();
  watchers_.clear();
  if (strategy_->root_device().type == DeviceType::cpu) return;
  const bool wanted = options_.capture_steps != "off";
  std::string reason = wanted ? why_not_captured() : "capture_steps is off";
  if (!strategy_->all(reason.empty()) && reason.empty())
    reason = "another process does not capture them";
  if (!wanted) return;
  for (const auto& c : callbacks_) {
    const char* name = nullptr;
    const Watcher watcher{c.get(), overrides(*c, &Callback::on_train_batch_start),
                          watches_inside(*c, name), overrides(*c, &Callback::on_train_batch_end)};
    if (watcher.start || watcher.inside || watcher.end) watchers_.push_back(watcher);
  }
  steps_ = std::make_unique<StepGraphs>();
  if (!reason.empty()) return stop_captures(reason);
  optimizer_.optimizer->set_capturable(true);
}

void Trainer::stop_captures(const std::string& reason) {
  steps_->stop();
  warn(cat("fit: steps run one by one, because ", reason));
}

// Empty: nothing known is in the way.
std::string Trainer::why_not_captured() const {
  if (!strategy_->captures()) return cat("strategy ", strategy_->name(), " does not capture them");
  if (!options_.profiler.empty()) return "the profiler looks at every kernel";
  const char* name = nullptr;
  if (replaces_a_part(*model_, name) || watches_inside(*model_, name))
    return cat("the model overrides ", name, ", which is called inside a step");
  for (const auto& c : callbacks_)
    if (watches_inside(*c, name) && !overrides(*c, &Callback::needs_batch))
      return cat("callback ", c->Callback::state_key(), " overrides ", name,
                 ", which is called inside a step");
  return "";
}

// After the training loader is known.
void Trainer::keep_data_on_device() {
  resident_.reset();
  const Device device = strategy_->root_device();
  const TrainingModule& model = *model_;
  if (device.type != DeviceType::cuda || options_.resident_data == "off" ||
      overrides(model, &TrainingModule::on_before_batch_transfer) ||
      overrides(model, &TrainingModule::transfer_batch_to_device) ||
      overrides(model, &TrainingModule::on_after_batch_transfer))
    return;
  resident_ =
      ResidentData::make(*loaders_.train, device, cuda::properties(device).memory / kResidentShare);
}

// Whether somebody wants on_train_batch_start of the next batch in its place.
bool Trainer::start_is_needed() const {
  const TrainingModule& model = *model_;
  return overrides(model, &TrainingModule::on_train_batch_start) ||
         std::any_of(watchers_.begin(), watchers_.end(), [&](const Watcher& w) {
           return w.start && w.callback->needs_batch(*this, progress_.batch);
         });
}

bool Trainer::end_is_needed(int64_t batch_idx) const {
  const TrainingModule& model = *model_;
  return overrides(model, &TrainingModule::on_train_batch_end) ||
         std::any_of(watchers_.begin(), watchers_.end(), [&](const Watcher& w) {
           return w.end && w.callback->needs_batch(*this, batch_idx);
         });
}

// How many steps from here on the next launch may have; 0: the next one must run by itself.
int64_t Trainer::steps_at_once(bool makes_batch) const {
  const int64_t first = progress_.batch;
  const auto inside = [&](int64_t batch_idx) {
    return std::any_of(watchers_.begin(), watchers_.end(), [&](const Watcher& w) {
      return w.inside && w.callback->needs_batch(*this, batch_idx);
    });
  };
  if (profiler::recording() || inside(first)) return 0;
  if (!makes_batch || options_.accumulate_grad_batches != 1 || options_.max_time ||
      stop_requested_ || overrides(*model_, &TrainingModule::on_train_batch_start))
    return 1;

  int64_t most = std::min({StepGraphs::kCounts[0], resident_->alike(), train_batches_ - first});
  const auto stop_at_multiple = [&](int64_t of) {
    if (of > 0) most = std::min(most, of - progress_.global_step % of);
  };
  stop_at_multiple(options_.log_every_n_steps);
  if (options_.max_steps >= 0) most = std::min(most, options_.max_steps - progress_.global_step);
  if (optimizer_.schedule && optimizer_.interval == optim::Interval::step)
    stop_at_multiple(optimizer_.frequency);
  Progress after = progress_;
  for (int64_t i = 0; i < most; ++i) {
    ++after.batch;
    ++after.total_batches;
    if (end_is_needed(first + i) || validation_due(after)) return i + 1;
    const bool next_is_seen =
        inside(first + i + 1) ||
        std::any_of(watchers_.begin(), watchers_.end(), [&](const Watcher& w) {
          return w.start && w.callback->needs_batch(*this, first + i + 1);
        });
    if (next_is_seen) return i + 1;
  }
  return most;
}

// The largest number of steps, `most` at most, that all processes can launch as one now; 0: none.
// NCCL wants every rank to run a collective from a graph or none, and graphs that were captured
// together to be launched together. So a graph that does not hold any more, or that is not of the
// capture that the others' is of, is dropped: all then capture another.
int64_t Trainer::launch_size(const StepKind& kind, int64_t most) {
  std::vector<double> offers;  // by count: whether it can be, which capture, and that negated
  for (const int64_t count : StepGraphs::kCounts) {
    const StepGraph* graph = steps_->find(kind, count);
    if (graph != nullptr && count <= most && !graph->graph.holds()) {
      steps_->drop(graph);  // e.g. other steps wrote where this one knew of zeros
      graph = nullptr;
    }
    const bool can = count <= most && (graph != nullptr || steps_->ready(kind));
    const auto number = static_cast<double>(graph == nullptr ? 0 : graph->number);
    offers.insert(offers.end(), {can ? 1.0 : 0.0, number, -number});
  }
  strategy_->reduce(std::span(offers), Reduce::min);
  const double* offer = offers.data();
  for (const int64_t count : StepGraphs::kCounts) {
    const auto [can, least, most_negated] = std::array{offer[0], offer[1], offer[2]};
    if (can != 0) {
      if (least != -most_negated) steps_->drop(steps_->find(kind, count));
      return count;
    }
    offer += 3;
  }
  return 0;
}

// `batch` is undefined where the step makes it.
StepKind Trainer::kind_of_next(const Batch& batch) const {
  StepKind kind(batch);
  kind.makes_batch = !batch.input.defined();
  if (kind.makes_batch) kind.input = {resident_->next_size()};
  kind.opens = progress_.window == 0;
  kind.closes = closes_window(progress_.batch);
  return kind;
}

// The captured steps that come next, captured now if need be; null: the next step runs by itself.
// All processes have the same answer.
StepGraph* Trainer::next_graph(const Batch& batch) {
  if (steps_ == nullptr || steps_->stopped()) return nullptr;
  look_at_model();
  const StepKind kind = kind_of_next(batch);
  if (const int64_t count = launch_size(kind, steps_at_once(kind.makes_batch)); count > 0) {
    StepGraph* const graph = steps_->find(kind, count);
    return graph != nullptr ? graph : capture_steps(kind, count, batch);
  }
  steps_->count(kind);
  return nullptr;
}

// Null, and no more captures, where it cannot be done on all processes; the run is then as if it
// had not been tried.
StepGraph* Trainer::capture_steps(const StepKind& kind, int64_t count, const Batch& batch) {
  const profiler::Range range("capture");
  auto steps = std::make_unique<StepGraph>();
  steps->kind = kind;
  steps->count = count;
  steps->number = steps_->next_number();
  steps->logged.resize(static_cast<size_t>(count));
  if (!kind.makes_batch)
    steps->batch = {empty_like(batch.input),
                    batch.target.defined() ? empty_like(batch.target) : Tensor()};
  const std::vector<Tensor> parameters = model_->parameters();
  const bool hooked = std::any_of(parameters.begin(), parameters.end(), [](const Tensor& p) {
    const AutogradMeta* meta = autograd_meta(p);
    return meta != nullptr && !meta->ready_hooks.empty();
  });
  if (!strategy_->all(!hooked)) {
    stop_captures(hooked ? "a parameter has a hook for its gradient (on_grad_ready)"
                         : "another process could not capture them");
    return nullptr;
  }
  const KnownGradients gradients = KnownGradients::now(parameters);
  const Progress before = progress_;
  const int64_t batch_size = metrics_.context.batch_size;
  std::string reason;
  try {
    const Device device = strategy_->root_device();
    Capture capture(device, default_generator(), steps_->pool(device));
    for (auto& logged : steps->logged) {
      if (kind.makes_batch) steps->batch = resident_->make(kind.input[0]);
      metrics_.context.batch_size = steps->batch.size();
      metrics_.start_recording(logged);
      steps->loss = forward_backward(steps->batch, progress_.batch++, kind.closes);
      if (kind.closes) step_optimizer();
    }
    keep_logged(capture, *steps);
    steps->graph = capture.finish();
  } catch (const std::exception& error) {
    reason = error.what();
    if (reason.empty()) reason = "of an unknown error";
  }
  metrics_.stop_recording();
  metrics_.context.batch_size = batch_size;
  leave();
  progress_ = before;
  steps->after = KnownGradients::now(parameters);
  note_writes();        // nobody may keep what was computed from the model while recording
  gradients.restore();  // as nothing has run yet
  if (reason.empty() && !steps->graph.holds()) reason = "a captured step changes what it relies on";
  if (strategy_->all(reason.empty())) return steps_->add(std::move(steps));
  stop_captures(reason.empty() ? "another process could not capture them" : reason);
  return nullptr;
}

// Several steps at once, then what the host does for each.
void Trainer::launch(StepGraph& graph, const Batch& batch) {
  const profiler::Range range("launch");
  const bool makes_batch = graph.kind.makes_batch;
  if (!makes_batch) {
    raw::copy_(graph.batch.input, batch.input);
    if (batch.target.defined()) raw::copy_(graph.batch.target, batch.target);
  }
  strategy_->launch(graph.graph, graph.count);
  note_writes();
  graph.after.restore();
  if (makes_batch) resident_->pass(graph.count);
  const bool seen = end_is_needed(progress_.batch + graph.count - 1);
  // The next launch writes a new loss into the same place, but a callback may keep this one.
  const Tensor loss = seen ? raw::clone(graph.loss) : graph.loss;
  for (const auto& logged : graph.logged) {
    if (makes_batch) start_batch(graph.batch);
    for (const MetricStore::Record& record : logged) metrics_.replay(record);
    ++progress_.window;
    if (graph.kind.closes) {
      progress_.window = 0;
      count_step();
    }
    end_batch(loss, makes_batch ? graph.batch : batch);
  }
  if (seen || !makes_batch) model_looked_at_ = false;
}

// Drops captured steps of a model that has changed since: frozen, in another mode, elsewhere,
// watched.
void Trainer::look_at_model() {
  if (model_looked_at_) return;
  model_looked_at_ = true;
  Hash hash;
  written_.clear();
  const auto add = [&](const Tensor& t) {
    hash.add(t.raw_data());
    const bool known = std::any_of(written_.begin(), written_.end(), [&](const Tensor& other) {
      return other.storage() == t.storage();
    });
    if (!known) written_.push_back(t.alias());  // the handle stays the gradient's only one
  };
  for (const auto& [name, module] : model_->named_modules()) hash.add(module->training() ? 1 : 2);
  for (const Tensor& p : model_->parameters()) {
    hash.add(requires_grad(p) ? 1 : 2);
    add(p);
    const AutogradMeta* meta = autograd_meta(p);
    if (meta == nullptr) continue;
    hash.add(meta->ready_hooks.size());
    if (meta->grad.defined()) add(meta->grad);
  }
  for (const Tensor& b : model_->buffers()) add(b);
  steps_->set_model(hash.value);
}

// A launch writes to the model's tensors and gradients where no op on the host tells so.
void Trainer::note_writes() {
  for (const Tensor& t : written_) t.bump_version("a captured step");
}

}  // namespace cairn::trainer
