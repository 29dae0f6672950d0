// What several processes that train together must do alike: the data they share, when they stop,
// what they say.
// Invariant: with one process nothing here does anything.
#include <algorithm>
#include <utility>

#include "cairn/dist/environment.h"
#include "cairn/trainer/callbacks/progress_bar.h"
#include "cairn/trainer/ddp_strategy.h"
#include "cairn/trainer/trainer.h"

namespace cairn::trainer {
namespace {

template <class T>
Value value_of(const std::optional<T>& value) {
  return value ? Value(*value) : Value("none");
}

// Throws on all processes where a setting of one is not that of rank 0. Collective.
void check_equal(Strategy& strategy, const State& settings) {
  const std::vector<std::string> all = strategy.all_gather(text_of(settings));
  const State first = state_of(all[0]);
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r] == all[0]) continue;
    const State other = state_of(all[r]);
    State names = first;
    names.insert(other.begin(), other.end());
    for (const auto& [name, _] : names) {
      const auto shown = [name = name](const State& of) {
        const auto at = of.find(name);
        return at == of.end() ? "none" : at->second.to_text();
      };
      check(shown(first) == shown(other), "fit: all processes must have the same settings, got ",
            name, " ", shown(first), " on rank 0 and ", shown(other), " on rank ", r);
    }
  }
}

}  // namespace

void Trainer::start_ranks() {
  strategy_->start();
  // One process of several may well evaluate alone, but not train as if it were the only one.
  if (stage_ == Stage::fit && dynamic_cast<SingleDeviceStrategy*>(strategy_.get()) != nullptr) {
    const int processes = dist::detect_environment().world_size;
    check(processes == 1,
          "Trainer: strategy single_device must be used in one process, got one of ", processes,
          " that a launcher started; strategy ddp trains with all of them");
  }
  log_dir_.clear();
  if (world_size() == 1) return;
  metrics_.strategy = strategy_.get();
  log_dir_ = strategy_->broadcast(is_global_zero() ? log_dir() : std::string());
}

// Once on each host, before anybody looks for the data.
void Trainer::prepare_data() {
  strategy_->once_per_host([&] {
    if (loaders_.module != nullptr) loaders_.module->prepare_data();
    model_->prepare_data();
  });
}

bool Trainer::out_of_time() const {
  if (world_size() > 1) return agreed_.out_of_time;
  return options_.max_time && progress_.seconds >= options_.max_time->seconds();
}

// Between two batches: whoever wants to stop, all stop. A learning rate that a schedule or a
// callback has set on some processes alone would let their parameters part, so it ends the fit.
void Trainer::agree() {
  if (world_size() == 1) return;
  std::vector<double> wants = {
      stop_requested_ ? 1.0 : 0.0,
      options_.max_time && progress_.seconds >= options_.max_time->seconds() ? 1.0 : 0.0,
      InterruptScope::requested() ? 1.0 : 0.0,
      resident_ && progress_.batch < train_batches_ && start_is_needed() ? 1.0 : 0.0};
  const size_t rates = wants.size();
  for (size_t g = 0; g < optimizer().group_count(); ++g)
    for (const double sign : {1, -1}) wants.push_back(sign * optimizer().lr(g));
  strategy_->reduce(std::span(wants), Reduce::max);
  agreed_ = {.stop = wants[0] != 0,
             .out_of_time = wants[1] != 0,
             .interrupted = wants[2] != 0,
             .start_needed = wants[3] != 0};
  for (size_t g = 0; g < optimizer().group_count(); ++g) {
    const double most = wants[rates + 2 * g], least = -wants[rates + 2 * g + 1];
    check(least == most, "fit: all processes must have the same learning rate, got ", least, " to ",
          most, " in parameter group ", g, " after step ", progress_.global_step);
  }
  if (agreed_.stop && !stop_requested_) stop("another process asked for it");
}

// Those by which processes would take different steps, or a different number of them. Limits of
// batches are compared where the loaders are known, and max_time ends all runs together.
void Trainer::check_equal_settings() {
  if (world_size() == 1) return;
  const TrainerOptions& o = options_;
  const Limit& interval = o.val_check_interval;
  check_equal(*strategy_, {{"accumulate_grad_batches", o.accumulate_grad_batches},
                           {"check_val_every_n_epoch", value_of(o.check_val_every_n_epoch)},
                           {"gradient_clip_algorithm", o.gradient_clip_algorithm},
                           {"gradient_clip_val", value_of(o.gradient_clip_val)},
                           {"max_epochs", value_of(max_epochs_)},
                           {"max_steps", o.max_steps},
                           {"min_epochs", value_of(o.min_epochs)},
                           {"min_steps", value_of(o.min_steps)},
                           {"num_sanity_val_steps", o.num_sanity_val_steps},
                           {"precision", precision_.name()},
                           {"sync_batchnorm", o.sync_batchnorm},
                           {"use_distributed_sampler", o.use_distributed_sampler},
                           {"val_check_interval",
                            cat(interval, interval.is_count() ? " batches" : " of an epoch")}});
}

