// Progress: where a run stands. It is the only state of the loops.
// Invariant: a checkpoint holds it, and a loop started from it does exactly what is left; hooks of
// what was already done are not called again.
#pragma once

#include <cstdint>

#include "cairn/trainer/value.h"

namespace cairn::trainer {

struct Progress {
  int64_t epoch = 0;          // epochs finished; the number of the running one, counted from 0
  int64_t batch = 0;          // training batches done in the running epoch
  int64_t global_step = 0;    // optimizer steps done
  int64_t total_batches = 0;  // training batches done in all epochs
  int64_t validated_at = 0;   // total_batches when validation last ran; 0: never in the loop
  int64_t window = 0;         // batches that added to the gradient since the last step
  bool epoch_ended = false;   // the running epoch is complete: only `epoch` must advance
  double seconds = 0;         // training time of earlier fits of the same run and this one

  bool operator==(const Progress&) const = default;
};

inline State to_state(const Progress& p) {
  return {{"epoch", p.epoch},
          {"batch", p.batch},
          {"global_step", p.global_step},
          {"total_batches", p.total_batches},
          {"validated_at", p.validated_at},
          {"window", p.window},
          {"epoch_ended", p.epoch_ended},
          {"seconds", p.seconds}};
}

inline Progress progress_from(const State& state) {
  const auto number = [&](const char* key) { return require(state, key, "progress").as_int(); };
  Progress p;
  p.epoch = number("epoch");
  p.batch = number("batch");
  p.global_step = number("global_step");
  p.total_batches = number("total_batches");
  p.validated_at = number("validated_at");
  p.window = number("window");
  p.epoch_ended = require(state, "epoch_ended", "progress").as_bool();
  p.seconds = require(state, "seconds", "progress").as_double();
  return p;
}

}  // namespace cairn::trainer
