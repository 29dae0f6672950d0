// Guard: a small process that ends the workers' process groups when the launcher dies, however it
// dies.
// Invariant: it lives exactly as long as the launcher's end of a channel is open, and knows every
// group that is alive.
#pragma once

#include <sys/types.h>

#include "cairn/dist/socket.h"

namespace cairn::dist {

class Guard {
 public:
  Guard();
  ~Guard();  // it ends without killing anybody
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

  static constexpr int kMostGroups = 4096;
  void watch(pid_t group);
  void forget(pid_t group);

 private:
  void tell(pid_t word);
  Socket channel_;
  pid_t pid_ = -1;
};

}  // namespace cairn::dist
