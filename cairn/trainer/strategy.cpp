// SingleDeviceStrategy: everything happens here and now.
#include "cairn/trainer/strategy.h"

#include "cairn/autograd/engine.h"

namespace cairn::trainer {

void SingleDeviceStrategy::setup(nn::Module& model) { model.to(device_); }

void SingleDeviceStrategy::backward(const Tensor& loss, bool) { cairn::backward(loss); }

void SingleDeviceStrategy::optimizer_step(optim::Optimizer& optimizer) { optimizer.step(); }

void SingleDeviceStrategy::save_checkpoint(const std::string& path, const Checkpoint& checkpoint) {
  trainer::save_checkpoint(path, checkpoint);
}

Checkpoint SingleDeviceStrategy::load_checkpoint(const std::string& path) {
  return trainer::load_checkpoint(path);
}

void SingleDeviceStrategy::teardown() {
  const DeviceBackend& backend = backend_of(device_.type, "teardown");
  if (backend.synchronize != nullptr) backend.synchronize(device_);
}

}  // namespace cairn::trainer
