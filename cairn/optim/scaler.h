// GradScaler: keeps small gradients of an f16 training above f16's smallest numbers, with PyTorch's
// rules and defaults.
//   optim::GradScaler scaler;
//   backward(scaler.scale(loss));
//   scaler.step(optimizer);  // not done where a gradient is NaN or infinite
//   scaler.update();         // the next scale
// Invariant: scale, counters and the finding of a step live on the device and are read by kernels;
// nothing waits for them but scale_value, skipped_steps and state_dict.
#pragma once

#include <vector>

#include "cairn/optim/optimizer.h"

namespace cairn::optim {

struct GradScalerOptions {
  double init_scale = 65536;
  double growth_factor = 2;
  double backoff_factor = 0.5;
  int64_t growth_interval = 2000;  // steps without overflow until the scale grows
};

class GradScaler {
 public:
  explicit GradScaler(const GradScalerOptions& options = {}, Device device = {});

  // loss * scale, recorded.
  Tensor scale(const Tensor& loss) const;
  // Divides the gradients by the scale and notes whether all were finite; for who looks at
  // gradients before the step (to clip them). Once between two updates.
  void unscale_(Optimizer& optimizer);
  // Unscales, unless that is done, and steps. The optimizer becomes capturable and leaves
  // parameters, states and step counts alone where a gradient was not finite.
  void step(Optimizer& optimizer);
  // What step does to the optimizer; for who calls optimizer.step() itself.
  void connect(Optimizer& optimizer) const;
  // After the step: the scale shrinks after an overflow and grows after growth_interval steps
  // without.
  void update();

  // These wait for the device.
  double scale_value() const;
  int64_t skipped_steps() const;  // since the start
  State state_dict() const;       // numbers only
  void load_state_dict(const State& state);

  // f32 0-d: 1 from unscale_ to update where a gradient was not finite.
  const Tensor& found_inf() const { return found_inf_; }

 private:
  GradScalerOptions options_;
  Tensor scale_;      // f32 0-d
  Tensor found_inf_;  // f32 0-d
  Tensor tracker_;    // i64 0-d: steps since the scale changed
  Tensor skipped_;    // i64 0-d
  std::vector<const Optimizer*> unscaled_;
};

}  // namespace cairn::optim
