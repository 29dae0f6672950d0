// What a run saves, and how a run takes it up again.
// Invariant: make_checkpoint and the restore functions name the same things; the order of restoring
// is that of Lightning: modules and callbacks first, then, once the optimizer exists, the training
// state.
#include <cstring>
#include <utility>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "cairn/trainer/callbacks/model_checkpoint.h"
#include "cairn/trainer/trainer.h"
#include "cairn/trainer/version.h"

namespace cairn::trainer {
namespace {

State numbers(const optim::State& state) {
  State out;
  for (const auto& [name, value] : state.numbers) out[name] = value;
  return out;
}

optim::State optimizer_state(const State& state, const Checkpoint::Tensors& tensors) {
  optim::State out;
  out.tensors = tensors;
  for (const auto& [name, value] : state) out.numbers[name] = value.as_double();
  return out;
}

std::string bytes_of(const Tensor& t) {
  const Tensor values = raw::contiguous(raw::to(t, t.dtype(), kCPU));
  return {static_cast<const char*>(values.raw_data()), static_cast<size_t>(values.nbytes())};
}

// How many processes made it.
int64_t ranks_of(const Checkpoint& c) {
  const auto at = c.loader.find("world_size");
  return at == c.loader.end() ? 1 : at->second.as_int();
}

}  // namespace

Checkpoint Trainer::make_checkpoint(bool weights_only) {
  check(model_ != nullptr && optimizer_.optimizer != nullptr,
        "make_checkpoint: trainer must be in a fit, or after one");
  log_step();
  Checkpoint c;
  c.epoch = progress_.epoch;
  c.global_step = progress_.global_step;
  c.version = version();
  c.weights_only = weights_only;
  for (const auto& [name, tensor] : model_->state_dict()) c.state_dict[name] = tensor;
  c.hyper_parameters = model_->hyper_parameters();
  if (!weights_only) {
    optim::State optimizer = optimizer_.optimizer->state_dict();
    c.optimizer = numbers(optimizer);
    c.optimizer_tensors = std::move(optimizer.tensors);
    c.precision = precision_.state_dict();
    if (optimizer_.schedule) c.lr_schedulers = numbers(optimizer_.schedule->state_dict());
    if (progress_.window > 0)
      for (const auto& [name, parameter] : model_->named_parameters())
        if (const Tensor g = grad(parameter); g.defined()) c.gradients[name] = g;
    c.progress = to_state(progress_);
    c.metrics = metrics_.state();
    const Generator& generator = default_generator();
    c.rng = {{"seed", generator.seed()}, {"offset", generator.offset()}};
    if (loaders_.train != nullptr) {
      const data::DataLoaderState at = loaders_.train->state();
      c.loader = {{"epoch", at.epoch},
                  {"batches_done", at.batches_done},
                  {"seed", at.seed},
                  {"world_size", static_cast<int64_t>(world_size())}};
    }
    if (loaders_.module != nullptr) c.datamodule = loaders_.module->state_dict();
    for (size_t i = 0; is_global_zero() && i < loggers_.size(); ++i) {
      loggers_[i]->save();
      add_prefix(c.loggers, cat(i), loggers_[i]->state_dict());
    }
    for (const auto& callback : callbacks_)
      if (State state = callback->state_dict(); !state.empty())
        c.callbacks[callback->state_key()] = std::move(state);
    for (const auto& callback : callbacks_) callback->on_save_checkpoint(*this, *model_, c);
  }
  model_->on_save_checkpoint(c);
  return c;
}

void Trainer::save_checkpoint(const std::string& path, bool weights_only) {
  Checkpoint c = make_checkpoint(weights_only);
  if (!weights_only && world_size() > 1) gather_ranks(c);
  strategy_->save_checkpoint(path, c);
}

// Nothing after a failure, when a process saves what it has itself.
void Trainer::gather_ranks(Checkpoint& c) {
  const std::vector<std::string> metrics = strategy_->all_gather(text_of(c.metrics));
  const std::vector<std::string> rng = strategy_->all_gather(text_of(c.rng));
  for (size_t r = 1; r < metrics.size(); ++r)
    c.other_ranks.push_back({state_of(metrics[r]), state_of(rng[r]), {}});
  if (progress_.window == 0) return;
  for (const auto& [name, parameter] : model_->named_parameters()) {
    const auto mine = c.gradients.find(name);
    const std::vector<std::string> all =
        strategy_->all_gather(mine == c.gradients.end() ? std::string() : bytes_of(mine->second));
    for (size_t r = 1; is_global_zero() && r < all.size(); ++r) {
      if (all[r].empty()) continue;  // it has none
      const Tensor gradient = empty(parameter.shape(), {parameter.dtype()});
      std::memcpy(gradient.raw_data(), all[r].data(), all[r].size());
      c.other_ranks[r - 1].gradients[name] = gradient;
    }
  }
}

// What the file has of this process, where the run has as many processes as then. Else all take
// rank 0's: at an epoch's end only the random numbers are of use, and inside one there is no way to
// go on with another number of processes (see takes_up_loader).
void Trainer::take_own_part(Checkpoint& c) {
  const auto parts = static_cast<int>(c.other_ranks.size()) + 1;
  if (parts == world_size() && global_rank() > 0) {
    Checkpoint::Own& own = c.other_ranks[static_cast<size_t>(global_rank()) - 1];
    c.metrics = std::move(own.metrics);
    c.rng = std::move(own.rng);
    c.gradients = std::move(own.gradients);
  }
  c.other_ranks.clear();
  const Progress at = progress_from(c.progress);
  if (parts < world_size() && ranks_of(c) == world_size() && at.batch > 0 && !at.epoch_ended)
    warn(
        cat("fit: '", resume_path_,
            "' has metrics and random numbers of rank 0 alone, so all processes go on with those"));
}

// Empty: "last" was asked for and there is none.
std::string Trainer::resolve_checkpoint(const std::string& ckpt_path) {
  if (ckpt_path != "best" && ckpt_path != "last") return ckpt_path;
  const ModelCheckpoint* callback = checkpoint_callback();
  check(callback != nullptr, stage_, ": ckpt_path must be a file without a ModelCheckpoint, got '",
        ckpt_path, "'");
  if (ckpt_path == "last") return callback->newest_last();
  check(!callback->best_model_path().empty(), stage_,
        ": ckpt_path 'best' must follow a fit that saved "
        "a checkpoint, got none");
  return callback->best_model_path();
}

void Trainer::load_to_resume(const std::string& ckpt_path) {
  if (ckpt_path.empty()) return;
  resume_path_ = strategy_->broadcast(resolve_checkpoint(ckpt_path));
  if (resume_path_.empty()) {
    warn("fit: there is no last.ckpt, so the run starts afresh");
    return;
  }
  resume_ = strategy_->load_checkpoint(resume_path_);
  check(!resume_->weights_only, "fit: '", resume_path_,
        "' must be a whole checkpoint to go on from, got one of weights only");
  take_own_part(*resume_);
}

void Trainer::restore_modules() {
  if (!resume_) return;
  if (loaders_.module != nullptr) loaders_.module->load_state_dict(resume_->datamodule);
  call_own(hooks::kLoadCheckpoint, &TrainingModule::on_load_checkpoint, *resume_);
  load_weights(*model_, *resume_, resume_path_);
  for (const auto& c : callbacks_) c->on_load_checkpoint(*this, *model_, *resume_);
  for (const auto& c : callbacks_)
    if (const auto it = resume_->callbacks.find(c->state_key()); it != resume_->callbacks.end())
      c->load_state_dict(it->second);
}

void Trainer::restore_training() {
  if (!resume_) return;
  const Checkpoint& c = *resume_;
  optimizer_.optimizer->load_state_dict(optimizer_state(c.optimizer, c.optimizer_tensors));
  precision_.load_state_dict(c.precision);
  check(c.lr_schedulers.empty() != (optimizer_.schedule != nullptr), "fit: '", resume_path_,
        "' must ",
        optimizer_.schedule ? "have a schedule's state, got none"
                            : "have no schedule's state, got one");
  if (optimizer_.schedule)
    optimizer_.schedule->load_state_dict(optimizer_state(c.lr_schedulers, {}));
  progress_ = progress_from(c.progress);
  if (progress_.epoch_ended) {
    ++progress_.epoch;
    progress_.batch = 0;
    progress_.epoch_ended = false;
  }
  check(!max_epochs_ || progress_.epoch <= *max_epochs_, "fit: max_epochs must be at least the ",
        progress_.epoch, " epochs of '", resume_path_, "', got ", max_epochs_.value_or(0));
  metrics_.load_state(c.metrics);
  for (size_t i = 0; is_global_zero() && i < loggers_.size(); ++i)
    if (const State state = take_prefix(c.loggers, cat(i)); !state.empty())
      loggers_[i]->resume(state);
}

// Whether the loader goes on where the checkpoint's was. With another number of processes an epoch
// falls into other batches, so that only whole epochs can be continued.
bool Trainer::takes_up_loader(const Checkpoint& c) const {
  const int64_t ranks = ranks_of(c);
  if (ranks == world_size()) return true;
  check(progress_.batch == 0, "fit: '", resume_path_, "' was made inside an epoch by ", ranks,
        " processes and must be resumed by as many, got ", world_size(),
        "; checkpoints of an epoch's end can be resumed by any number");
  return false;
}

void Trainer::restore_random_state() {
  const Checkpoint& c = *resume_;
  const auto word = [](const State& state, const char* key) {
    return static_cast<uint64_t>(require(state, key, "checkpoint").as_int());
  };
  if (!c.loader.empty() && takes_up_loader(c))
    loaders_.train->load_state(
        {.epoch = require(c.loader, "epoch", "checkpoint").as_int(),
         .batches_done = require(c.loader, "batches_done", "checkpoint").as_int(),
         .seed = word(c.loader, "seed")});
  // zero_grad has run since; an open window's gradients come back here.
  if (progress_.window > 0)
    for (const auto& [name, parameter] : model_->named_parameters())
      if (const auto it = c.gradients.find(name); it != c.gradients.end())
        set_grad(parameter, it->second);
  default_generator().set_state(word(c.rng, "seed"), word(c.rng, "offset"));
}

}  // namespace cairn::trainer
