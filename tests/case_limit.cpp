// Every test case has a deadline: a program whose case has no end says which one, where it stands
// and what its children do, and fails. CTest's own limit would tell none of that.
#include <execinfo.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Listener = Catch::EventListenerBase;
#else
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#include <catch2/catch.hpp>
using Listener = Catch::TestEventListenerBase;
#endif

namespace {

#if defined(__has_feature)
#define CAIRN_HAS_FEATURE(name) __has_feature(name)
#else
#define CAIRN_HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    CAIRN_HAS_FEATURE(address_sanitizer) || CAIRN_HAS_FEATURE(thread_sanitizer)
constexpr int kUsual = 3000;
#else
constexpr int kUsual = 600;  // well below what CTest gives a part
#endif

int seconds() {
  const char* given = std::getenv("CAIRN_CASE_SECONDS");
  return given == nullptr ? kUsual : std::atoi(given);
}

std::string report, children;

void put(const std::string& text) {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
}

void put_stack(int = 0) {
  std::array<void*, 20> frames;
  put("thread:\n");
  backtrace_symbols_fd(frames.data(), backtrace(frames.data(), frames.size()), STDERR_FILENO);
}

void put_stacks() {
  signal(SIGRTMAX, put_stack);
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    syscall(SYS_tgkill, getpid(), std::stoi(thread.path().filename()), SIGRTMAX);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

void end_here(int) {
  // Not all of this is safe in a handler; the alarm ends it where it stands still.
  signal(SIGALRM, SIG_DFL);
  alarm(20);
  put(report);
  sigset_t own;
  sigemptyset(&own);
  sigaddset(&own, SIGRTMAX);
  pthread_sigmask(SIG_UNBLOCK, &own, nullptr);
  std::fflush(nullptr);
  put_stacks();
  if (std::system(children.c_str()) != 0) put("no list of children\n");
  put(report);  // where only the end is seen
  _exit(1);
}

class CaseLimit : public Listener {
 public:
  using Listener::Listener;

  void testRunStarting(const Catch::TestRunInfo&) override {
    std::array<void*, 1> frame;
    backtrace(frame.data(), frame.size());  // loads what it needs
    const std::string pid = std::to_string(getpid());
    children =
        "ps -o pid,ppid,stat,etime,wchan:20,args --forest --ppid " + pid + " --pid " + pid + " >&2";
    struct sigaction action {};
    action.sa_handler = end_here;
    sigaction(SIGRTMAX, &action, nullptr);
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGRTMAX;
    there_ = timer_create(CLOCK_MONOTONIC, &event, &timer_) == 0;
    if (!there_) put("tests: no timer for the cases' deadline\n");
  }
  void testCaseStarting(const Catch::TestCaseInfo& info) override {
    report = "tests: '" + info.name + "' must end within " + std::to_string(seconds()) +
             " s, got no end\n";
    set(seconds());
  }
  void testCaseEnded(const Catch::TestCaseStats&) override { set(0); }

 private:
  void set(int after) {
    const itimerspec when{{}, {after, 0}};
    if (there_) timer_settime(timer_, 0, &when, nullptr);
  }

  timer_t timer_{};
  bool there_ = false;
};

}  // namespace

CATCH_REGISTER_LISTENER(CaseLimit)
