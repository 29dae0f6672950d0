// Strategy: where and how a model is trained: device, processes, gradients, files.
// Invariant: a strategy has no loop, and it hooks parameters instead of wrapping the module.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cairn/optim/optimizer.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/device.h"
#include "cairn/tensor/tensor.h"
#include "cairn/trainer/checkpoint.h"
#include "cairn/trainer/metrics.h"

namespace cairn::trainer {

class Strategy {
 public:
  virtual ~Strategy() = default;

  virtual std::string_view name() const = 0;
  // At the start of a run: meets the other processes, unless that was done before.
  virtual void start() {}
  // Which process of how many this is; known after start(). local_rank: among those of this host.
  virtual int rank() const { return 0; }
  virtual int local_rank() const { return 0; }
  virtual int world_size() const { return 1; }
  bool is_global_zero() const { return rank() == 0; }
  // Where this process's share of the model lives.
  virtual Device root_device() const = 0;
  // Before configure_optimizers: moves the model's tensors to the device.
  virtual void setup(nn::Module& model) = 0;
  // After configure_optimizers, in a fit only.
  virtual void connect(nn::Module&, optim::Optimizer&) {}
  // `sync`: the accumulation window closes, so gradients must be complete afterwards.
  virtual void backward(const Tensor& loss, bool sync) = 0;
  virtual void optimizer_step(optim::Optimizer& optimizer) = 0;

  // Collective: every process calls these in the same order.
  // Each number becomes one from those of every process; mean weighs all alike.
  virtual void reduce(std::span<double> /*values*/, Reduce /*how*/) {}
  double reduce(double value, Reduce how) {
    reduce(std::span(&value, 1), how);
    return value;
  }
  bool any(bool value) { return reduce(value ? 1 : 0, Reduce::max) != 0; }
  bool all(bool value) { return reduce(value ? 1 : 0, Reduce::min) != 0; }
  // Rank 0's text.
  virtual std::string broadcast(std::string text) { return text; }
  // The texts of all, by rank. After on_exception() only this process's own.
  virtual std::vector<std::string> all_gather(std::string text) { return {std::move(text)}; }
  // The same by one exchange, for texts that are equally long on all processes.
  virtual std::vector<std::string> all_gather_equal(std::string text) { return {std::move(text)}; }
  virtual void barrier() {}
  // The same where some have more to do before it than others: they are waited for longer than
  // other calls wait.
  virtual void patient_barrier() {}
  // Rank 0 does it while the others wait patiently; where it throws, all throw.
  virtual void on_rank_zero(const std::function<void()>& action) { action(); }
  // One process of each host does it while the others wait patiently. Where one throws, what the
  // others hear ends their run.
  virtual void once_per_host(const std::function<void()>& action) { action(); }
  // Rank 0 writes.
  virtual void save_checkpoint(const std::string& path, const Checkpoint& checkpoint) = 0;
  virtual Checkpoint load_checkpoint(const std::string& path) = 0;
  // Whether backward and optimizer_step may be captured and launched again (see capture.h).
  virtual bool captures() const { return false; }
  // Launches captured steps, `count` of them.
  virtual void launch(CapturedGraph& steps, int64_t /*count*/) { steps.launch(); }
  // The run failed: from here on nothing may wait for other processes.
  virtual void on_exception(const std::exception&) {}
  // The run is over, well or not.
  virtual void teardown() = 0;
};

// One process, one device.
class SingleDeviceStrategy : public Strategy {
 public:
  explicit SingleDeviceStrategy(Device device = {}) : device_(device) {}

  std::string_view name() const override { return "single_device"; }
  Device root_device() const override { return device_; }
  void setup(nn::Module& model) override;
  void backward(const Tensor& loss, bool sync) override;
  void optimizer_step(optim::Optimizer& optimizer) override;
  void save_checkpoint(const std::string& path, const Checkpoint& checkpoint) override;
  Checkpoint load_checkpoint(const std::string& path) override;
  bool captures() const override { return device_.type == DeviceType::cuda; }
  // Waits for the device, so that its last errors come out and times of a run are whole.
  void teardown() override;

 private:
  Device device_;
};

}  // namespace cairn::trainer
