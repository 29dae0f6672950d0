// Child: fork, exec and the end of a worker process.
#include "cairn/dist/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace cairn::dist {
namespace {

struct Pipe {
  Socket read, write;
};

Pipe make_pipe() {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0)
    fail("launch: a pipe must be there, got: ", std::strerror(errno));
  return {Socket(ends[0]), Socket(ends[1])};
}

std::vector<char*> pointers(const std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (const std::string& text : texts) out.push_back(const_cast<char*>(text.c_str()));
  out.push_back(nullptr);
  return out;
}

// What the child needs after fork(), where nothing may be allocated any more.
struct Plan {
  const char* file;
  char* const* argv;
  char* const* environment;
  int in, out, err, failure;
  pid_t parent;
};

// Only async-signal-safe calls: other threads of the parent may have held locks.
[[noreturn]] void become(const Plan& plan) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have died before that was set.
  if (getppid() != plan.parent) kill(getpid(), SIGKILL);
  sigset_t none;
  sigemptyset(&none);
  for (const int signal : {SIGPIPE, SIGCHLD, SIGQUIT}) ::signal(signal, SIG_DFL);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP})
    if (!is_ignored(signal)) ::signal(signal, SIG_DFL);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  const bool wired = dup2(plan.in, STDIN_FILENO) >= 0 && dup2(plan.out, STDOUT_FILENO) >= 0 &&
                     dup2(plan.err, STDERR_FILENO) >= 0;
  if (wired) execve(plan.file, plan.argv, plan.environment);
  const int reason = errno;
  [[maybe_unused]] const ssize_t told = write(plan.failure, &reason, sizeof reason);
  _exit(127);
}

// Descriptors 0 to 2 may be closed in the parent; a pipe there would be lost by the dup2()s.
Socket above_stdio(Socket fd) {
  if (fd.fd() > STDERR_FILENO) return fd;
  return Socket(fcntl(fd.fd(), F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
}

}  // namespace

bool is_ignored(int signal) noexcept {
  struct sigaction now {};
  return sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN;
}

std::string signal_name(int signal) {
  const char* name = sigabbrev_np(signal);
  return name != nullptr ? cat("SIG", name) : cat("signal ", signal);
}

std::string describe(const ExitStatus& status) {
  if (status.signal == 0) return cat("ended with exit status ", status.code);
  const char* meaning = "";
  switch (status.signal) {
    case SIGKILL:
      meaning = ", which may be the kernel's out-of-memory killer";
      break;
    case SIGABRT:
      meaning = ", as by an exception that nobody caught or a failed assertion";
      break;
    case SIGSEGV:
      meaning = ", by an access to memory that is not its own";
      break;
    case SIGBUS:
      meaning = ", as where a mapped file or shared memory has no room left";
      break;
    case SIGILL:
      meaning = ", by an instruction that this processor does not have";
      break;
    default:
      break;
  }
  return cat("was killed by signal ", status.signal, " (", signal_name(status.signal), ")",
             meaning);
}

std::string find_program(const std::string& program, const std::string& path) {
  check(!program.empty(), "launch: program must be given, got nothing");
  if (program.find('/') != std::string::npos) return program;
  for (size_t start = 0; start <= path.size();) {
    const size_t end = std::min(path.find(':', start), path.size());
    const std::string folder = path.substr(start, end - start);
    std::string file = cat(folder.empty() ? "." : folder, "/", program);
    if (access(file.c_str(), X_OK) == 0) return file;
    start = end + 1;
  }
  fail("launch: program must be on the PATH, got '", program, "'; write ./", program,
       " for one of this folder");
}

Child::Child(const std::string& file, const std::vector<std::string>& argv,
             const std::vector<std::string>& environment) {
  Pipe to_out = make_pipe(), to_err = make_pipe(), failure = make_pipe();
  const Socket null = above_stdio(Socket(open("/dev/null", O_RDONLY | O_CLOEXEC)));
  to_out.write = above_stdio(std::move(to_out.write));
  to_err.write = above_stdio(std::move(to_err.write));
  failure.write = above_stdio(std::move(failure.write));
  const std::vector<char*> args = pointers(argv), variables = pointers(environment);
  const Plan plan{file.c_str(),      args.data(),       variables.data(),   null.fd(),
                  to_out.write.fd(), to_err.write.fd(), failure.write.fd(), getpid()};
  pid_ = _Fork();  // without what others want done at a fork()
  if (pid_ < 0) fail("launch: a process must start, got: ", std::strerror(errno));
  if (pid_ == 0) become(plan);
  // Both sides set it, so that it is set whoever runs first.
  setpgid(pid_, pid_);
  failure.write.close();
  int reason = 0;
  ssize_t got;
  do got = read(failure.read.fd(), &reason, sizeof reason);
  while (got < 0 && errno == EINTR);
  if (got == sizeof reason) {
    waitpid(pid_, nullptr, 0);
    fail("launch: program must be executable, got '", file, "': ", std::strerror(reason));
  }
  out = std::move(to_out.read);
  err = std::move(to_err.read);
  for (const int fd : {out.fd(), err.fd()}) fcntl(fd, F_SETFL, O_NONBLOCK);
}

Child::~Child() {
  if (ended_) return;
  send(SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Child::send(int signal) noexcept {
  if (!ended_) kill(-pid_, signal);
}

bool Child::is_stopped() const noexcept {
  siginfo_t info{};
  return !ended_ &&
         waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid != 0;
}

std::optional<ExitStatus> Child::poll() {
  if (ended_) return ended_;
  siginfo_t info{};
  if (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
      info.si_pid == 0)
    return std::nullopt;
  // Its own children go too. It is not reaped yet, so that nobody else can have its number.
  send(SIGKILL);
  waitpid(pid_, nullptr, 0);
  ended_ =
      info.si_code == CLD_EXITED ? ExitStatus{info.si_status, 0} : ExitStatus{0, info.si_status};
  return ended_;
}

}  // namespace cairn::dist
