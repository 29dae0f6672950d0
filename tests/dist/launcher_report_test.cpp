// What a user reads at the end of a run that went wrong: the reason first, each thing once.
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "cairn/dist/launcher.h"
#include "tests/catch.h"
#include "tests/dist/launcher_process.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;
using test::Launcher;
using test::pids_in;

namespace {

const std::string kWorker = std::string(CAIRN_BIN_DIR) + "/dist_worker";
const std::string kSum = std::string(CAIRN_BIN_DIR) + "/dist_sum";

std::string sentence(int rank) {
  return cat("all_reduce #7: rank ", rank, " waited 700 ms for rank 1, got nothing");
}
std::string table(int rank) {
  return cat("The last collectives of rank ", rank, ":\n  all_reduce #6: done in 0.2 ms\n");
}

// Of a rank that waited in vain for rank 1.
WorkerFailure waited(int rank) {
  WorkerFailure failure;
  failure.rank = rank;
  failure.status = {1, 0};
  failure.error = cat(sentence(rank), "\n", table(rank));
  failure.last_lines = {"step 5", sentence(rank), cat("The last collectives of rank ", rank, ":"),
                        "  all_reduce #6: done in 0.2 ms"};
  return failure;
}

int64_t lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

}  // namespace

TEST_CASE("dist: a report tells failures that are alike in one line, and no table that was told") {
  LaunchResult result;
  result.failures = {waited(12), waited(0), waited(3), waited(2)};
  result.failures[1].consequence = true;
  result.failures[2].error = "data: image 7 must be whole, got half";
  WorkerFailure stopped;
  stopped.rank = 1;
  stopped.status = {0, 15};
  stopped.was_told = stopped.was_stopped = true;
  result.failures.push_back(stopped);
  const std::string first = cat("rank 12 ended with exit status 1: ", sentence(12), "\n");
  const std::string others =
      "ranks 0, 2 likewise\n"
      "then rank 3 ended with exit status 1: data: image 7 must be whole, got half\n";
  CHECK(result.text() == first + others +
                             "rank 1 was stopped, as by SIGSTOP, and was ended\n"
                             "the last lines of rank 12:\n  step 5\n");

  // A worker that writes nothing of its error leaves it to the launcher, once.
  for (WorkerFailure& failure : result.failures) failure.last_lines.clear();
  result.failures.back().was_killed = true;
  CHECK(result.text() ==
        first + others +
            "rank 1 was stopped, as by SIGSTOP, did not end and was killed\n"
            "  The last collectives of rank 12:\n    all_reduce #6: done in 0.2 ms\n");
  // Whose peer is another is no likeness.
  result.failures[1].error = "all_reduce #7: rank 0 waited 700 ms for rank 5, got nothing";
  CHECK_THAT(result.text(), Contains("\nrank 2 likewise\nin consequence, rank 0 ended with exit "
                                     "status 1: all_reduce #7: rank 0 waited 700 ms for rank 5"));
}

TEST_CASE("dist: a time-out ends with a short report that names the rank that stood still") {
  for (const char* backend : {"shm", "ring"}) {
    Launcher launcher({"--workers", "4", "--", kSum, "--backend", backend, "--after", "300",
                       "--stop", "1", "--timeout", "1500"});
    CHECK(launcher.wait_for_end(30).shell() == 1);
    const size_t at = launcher.err.find("cairn launch: ");
    REQUIRE(at != std::string::npos);
    const std::string report = launcher.err.substr(at);
    INFO(backend << ": " << report);
    CHECK_THAT(launcher.err.substr(0, at), Contains("] The last collectives of rank "));
    CHECK_THAT(report.substr(0, report.find('\n')), Contains("rank 1") || Contains("ranks 1"));
    CHECK_THAT(report, !Contains("The last") && !Contains("the last") &&
                           Contains("\nrank 1 was stopped, as by SIGSTOP, and was ended\n"));
    CHECK(lines(report) <= 4);
  }
}

TEST_CASE("dist: a worker that took no hint and was killed is named") {
  Launcher launcher({"--workers", "2", "--", kWorker, "stubborn", "0"});
  CHECK(launcher.wait_for_end().shell() == 3);
  CHECK(launcher.err ==
        "cairn launch: rank 1 ended with exit status 3\nrank 0 did not end and was killed\n");
}

TEST_CASE("dist: a worker that left with status 0 before others failed is named") {
  const LaunchResult result = launch({.workers = 2, .program = {kWorker, "leave_early", "1"}});
  INFO(result.text());
  CHECK(result.exit_status == 1);
  REQUIRE(result.left_early.size() == 1);
  CHECK(result.left_early[0].rank == 1);
  CHECK(result.left_early[0].seconds > 0);
  CHECK_THAT(result.text(),
             StartsWith("rank 0 ended with exit status 1: all_reduce #3: rank 1 died\n"
                        "rank 1 had ended with exit status 0, ") &&
                 Contains(" before\n"));
  // Of those that were told to end nothing is said.
  CHECK(launch({.workers = 2, .program = {kWorker, "exit", "1", "3"}}).text() ==
        "rank 1 ended with exit status 3\n");
}

TEST_CASE(
    "dist: what a launcher that was killed left in the temporary folder goes at the next run") {
  const test::TempFolder folder;
  const char* const before = getenv("TMPDIR");
  const std::string kept = before != nullptr ? before : "";
  setenv("TMPDIR", folder.path().c_str(), 1);
  Launcher killed({"--workers", "1", "--", kWorker, "graceful", "all"});
  Launcher lives({"--workers", "1", "--", kWorker, "graceful", "all"});
  REQUIRE(killed.wait_for([&] { return !pids_in(killed.out).empty(); }));
  REQUIRE(lives.wait_for([&] { return !pids_in(lives.out).empty(); }));
  kill(killed.pid(), SIGKILL);
  killed.wait_for_end();
  const auto run = [] { launch({.program = {"/bin/true"}}); };
  // Young ones stay: somebody may be about to take them.
  run();
  CHECK(folder.files() == 2);
  std::filesystem::create_directory(folder.path("another"));
  for (const auto& each : std::filesystem::directory_iterator(folder.path())) {
    const timespec old[2] = {{1'000'000, 0}, {1'000'000, 0}};
    REQUIRE(utimensat(AT_FDCWD, each.path().c_str(), old, 0) == 0);
  }
  run();
  CHECK(folder.files() == 2);
  CHECK(std::filesystem::exists(folder.path("another")));
  interrupt(lives);
  CHECK(lives.wait_for_end().shell() == 130);
  CHECK(folder.files() == 1);
  if (before != nullptr)
    setenv("TMPDIR", kept.c_str(), 1);
  else
    unsetenv("TMPDIR");
}
