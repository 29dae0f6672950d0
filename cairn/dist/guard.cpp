// Guard.
#include "cairn/dist/guard.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace cairn::dist {
namespace {

// The words on the channel: a group to watch, a negative one to forget, 0 to go.
constexpr pid_t kGo = 0;

// The guard itself. It was forked from a program that may have threads: async-signal-safe calls
// alone. It keeps nothing of its parent's open, since others may wait for the end of a pipe.
[[noreturn]] void stand_guard(int channel, int other_end) {
  static std::array<pid_t, Guard::kMostGroups> groups;
  size_t count = 0;
  setsid();  // whatever is sent to the launcher's group is not for the guard
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);
  close(other_end);  // also where the kernel has no close_range()
  dup2(channel, 0);
  syscall(SYS_close_range, 1u, ~0u, 0u);
  [[maybe_unused]] const int ignored = chdir("/");
  for (;;) {
    pid_t word = kGo;
    const ssize_t got = read(0, &word, sizeof word);
    if (got < 0 && errno == EINTR) continue;
    if (got != sizeof word) break;  // the launcher is gone
    if (word == kGo) _exit(0);
    if (word > 0 && count < groups.size()) groups[count++] = word;
    for (size_t i = 0; word < 0 && i < count; ++i)
      if (groups[i] == -word) {
        groups[i] = groups[--count];
        break;
      }
  }
  for (size_t i = 0; i < count; ++i) kill(-groups[i], SIGKILL);
  _exit(0);
}

}  // namespace

Guard::Guard() {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
    fail("launch: a socket must be there, got: ", std::strerror(errno));
  const Socket its_end(ends[0]);
  channel_ = Socket(ends[1]);
  pid_ = _Fork();  // without what others want done at a fork()
  if (pid_ < 0) fail("launch: a process must start, got: ", std::strerror(errno));
  if (pid_ == 0) stand_guard(its_end.fd(), channel_.fd());
}

Guard::~Guard() {
  tell(kGo);
  channel_.close();
  waitpid(pid_, nullptr, 0);
}

void Guard::watch(pid_t group) { tell(group); }
void Guard::forget(pid_t group) { tell(-group); }

// Should the guard have been killed, the workers still end with this process by PR_SET_PDEATHSIG.
void Guard::tell(pid_t word) {
  while (send(channel_.fd(), &word, sizeof word, MSG_NOSIGNAL) < 0 && errno == EINTR) {
  }
}

}  // namespace cairn::dist