// What configure_optimizers gave; in PyTorch's names.
void Trainer::check_equal_optimizers() {
  if (world_size() == 1) return;
  optim::Optimizer& optimizer = *optimizer_.optimizer;
  State settings{{"optimizer", optimizer.name()}, {"schedule", optimizer_.schedule != nullptr}};
  for (const auto& [name, value] : optimizer.state_dict().numbers)
    if (!name.ends_with(".params")) settings[name] = value;
  const auto named = model_->named_parameters();
  for (size_t g = 0; g < optimizer.group_count(); ++g) {
    const std::vector<Tensor> params = optimizer.parameters(g);
    for (size_t i = 0; i < params.size(); ++i) {
      const auto at = std::find_if(named.begin(), named.end(), [&](const auto& parameter) {
        return parameter.second.same_as(params[i]);
      });
      settings[cat("param_groups.", g, ".params.", i)] =
          at != named.end() ? at->first : "a tensor that is not the model's";
    }
  }
  if (optimizer_.schedule) {
    settings["schedule.monitor"] = optimizer_.monitor;
    settings["schedule.frequency"] = optimizer_.frequency;
    settings["schedule.interval"] = optimizer_.interval == optim::Interval::step ? "step" : "epoch";
    settings["schedule.needs_metric"] = optimizer_.schedule->needs_metric();
  }
  check_equal(*strategy_, settings);
}

Trainer::Batches Trainer::count_batches(int64_t own) {
  double ends[] = {-static_cast<double>(own), static_cast<double>(own)};
  strategy_->reduce(std::span(ends), Reduce::max);
  return {own, static_cast<int64_t>(-ends[0]), static_cast<int64_t>(ends[1])};
}

void Trainer::check_equal_batches() {
  const Batches batches = count_batches(train_batches_);
  check(batches.fewest == batches.most,
        "fit: all processes must have equally many training batches, got ", batches.fewest, " to ",
        batches.most, "; a DistributedSampler gives each the same number");
}

// The loader of this process's share of the data, made once for each loader.
data::DataLoader* Trainer::share(data::DataLoader* loader, bool training) {
  if (loader == nullptr || world_size() == 1 || !options_.use_distributed_sampler ||
      loader->options().sampler != nullptr)
    return loader;
  std::unique_ptr<data::DataLoader>& shared = shares_[loader];
  if (shared == nullptr) {
    data::DataLoaderOptions options = loader->options();
    options.sampler = std::make_shared<data::DistributedSampler>(
        loader->dataset().size(),
        data::DistributedSamplerOptions{.num_replicas = world_size(),
                                        .rank = global_rank(),
                                        .shuffle = training && options.shuffle,
                                        .seed = options.seed});
    options.shuffle = false;
    shared = std::make_unique<data::DataLoader>(loader->dataset(), std::move(options));
  }
  return shared.get();
}

void Trainer::warn_of_local_metrics(bool evaluating) {
  if (world_size() == 1 || !is_global_zero()) return;
  std::string names;
  for (const std::string& name : metrics_.local_names(evaluating))
    names += cat(names.empty() ? "" : ", ", name);
  if (!names.empty())
    warn(cat("log: without sync_dist these are of process 0 alone, which sees 1 of ", world_size(),
             " parts of the data: ", names));
}

// A process that the others wait for is one that they could do without.
void Trainer::note_stragglers() {
  const auto* ddp = dynamic_cast<const DDPStrategy*>(strategy_.get());
  if (ddp == nullptr || world_size() == 1 || !is_global_zero()) return;
  constexpr double kMuch = 0.2, kSeconds = 1;
  const std::vector<double>& shares = ddp->wait_shares();
  if (shares.empty()) return;
  const auto slowest = std::min_element(shares.begin(), shares.end());
  const double most = *std::max_element(shares.begin(), shares.end());
  if (most - *slowest < std::max(kMuch, kSeconds / ddp->fit_seconds())) return;
  std::string list;
  for (size_t r = 0; r < shares.size(); ++r)
    list += cat(r > 0 ? ", " : "", "rank ", r, " ", static_cast<int>(100 * shares[r] + 0.5), " %");
  warn(cat("fit: the processes waited for rank ", slowest - shares.begin(),
           "; time spent waiting: ", list));
}

}  // namespace cairn::trainer
