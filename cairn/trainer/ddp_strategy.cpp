// DDPStrategy: the process group, what ranks tell each other, and the reducer.
#include "cairn/trainer/ddp_strategy.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cairn/autograd/engine.h"
#include "cairn/dist/init.h"
#include "cairn/dist/nccl.h"
#include "cairn/dist/sync_batch_norm.h"
#include "cairn/nn/norm.h"
#include "cairn/tensor/factory.h"

namespace cairn::trainer {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

dist::ReduceOp reduction(Reduce how) {
  switch (how) {
    case Reduce::mean:
      return dist::ReduceOp::avg;
    case Reduce::sum:
      return dist::ReduceOp::sum;
    case Reduce::min:
      return dist::ReduceOp::min;
    case Reduce::max:
      return dist::ReduceOp::max;
  }
  return dist::ReduceOp::sum;
}

}  // namespace

DDPStrategy::DDPStrategy(DDPStrategyOptions options) : options_(std::move(options)) {
  const DDPStrategyOptions& o = options_;
  check(o.timeout.count() > 0, "DDPStrategy: timeout must be above 0 ms, got ", o.timeout.count());
  check(o.patience.count() > 0, "DDPStrategy: patience must be above 0 ms, got ",
        o.patience.count());
  check(o.bucket_cap_mb > 0, "DDPStrategy: bucket_cap_mb must be above 0, got ", o.bucket_cap_mb);
  check(o.gradient_compression == "none" || o.gradient_compression == "bf16",
        "DDPStrategy: gradient_compression must be none or bf16, got ", o.gradient_compression);
}

void DDPStrategy::place(Device device, dist::ClusterEnvironment environment) {
  device_ = device;
  environment_ = std::move(environment);
}

void DDPStrategy::start() {
  ++runs_;
  const bool failed = std::exchange(failed_, false);
  if (group_ != nullptr) {
    // One that failed behind its last call has told nobody in a call.
    const bool own = options_.group == nullptr && world_size() > 1;
    if (!own || !(failed || group_->options().store->find(failure_key()))) return;
  }
  const bool on_gpu = device_.type == DeviceType::cuda;
  const std::string& backend = options_.process_group_backend;
  check(backend != "nccl" || on_gpu,
        "DDPStrategy: process_group_backend must be auto, shm, ring or local on the CPU, got nccl");
  const dist::InitOptions init{.backend = backend == "nccl" ? "auto" : backend,
                               .timeout = options_.timeout};
  device_group_.reset();
  if (group_ != nullptr)
    group_ = dist::rejoin(*group_, runs_, init);
  else
    group_ = options_.group ? options_.group : dist::init_process_group(environment_, init);
  device_group_ = group_;
  if (!on_gpu) return;
  dist::GroupOptions of_gpus = group_->options();
  // Not what another strategy of the same group has used.
  of_gpus.name += cat("/gpus", group_->sequence() == 0 ? "" : cat(" from #", group_->sequence()));
  device_group_ = dist::nccl_group(std::move(of_gpus), device_);
}

int DDPStrategy::rank() const {
  if (options_.group) return options_.group->rank();
  return environment_.rank;
}

int DDPStrategy::local_rank() const { return environment_.local_rank; }

int DDPStrategy::world_size() const {
  if (options_.group) return options_.group->size();
  return environment_.world_size;
}

void DDPStrategy::setup(nn::Module& model) { model.to(device_); }

void DDPStrategy::connect(nn::Module& model, optim::Optimizer&) {
  ddp_.reset();
  if (options_.sync_batchnorm) convert_sync_batchnorm(model, device_group_);
  model_ = &model;
  ddp_ = std::make_unique<dist::DistributedDataParallel>(
      model.named_parameters(), model.named_buffers(), device_group_,
      dist::DdpOptions{.bucket_cap_mb = options_.bucket_cap_mb,
                       .broadcast_buffers = options_.broadcast_buffers,
                       .find_unused_parameters = options_.find_unused_parameters,
                       .gradient_compression = options_.gradient_compression == "bf16"
                                                   ? dist::GradientCompression::bf16
                                                   : dist::GradientCompression::none});
  fit_start_ = Clock::now();
  seconds_waited_ = 0;
}

void DDPStrategy::backward(const Tensor& loss, bool sync) {
  ddp_->set_sync(sync);
  cairn::backward(loss);
}

void DDPStrategy::optimizer_step(optim::Optimizer& optimizer) { optimizer.step(); }

void DDPStrategy::reduce(std::span<double> values, Reduce how) {
  if (failed_ || world_size() == 1 || values.empty()) return;
  const auto count = static_cast<int64_t>(values.size());
  const Tensor t = empty({count}, {DType::f64});
  std::copy(values.begin(), values.end(), t.data<double>());
  const auto start = Clock::now();
  group_->all_reduce(t, reduction(how));
  seconds_waited_ += seconds_since(start);
  std::copy(t.data<double>(), t.data<double>() + count, values.begin());
}

std::string DDPStrategy::broadcast(std::string text) {
  if (failed_ || world_size() == 1) return text;
  const Tensor size = full({1}, static_cast<double>(text.size()), {DType::i64});
  group_->broadcast(size, 0);
  const Tensor bytes = zeros({size.item<int64_t>()}, {DType::u8});
  if (rank() == 0) std::memcpy(bytes.raw_data(), text.data(), text.size());
  group_->broadcast(bytes, 0);
  return std::string(static_cast<const char*>(bytes.raw_data()),
                     static_cast<size_t>(bytes.numel()));
}

