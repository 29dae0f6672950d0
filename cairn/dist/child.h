// Child: one worker process of the launcher, with pipes for its output.
// Invariant: the child is the leader of a process group of its own; that group ends with it, and
// the child ends with the thread that started it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "cairn/dist/socket.h"

namespace cairn::dist {

struct ExitStatus {
  int code = 0;    // where it ended by itself
  int signal = 0;  // else what killed it
  bool well() const { return code == 0 && signal == 0; }
  // As shells tell it: 128 + the signal.
  int shell() const { return signal != 0 ? 128 + signal : code; }
};

// "ended with exit status 3", "was killed by signal 9 (SIGKILL), …" with what that often means.
std::string describe(const ExitStatus& status);
// Whether this process ignores it, as by nohup. Async-signal-safe.
bool is_ignored(int signal) noexcept;
// "SIGKILL"; "signal 34" for those without a name.
std::string signal_name(int signal);

// Where `program` is, as a shell would look for it with this PATH. Error where there is none.
std::string find_program(const std::string& program, const std::string& path);

class Child {
 public:
  // Runs argv with this environment ("NAME=value") and input from /dev/null. Error `launch: program
  // must be executable, got …` where that fails.
  Child(const std::string& file, const std::vector<std::string>& argv,
        const std::vector<std::string>& environment);
  // Kills what is left and waits for it.
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  // Non-blocking read ends of its standard output and error; the owner may close them.
  Socket out, err;

  // Its status, once it has ended; then nothing of its group is left.
  std::optional<ExitStatus> poll();
  // Whether it stands still, as after SIGSTOP.
  bool is_stopped() const noexcept;
  // To its whole group; nothing once it has ended.
  void send(int signal) noexcept;

 private:
  pid_t pid_ = -1;
  std::optional<ExitStatus> ended_;
};

}  // namespace cairn::dist
