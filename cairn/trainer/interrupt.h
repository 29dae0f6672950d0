// Ctrl-C during a run.
// Invariant: the signal handler only sets a flag and is gone when the scope ends; a second Ctrl-C
// ends the process at once, as without us.
#pragma once

#include <csignal>

#include "cairn/tensor/error.h"

namespace cairn::trainer {

// Thrown by the trainer after the batch in which Ctrl-C came.
class Interrupted : public Error {
 public:
  using Error::Error;
};

// Catches SIGINT while alive, unless the program has a handler of its own for it.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  static bool requested();

 private:
  bool installed_ = false;
  struct sigaction before_ {};
};

}  // namespace cairn::trainer