// All send as much as the one with the longest.
std::vector<std::string> DDPStrategy::all_gather(std::string text) {
  std::vector<size_t> sizes;
  std::string size(sizeof(size_t), '\0');
  const size_t own = text.size();
  std::memcpy(size.data(), &own, sizeof own);
  for (const std::string& its : all_gather_equal(std::move(size)))
    std::memcpy(&sizes.emplace_back(), its.data(), sizeof(size_t));
  text.resize(*std::max_element(sizes.begin(), sizes.end()));
  std::vector<std::string> texts = all_gather_equal(std::move(text));
  for (size_t r = 0; r < texts.size(); ++r) texts[r].resize(sizes[r]);
  return texts;
}

std::vector<std::string> DDPStrategy::all_gather_equal(std::string text) {
  if (failed_ || world_size() == 1) return {std::move(text)};
  const int64_t ranks = world_size();
  const auto size = static_cast<int64_t>(text.size());
  const Tensor mine = empty({size}, {DType::u8}), all = empty({ranks * size}, {DType::u8});
  if (size > 0) {
    std::memcpy(mine.raw_data(), text.data(), text.size());
    const auto start = Clock::now();
    group_->all_gather(all, mine);
    seconds_waited_ += seconds_since(start);
  }
  const auto* bytes = static_cast<const char*>(all.raw_data());
  std::vector<std::string> texts;
  for (int64_t r = 0; r < ranks; ++r) texts.emplace_back(bytes + r * size, text.size());
  return texts;
}

void DDPStrategy::barrier() {
  if (!failed_ && world_size() > 1) group_->barrier();
}

void DDPStrategy::patient_barrier() {
  if (!failed_ && world_size() > 1) group_->barrier({.timeout = options_.patience});
}

void DDPStrategy::on_rank_zero(const std::function<void()>& action) {
  if (failed_ || world_size() == 1) {
    if (rank() == 0) action();
    return;
  }
  std::string error;
  std::exception_ptr own;
  if (rank() == 0) {
    try {
      action();
    } catch (const std::exception& e) {
      own = std::current_exception();
      error = cat("!", e.what());  // not empty, whatever it says
    }
  }
  patient_barrier();
  error = broadcast(std::move(error));
  if (own) std::rethrow_exception(own);
  if (!error.empty()) fail(error.substr(1), " (on rank 0)");
}

// On other hosts it may take minutes more, so that there is no call in which all could hear of an
// error: the group is given up, with word for those that wait and those that will.
void DDPStrategy::once_per_host(const std::function<void()>& action) {
  if (local_rank() == 0) {
    try {
      action();
    } catch (const std::exception& error) {
      group_->abort(error.what());
      throw;
    }
  }
  patient_barrier();
}

void DDPStrategy::save_checkpoint(const std::string& path, const Checkpoint& checkpoint) {
  on_rank_zero([&] { trainer::save_checkpoint(path, checkpoint); });
}

Checkpoint DDPStrategy::load_checkpoint(const std::string& path) {
  return trainer::load_checkpoint(path);
}

bool DDPStrategy::captures() const {
  return device_group_ != nullptr && device_group_->captures() && !options_.find_unused_parameters;
}

// Each step may take as long as one call: a collective is a part of it.
void DDPStrategy::launch(CapturedGraph& steps, int64_t count) {
  device_group_->watch(cat("launch of ", count, " captured steps"),
                       count * device_group_->timeout(), [&] { steps.launch(); });
}

std::string DDPStrategy::failure_key() const { return cat(group_->name(), "/failed run"); }

void DDPStrategy::on_exception(const std::exception& error) {
  if (!std::exchange(failed_, true) && group_ != nullptr && world_size() > 1) {
    try {
      constexpr dist::Milliseconds kAnswer{250};
      group_->options().store->set(failure_key(), error.what(), kAnswer);
    } catch (const std::exception&) {  // a store that is gone is not met at again
    }
  }
  // Others may wait for this process, and so may what it gave to its GPU for theirs.
  for (const auto& group : {group_, device_group_})
    if (group != nullptr) group->abort(error.what());
  ddp_.reset();
}

void DDPStrategy::note_wait_shares() {
  fit_seconds_ = std::max(seconds_since(fit_start_), 1e-9);
  wait_shares_.assign(static_cast<size_t>(world_size()), 0);
  wait_shares_[static_cast<size_t>(rank())] =
      (ddp_->seconds_waited() + seconds_waited_) / fit_seconds_;
  reduce(wait_shares_, Reduce::max);
}

void DDPStrategy::teardown() {
  if (ddp_ != nullptr && !failed_) note_wait_shares();
  ddp_.reset();
  // The model may be used by one process alone from here on.
  if (model_ != nullptr && options_.sync_batchnorm) convert_sync_batchnorm(*model_, nullptr);
  model_ = nullptr;
  const DeviceBackend& backend = backend_of(device_.type, "teardown");
  if (backend.synchronize != nullptr) backend.synchronize(device_);
}

void convert_sync_batchnorm(nn::Module& model, std::shared_ptr<dist::ProcessGroup> group) {
  const auto replicas = group ? dist::batch_replicas(std::move(group)) : nullptr;
  model.apply([&](nn::Module& m) {
    if (auto* norm = dynamic_cast<nn::BatchNorm*>(&m)) norm->set_replicas(replicas);
  });
}

}  // namespace cairn::trainer
