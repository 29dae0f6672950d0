// DDPStrategy: one process for each device; all train the same model, each on its share of the
// data. Invariant: after every optimizer step all processes have the same parameters, bit for bit.
#pragma once

#include <memory>
#include <optional>

#include "cairn/dist/ddp.h"
#include "cairn/dist/environment.h"
#include "cairn/trainer/strategy.h"

namespace cairn::trainer {

struct DDPStrategyOptions {
  // "auto" (the fastest for these processes: shared memory on one host, NCCL for GPUs), "shm",
  // "ring", "local", "nccl".
  std::string process_group_backend = "auto";
  // Of meeting and of every collective. (Lightning waits for 30 minutes.)
  dist::Milliseconds timeout = dist::kDefaultTimeout;
  // Of waiting for what one process does for others: prepare_data(), a checkpoint that is written,
  // Strategy::on_rank_zero(); and for those that have more batches to evaluate. One that fails or
  // dies meanwhile is noticed as soon as in any other wait; this is for one that hangs.
  dist::Milliseconds patience = std::chrono::minutes(30);
  // See dist::DdpOptions.
  double bucket_cap_mb = 25;
  bool broadcast_buffers = true;
  bool find_unused_parameters = false;
  std::string gradient_compression = "none";  // "none", "bf16"
  // Batch normalisation over the batches of all processes; the trainer's option sync_batchnorm
  // switches it on too.
  bool sync_batchnorm = false;
  // The processes' group, of the host's memory, where the program has one: ranks may then be
  // threads, too, each with the GPU of its rank's number. Else it is made by the variables of
  // whoever started this process (see dist/environment.h).
  std::shared_ptr<dist::ProcessGroup> group = nullptr;
};

class DDPStrategy : public Strategy {
 public:
  explicit DDPStrategy(DDPStrategyOptions options = {});

  std::string_view name() const override { return "ddp"; }
  // The device of this process, and where it stands; the trainer's options say so.
  void place(Device device, dist::ClusterEnvironment environment);
  void set_sync_batchnorm() { options_.sync_batchnorm = true; }
  // After a run that failed the processes of a group that it made itself meet again.
  void start() override;
  int rank() const override;
  int local_rank() const override;
  int world_size() const override;
  Device root_device() const override { return device_; }
  void setup(nn::Module& model) override;
  void connect(nn::Module& model, optim::Optimizer& optimizer) override;
  void backward(const Tensor& loss, bool sync) override;
  void optimizer_step(optim::Optimizer& optimizer) override;
  using Strategy::reduce;
  void reduce(std::span<double> values, Reduce how) override;
  std::string broadcast(std::string text) override;
  std::vector<std::string> all_gather(std::string text) override;
  std::vector<std::string> all_gather_equal(std::string text) override;
  void barrier() override;
  void patient_barrier() override;
  void on_rank_zero(const std::function<void()>& action) override;
  void once_per_host(const std::function<void()>& action) override;
  void save_checkpoint(const std::string& path, const Checkpoint& checkpoint) override;
  Checkpoint load_checkpoint(const std::string& path) override;
  bool captures() const override;
  void launch(CapturedGraph& steps, int64_t count) override;
  void on_exception(const std::exception& error) override;
  void teardown() override;

  const DDPStrategyOptions& options() const { return options_; }
  // Of the host's memory, null before start().
  const std::shared_ptr<dist::ProcessGroup>& group() const { return group_; }
  // Of the running fit, else null.
  dist::DistributedDataParallel* ddp() const { return ddp_.get(); }
  // Of the last fit: the share of it that each process waited for others, by rank. The slowest one
  // waits least.
  const std::vector<double>& wait_shares() const { return wait_shares_; }
  double fit_seconds() const { return fit_seconds_; }

 private:
  void note_wait_shares();
  std::string failure_key() const;  // in the store: that a run of the group failed on some process

  DDPStrategyOptions options_;
  Device device_ = kCPU;
  dist::ClusterEnvironment environment_;
  std::shared_ptr<dist::ProcessGroup> group_;
  std::shared_ptr<dist::ProcessGroup> device_group_;  // of the gradients; on a GPU another one
  std::unique_ptr<dist::DistributedDataParallel> ddp_;
  nn::Module* model_ = nullptr;  // of the running fit
  std::chrono::steady_clock::time_point fit_start_;
  double fit_seconds_ = 0, seconds_waited_ = 0;  // the latter beside ddp_'s
  std::vector<double> wait_shares_;
  bool failed_ = false;  // the last run
  int runs_ = 0;         // that were started, the same on all processes
};

// Lets every batch normalisation of the model take the batches of all ranks as one. Its type, its
// parameters and the names in its state dict stay. A null group undoes it.
void convert_sync_batchnorm(nn::Module& model, std::shared_ptr<dist::ProcessGroup> group);

}  // namespace cairn::trainer
