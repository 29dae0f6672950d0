// The launcher from outside: what workers are told, what a user sees of them, and that none is
// left.
#include "cairn/dist/launcher.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <thread>

#include "tests/catch.h"
#include "tests/dist/launcher_process.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using test::exists;
using test::gone;
using test::interrupt;
using test::Launcher;
using test::pids_in;
using test::port_is_free;
using Clock = std::chrono::steady_clock;

namespace {

const std::string kWorker = std::string(CAIRN_BIN_DIR) + "/dist_worker";

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

struct Run {
  LaunchResult result;
  std::map<int, std::vector<std::string>> out, err;  // lines by rank
  double seconds = 0;
};

Run run(LaunchOptions options, const std::vector<std::string>& arguments) {
  Run run;
  options.program = {kWorker};
  options.program.insert(options.program.end(), arguments.begin(), arguments.end());
  options.show = [&](const OutputLine& line) {
    (line.error ? run.err : run.out)[line.rank].emplace_back(line.text);
    return "";
  };
  const auto start = Clock::now();
  run.result = launch(options);
  run.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return run;
}

}  // namespace

TEST_CASE("dist: workers get torchrun's variables, a secret and their share of the processors") {
  unsetenv("CAIRN_NUM_THREADS");
  setenv("CAIRN_ENVIRONMENT", "single", 1);
  const Run r = run({.workers = 2, .environment = {"MINE=x=y"}},
                    {"variables", "all", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
                     "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "CAIRN_ENVIRONMENT", "MINE",
                     "MASTER_PORT", "CAIRN_RUN_ID", "CAIRN_SECRET", "CAIRN_NUM_THREADS"});
  unsetenv("CAIRN_ENVIRONMENT");
  REQUIRE(r.result.exit_status == 0);
  CHECK(r.result.text().empty());
  const std::vector<std::string> first(r.out.at(1).begin(), r.out.at(1).begin() + 9);
  CHECK(first == std::vector<std::string>{
                     "RANK=1", "LOCAL_RANK=1", "WORLD_SIZE=2", "LOCAL_WORLD_SIZE=2", "GROUP_RANK=0",
                     "NODE_RANK=0", "MASTER_ADDR=127.0.0.1", "CAIRN_ENVIRONMENT=", "MINE=x=y"});
  CHECK(r.out.at(1).back() == "input empty");
  // Port, run id, secret and threads are the run's.
  for (size_t i = 9; i < 13; ++i) CHECK(r.out.at(0)[i] == r.out.at(1)[i]);
  CHECK(r.out.at(0)[11].size() == std::string("CAIRN_SECRET=").size() + 64);
  CHECK(std::stoi(r.out.at(0)[12].substr(18)) >= 1);
}

