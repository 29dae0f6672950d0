// A worker as tests of the launcher start it: worker ACTION RANK [ARGUMENT…]. That rank (or every
// one, with "all") does the action; what the others do meanwhile is others().
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "cairn/dist/failure_report.h"
#include "cairn/tensor/error.h"

namespace {

using namespace cairn;

volatile sig_atomic_t interrupted = 0;

std::string variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value != nullptr ? value : "";
}

void wait(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void say_pid() { say("pid " + std::to_string(getpid()) + " port " + variable("MASTER_PORT")); }

// As a trainer ends: the error is reported, there is some clean-up, then status 1.
[[noreturn]] void fail_with(const std::exception& error, double clean_up) {
  dist::report_failure(error);
  wait(clean_up);
  std::exit(1);
}

// A child of its own that takes no hint.
void stubborn_grandchild() {
  if (fork() != 0) return;
  signal(SIGTERM, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  say_pid();
  wait(60);
  _exit(0);
}

void grandchild() {
  stubborn_grandchild();
  say_pid();
  wait(60);
}

// Ends well and leaves its child behind.
void leave() {
  stubborn_grandchild();
  wait(0.3);
}

void show_variables(const std::vector<std::string>& names) {
  for (const std::string& name : names) say(name + "=" + variable(name));
  say(std::string("input ") + (std::getchar() == EOF ? "empty" : "there"));
}

// Lines that are written in two pieces, on both streams at once.
void write_lines(int count) {
  const std::string filler(200, 'x');
  for (int i = 0; i < count; ++i)
    for (std::FILE* stream : {stdout, stderr}) {
      std::fprintf(stream, "line %d %s", i, filler.c_str());
      std::fflush(stream);
      std::fprintf(stream, "%s end\n", filler.c_str());
    }
  std::printf("not ended");
}

void tell_pid() {
  std::fprintf(stderr, "pid %d\n", getpid());
  std::fflush(stderr);
}

// Numbered lines without end.
void flood() {
  tell_pid();
  const std::string filler(80, 'x');
  for (int i = 0;; ++i) std::printf("line %d %s end\n", i, filler.c_str());
}

// Becomes the program, with an output that does not block.
void run_nonblocking(const std::vector<std::string>& program) {
  fcntl(STDOUT_FILENO, F_SETFL, O_NONBLOCK);
  std::vector<char*> arguments;
  for (const std::string& argument : program)
    arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  execv(arguments[0], arguments.data());
}

// Takes Ctrl-C as a wish to stop.
void graceful() {
  signal(SIGINT, [](int) { interrupted = 1; });
  say_pid();
  for (int i = 0; i < 600 && interrupted == 0; ++i) wait(0.1);
  say(interrupted != 0 ? "stopped" : "never stopped");
}

void stubborn() {
  signal(SIGINT, SIG_IGN);
  signal(SIGTERM, SIG_IGN);
  say_pid();
  wait(60);
}

void use_up_memory() {
  const rlimit limit{rlim_t{1} << 28, rlim_t{1} << 28};
  setrlimit(RLIMIT_AS, &limit);
  std::vector<std::string> filled;
  for (;;) filled.emplace_back(size_t{16} << 20, 'x');
}

void report_memory() {
  try {
    use_up_memory();
  } catch (const std::exception& error) {
    fail_with(error, 0);
  }
}

void crash() { raise(SIGSEGV); }

void others(const std::string& action) {
  // They lose their peer, which is no cause, and are quicker to end.
  if (action == "report" || action == "slow_report") {
    wait(0.05);
    fail_with(CommError("all_reduce #3: rank 1 must answer, got its end"), 0);
  }
  if (action == "leave_early") {
    wait(1);
    fail_with(CommError("all_reduce #3: rank 1 died"), 0);
  }
  if (action == "grandchild" || action == "stubborn") {
    wait(0.3);
    std::exit(3);
  }
  if (action == "flood") {
    tell_pid();
    wait(0.5);
    std::exit(3);
  }
  wait(60);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string action = argv[1], who = argv[2];
  const std::vector<std::string> rest(argv + 3, argv + argc);
  const Error broken("data: image 7 must be whole, got half");
  const std::map<std::string, std::function<void()>> actions = {
      {"exit", [&] { std::exit(std::stoi(rest.at(0))); }},
      {"kill", [&] { raise(std::stoi(rest.at(0))); }},
      {"abort", [] { std::abort(); }},
      {"crash", crash},
      {"throw", [] { throw Error("model: width must be even, got 3"); }},
      {"memory", report_memory},
      {"memory_uncaught", use_up_memory},
      {"report", [&] { fail_with(broken, 0.15); }},
      {"slow_report", [&] { fail_with(broken, 30); }},
      {"variables", [&] { show_variables(rest); }},
      {"lines", [&] { write_lines(std::stoi(rest.at(0))); }},
      {"flood", flood},
      {"nonblocking", [&] { run_nonblocking(rest); }},
      {"graceful", graceful},
      {"stubborn", stubborn},
      {"grandchild", grandchild},
      {"leave", leave},
      {"leave_early", [] {}},
  };
  if (who == "all" || who == variable("RANK"))
    actions.at(action)();
  else
    others(action);
  return 0;
}
