// OptimizerConfig: what a training module's configure_optimizers() returns.
//   return optim::adam(parameters(), {.lr = 1e-3});
// or, with a schedule:
//   auto optimizer = optim::sgd(parameters(), {.lr = 0.1, .momentum = 0.9});
//   auto schedule = optim::one_cycle_lr(*optimizer, {.max_lr = 1, .total_steps = 1000});
//   return {std::move(optimizer), std::move(schedule), {.interval = optim::Interval::step}};
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "cairn/optim/optimizer.h"
#include "cairn/optim/schedule.h"

namespace cairn {

namespace optim {

enum class Interval { epoch, step };

// When a schedule steps.
struct ScheduleTiming {
  Interval interval = Interval::epoch;
  int64_t frequency = 1;     // every how many epochs (or optimizer steps)
  std::string monitor = {};  // name of the logged value that ReduceLROnPlateau gets
};

}  // namespace optim

struct OptimizerConfig {
  std::unique_ptr<optim::Optimizer> optimizer;  // null: nothing to train
  std::unique_ptr<optim::Schedule> schedule;    // may be null
  optim::Interval interval = optim::Interval::epoch;
  int64_t frequency = 1;
  std::string monitor;

  OptimizerConfig() = default;
  template <class O>
  requires std::is_convertible_v<std::unique_ptr<O>, std::unique_ptr<optim::Optimizer>>
  OptimizerConfig(std::unique_ptr<O> chosen) : optimizer(std::move(chosen)) {}
  OptimizerConfig(std::unique_ptr<optim::Optimizer> chosen, std::unique_ptr<optim::Schedule> with,
                  const optim::ScheduleTiming& timing = {})
      : optimizer(std::move(chosen)),
        schedule(std::move(with)),
        interval(timing.interval),
        frequency(timing.frequency),
        monitor(timing.monitor) {
    check(frequency > 0, "optimizer_config: frequency must be positive, got ", frequency);
  }
};

}  // namespace cairn
