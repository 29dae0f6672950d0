// `cairn launch` as a process of its own, and what a test asks about processes and ports.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cairn/dist/child.h"
#include "cairn/dist/worker_output.h"

namespace cairn::test {

bool exists(pid_t pid);
// Whether the process is gone (a zombie that some other process has to reap counts) in this time.
bool gone(pid_t pid, double seconds = 2);
// The numbers of "pid 123" lines.
std::vector<pid_t> pids_in(const std::string& text);
// Of 127.0.0.1, for who does not reuse addresses.
bool port_is_free(int port);

class Launcher {
 public:
  explicit Launcher(const std::vector<std::string>& arguments);

  std::string out, err;
  // Else its standard output is left in the pipe until wait_for_end().
  bool reads_out = true;
  pid_t pid() const { return child_.pid(); }

  // Until it holds, or for so long.
  bool wait_for(const std::function<bool()>& there, double seconds = 10);
  // Its status; all output is then there.
  dist::ExitStatus wait_for_end(double seconds = 10);

 private:
  dist::Child child_;
  dist::WorkerOutput out_, err_;
};

// To the launcher alone, as a terminal's Ctrl-C reaches it: workers have groups of their own.
void interrupt(const Launcher& launcher);

}  // namespace cairn::test
