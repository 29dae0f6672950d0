// What several processes that train together must do alike: the data they share, when they stop,
// what they say.
// Invariant: with one process nothing here does anything.
#include <algorithm>
#include <utility>

#include "cairn/trainer/callbacks/progress_bar.h"
#include "cairn/trainer/ddp_strategy.h"
#include "cairn/trainer/trainer.h"

namespace cairn::trainer {

void Trainer::start_ranks() {
  strategy_->start();
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

// Between two batches: whoever wants to stop, all stop.
void Trainer::agree() {
  if (world_size() == 1) return;
  double wants[] = {
      stop_requested_ ? 1.0 : 0.0,
      options_.max_time && progress_.seconds >= options_.max_time->seconds() ? 1.0 : 0.0,
      InterruptScope::requested() ? 1.0 : 0.0, -static_cast<double>(steps_wanted())};  // the fewest
  strategy_->reduce(std::span(wants), Reduce::max);
  agreed_ = {.stop = wants[0] != 0,
             .out_of_time = wants[1] != 0,
             .interrupted = wants[2] != 0,
             .until = progress_.batch - static_cast<int64_t>(wants[3])};
  if (agreed_.stop && !stop_requested_) stop("another process asked for it");
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
