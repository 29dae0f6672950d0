// Strategy: where and how a model is trained: device, processes, gradients, files.
// Invariant: a strategy has no loop, and it hooks parameters instead of wrapping the module.
#pragma once

#include <string>
#include <string_view>

#include "cairn/optim/optimizer.h"
#include "cairn/tensor/device.h"
#include "cairn/tensor/tensor.h"
#include "cairn/trainer/checkpoint.h"
#include "cairn/trainer/metrics.h"

namespace cairn::trainer {

class Strategy {
 public:
  virtual ~Strategy() = default;

  virtual std::string_view name() const = 0;
  // Where this process's share of the model lives.
  virtual Device root_device() const = 0;
  // Before configure_optimizers: moves the model's tensors to the device.
  virtual void setup(nn::Module& model) = 0;
  // `sync`: the accumulation window closes, so gradients must be complete afterwards.
  virtual void backward(const Tensor& loss, bool sync) = 0;
  virtual void optimizer_step(optim::Optimizer& optimizer) = 0;
  // One number from that of every process.
  virtual double reduce(double value, Reduce how) = 0;
  virtual void save_checkpoint(const std::string& path, const Checkpoint& checkpoint) = 0;
  virtual Checkpoint load_checkpoint(const std::string& path) = 0;
  // Whether backward and optimizer_step may be captured and launched again (see capture.h).
  virtual bool captures() const { return false; }
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
  double reduce(double value, Reduce how) override;
  void save_checkpoint(const std::string& path, const Checkpoint& checkpoint) override;
  Checkpoint load_checkpoint(const std::string& path) override;
  bool captures() const override { return device_.type == DeviceType::cuda; }
  // Waits for the device, so that its last errors come out and times of a run are whole.
  void teardown() override;

 private:
  Device device_;
};

}  // namespace cairn::trainer