TEST_CASE("dist: of several hosts, each starts its own workers with a common secret") {
  LaunchOptions options{.workers = 2, .hosts = {"n1", "n2"}, .node_rank = 1};
  const std::vector<std::string> show = {
      "variables",  "all",         "RANK",        "LOCAL_RANK",   "WORLD_SIZE",
      "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "CAIRN_SECRET", "CAIRN_RUN_ID"};
  CHECK_THROWS_WITH(run(options, show), Contains("launch: CAIRN_SECRET must be set for several "
                                                 "hosts, got nothing; "));
  setenv("CAIRN_SECRET", "common", 1);
  const Run r = run(options, show);
  unsetenv("CAIRN_SECRET");
  const std::vector<std::string> first(r.out.at(3).begin(), r.out.at(3).begin() + 8);
  CHECK(first == std::vector<std::string>{"RANK=3", "LOCAL_RANK=1", "WORLD_SIZE=4", "GROUP_RANK=1",
                                          "MASTER_ADDR=n1", "MASTER_PORT=29440",
                                          "CAIRN_SECRET=common", "CAIRN_RUN_ID=n1:29440"});
}

TEST_CASE("dist: lines of workers come whole, in order, and to the last") {
  const int count = 500;
  const Run r = run({.workers = 3}, {"lines", "all", std::to_string(count)});
  REQUIRE(r.result.exit_status == 0);
  const std::string filler(200, 'x');
  for (int rank = 0; rank < 3; ++rank) {
    REQUIRE(r.out.at(rank).size() == count + 1);
    REQUIRE(r.err.at(rank).size() == count);
    bool whole = true;
    for (int i = 0; i < count; ++i) {
      const std::string line = cat("line ", i, " ", filler, filler, " end");
      whole = whole && r.out.at(rank)[static_cast<size_t>(i)] == line &&
              r.err.at(rank)[static_cast<size_t>(i)] == line;
    }
    CHECK(whole);
    CHECK(r.out.at(rank).back() == "not ended");
  }
}

TEST_CASE("dist: a worker's end is told by rank, reason and last lines, and ends the run") {
  struct Case {
    std::vector<std::string> arguments;
    int status;
    std::string reason;
  };
  const std::string abort =
      "rank 1 was killed by signal 6 (SIGABRT), as by an exception that "
      "nobody caught or a failed assertion";
  const std::vector<Case> cases = {
      {{"exit", "1", "3"}, 3, "rank 1 ended with exit status 3\n"},
      {{"kill", "1", "9"},
       137,
       "rank 1 was killed by signal 9 (SIGKILL), which may be the kernel's out-of-memory killer\n"},
      {{"kill", "1", "15"}, 143, "rank 1 was killed by signal 15 (SIGTERM)\n"},
      {{"abort", "1"}, 134, abort + "\n"},
      {{"crash", "1"},
       139,
       "rank 1 was killed by signal 11 (SIGSEGV), by an access to memory that is not its own\n"},
      {{"throw", "1"}, 134, abort + "\nthe last lines of rank 1:\n"},
      {{"memory", "1"}, 1, "rank 1 ended with exit status 1: out of memory (std::bad_alloc)\n"},
      {{"memory_uncaught", "1"}, 134, abort + ": out of memory (std::bad_alloc)\n"}};
  for (const Case& c : cases) {
    // These ends are the sanitizer's own where it watches.
    if (kSanitized && (c.arguments[0] == "crash" || c.arguments[0].rfind("memory", 0) == 0))
      continue;
    const Run r = run({.workers = 3}, c.arguments);
    INFO(c.arguments[0] << ": " << r.result.text());
    CHECK(r.result.exit_status == c.status);
    CHECK(r.result.text().rfind(c.reason, 0) == 0);
    REQUIRE(r.result.failures.size() == 3);
    CHECK(r.result.failures[0].rank == 1);
    CHECK_FALSE(r.result.failures[0].consequence);
    CHECK(r.result.failures[1].was_told);
    CHECK(r.seconds < 2);
  }
  CHECK_THAT(run({.workers = 2}, {"throw", "1"}).result.text(),
             Contains("  what():  model: width must be even, got 3\n"));
}

TEST_CASE("dist: the cause is told first although its consequence ended first") {
  const Run r = run({.workers = 2}, {"report", "1"});
  INFO(r.result.text());
  CHECK(r.result.text() ==
        "rank 1 ended with exit status 1: data: image 7 must be whole, got half\n"
        "in consequence, rank 0 ended with exit status 1: all_reduce #3: rank 1 must answer, got "
        "its end\n");
  CHECK(r.result.exit_status == 1);
  // One that cleans up for ever is ended, and its error stays the cause.
  const Run slow = run({.workers = 2}, {"slow_report", "1"});
  INFO(slow.result.text());
  CHECK(slow.result.text().rfind("rank 1 failed: data: image 7 must be whole, got half\n", 0) == 0);
  CHECK(slow.result.exit_status == 1);
  CHECK(slow.seconds < 2);
}

TEST_CASE("dist: a worker that takes no hint is killed, and so are its children") {
  for (const char* action : {"stubborn", "grandchild"}) {
    const Run r = run({.workers = 2}, {action, "0"});
    INFO(action << ": " << r.result.text());
    CHECK(r.result.exit_status == 3);
    CHECK(r.result.failures.at(0).rank == 1);
    CHECK(r.result.failures.at(1).was_told);
    CHECK(r.seconds < 0.3 + 2);
    for (const std::string& line : r.out.at(0)) CHECK(gone(pids_in(line).at(0)));
  }
  // Nor does a child outlive a worker that ends well.
  const Run left = run({.workers = 2}, {"leave", "all"});
  CHECK(left.result.exit_status == 0);
  CHECK(gone(pids_in(left.out.at(1).at(0)).at(0)));
}

TEST_CASE("dist: one Ctrl-C lets workers stop, a second one ends them at once") {
  Launcher kind({"--workers", "2", "--", kWorker, "graceful", "all"});
  REQUIRE(kind.wait_for([&] { return pids_in(kind.out).size() == 2; }));
  auto start = Clock::now();
  interrupt(kind);
  const ExitStatus status = kind.wait_for_end();
  CHECK(status.shell() == 130);
  CHECK(Clock::now() - start < std::chrono::seconds(5));
  CHECK_THAT(kind.out, Contains("[0] stopped\n") && Contains("[1] stopped\n"));
  CHECK(kind.err == "cairn launch: interrupted by SIGINT\n");

  Launcher hard({"--workers", "2", "--no-prefix", "--", kWorker, "stubborn", "all"});
  REQUIRE(hard.wait_for([&] { return pids_in(hard.out).size() == 2; }));
  CHECK(hard.out.rfind("pid ", 0) == 0);
  interrupt(hard);
  std::this_thread::sleep_for(Milliseconds(200));
  for (const pid_t pid : pids_in(hard.out)) CHECK(exists(pid));
  start = Clock::now();
  interrupt(hard);
  CHECK(hard.wait_for_end().shell() == 130);
  CHECK(Clock::now() - start < std::chrono::seconds(1));
  for (const pid_t pid : pids_in(hard.out)) CHECK(gone(pid));
}

TEST_CASE("dist: what the launcher is told to ignore does not end it") {
  // As nohup and a script's & leave it.
  const auto hangup = ::signal(SIGHUP, SIG_IGN);
  Launcher launcher({"--workers", "2", "--", kWorker, "graceful", "all"});
  ::signal(SIGHUP, hangup);
  REQUIRE(launcher.wait_for([&] { return pids_in(launcher.out).size() == 2; }));
  ::kill(launcher.pid(), SIGHUP);
  std::this_thread::sleep_for(Milliseconds(300));
  for (const pid_t pid : pids_in(launcher.out)) {
    ::kill(pid, SIGHUP);
    CHECK(exists(pid));
  }
  interrupt(launcher);
  CHECK(launcher.wait_for_end().shell() == 130);
}

TEST_CASE("dist: a process that ignores the end of its children can launch") {
  const auto before = ::signal(SIGCHLD, SIG_IGN);
  const Run r = run({.workers = 2}, {"leave", "all"});
  CHECK(::signal(SIGCHLD, before) == SIG_IGN);
  CHECK(r.result.exit_status == 0);
}

TEST_CASE("dist: SIGTERM ends the run with status 143") {
  Launcher launcher({"--workers", "2", "--", kWorker, "graceful", "all"});
  REQUIRE(launcher.wait_for([&] { return pids_in(launcher.out).size() == 2; }));
  kill(launcher.pid(), SIGTERM);
  CHECK(launcher.wait_for_end().shell() == 143);
  for (const pid_t pid : pids_in(launcher.out)) CHECK(gone(pid));
}

TEST_CASE("dist: a dead launcher takes workers and their children with it") {
  Launcher launcher({"--workers", "2", "--", kWorker, "grandchild", "all"});
  REQUIRE(launcher.wait_for([&] { return pids_in(launcher.out).size() == 4; }));
  const int port = std::stoi(launcher.out.substr(launcher.out.find("port ") + 5));
  CHECK_FALSE(port_is_free(port));
  kill(launcher.pid(), SIGKILL);
  for (const pid_t pid : pids_in(launcher.out)) CHECK(gone(pid));
  CHECK(port_is_free(port));
}

TEST_CASE("dist: two runs at once have ports of their own, and a port that is taken is named") {
  Launcher one({"--workers", "1", "--", kWorker, "graceful", "all"});
  Launcher two({"--workers", "1", "--", kWorker, "graceful", "all"});
  REQUIRE(one.wait_for([&] { return !pids_in(one.out).empty(); }));
  REQUIRE(two.wait_for([&] { return !pids_in(two.out).empty(); }));
  const auto port_of = [](const Launcher& l) { return l.out.substr(l.out.find("port ") + 5); };
  CHECK(port_of(one) != port_of(two));
  interrupt(one);
  interrupt(two);
  CHECK(one.wait_for_end().shell() == 130);
  CHECK(two.wait_for_end().shell() == 130);

  const Socket taken = listen_on({"127.0.0.1", 0});
  const int port = taken.local().port;
  CHECK_THROWS_WITH(launch({.program = {"true"}, .master_port = port}),
                    cat("launch: master port ", port,
                        " must be free on 127.0.0.1, got: Address "
                        "already in use; leave it out to get a free one"));
}

TEST_CASE("dist: wrong options are one sentence") {
  CHECK_THROWS_WITH(launch({}), "launch: program must be given, got nothing");
  CHECK_THROWS_WITH(launch({.workers = 0, .program = {"true"}}),
                    "launch: workers must be 1 to 4096, got 0");
  CHECK_THROWS_WITH(launch({.program = {"no-such-program"}}),
                    Contains("launch: program must be on the PATH, got 'no-such-program'"));
  CHECK_THROWS_WITH(launch({.program = {"/etc/passwd"}}),
                    "launch: program must be executable, got '/etc/passwd': Permission denied");
  CHECK_THROWS_WITH(launch({.program = {"true"}, .node_rank = 1}),
                    Contains("rank of this host must be below the number of hosts, 1, got 1"));
  CHECK_THROWS_WITH(launch({.program = {"true"}, .hosts = {"a", "b"}}),
                    "launch: rank of this host must be given where there are 2 hosts, got nothing; "
                    "give each its place in the list, from 0, with --rank");
  CHECK_THROWS_WITH(launch({.program = {"true"}, .master_port = 70000}), Contains("got 70000"));
  CHECK_THROWS_WITH(launch({.program = {"true"}, .environment = {"X"}}),
                    "launch: environment must be NAME=value, got 'X'");
}

TEST_CASE("dist: a folder for temporary files that is not there is named by its variable") {
  const char* given = std::getenv("TMPDIR");
  const std::string before = given != nullptr ? given : "";
  setenv("TMPDIR", "/no/such/folder", 1);
  const std::string error = test::error_text([] { launch({.program = {"true"}}); });
  given != nullptr ? setenv("TMPDIR", before.c_str(), 1) : unsetenv("TMPDIR");
  CHECK(error ==
        "launch: TMPDIR must be a folder that can be written, got '/no/such/folder': No "
        "such file or directory");
}
