// What workers write on its way to who reads it: nothing is lost while somebody does, and nobody is
// waited for.
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <thread>

#include "cairn/dist/launcher.h"
#include "cairn/dist/output_queue.h"
#include "tests/catch.h"
#include "tests/dist/launcher_process.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using test::gone;
using test::Launcher;
using test::pids_in;
using namespace std::chrono_literals;
using Clock = Deadline::Clock;

namespace {

const std::string kWorker = std::string(CAIRN_BIN_DIR) + "/dist_worker";
const std::string kCairn = std::string(CAIRN_BIN_DIR) + "/cairn";

struct Ends {
  Socket read, write;
};

Ends new_pipe(int flags = 0) {
  std::array<int, 2> ends{};
  REQUIRE(pipe2(ends.data(), O_CLOEXEC | flags) == 0);
  return {Socket(ends[0]), Socket(ends[1])};
}

// How many whole lines "line 0 …", "line 1 …" the text begins with; the rest is less than one.
int numbered_lines(const std::string& text, const std::string& start) {
  size_t at = 0;
  for (int i = 0;; ++i) {
    const std::string line = cat(start, "line ", i, " ");
    const size_t end = text.find("end\n", at);
    if (end == std::string::npos) return i;
    REQUIRE(text.compare(at, line.size(), line) == 0);
    at = end + 4;
  }
}

// Takes from a descriptor until so many bytes have come or it ends.
std::string take(int fd, size_t bytes) {
  std::string out;
  std::array<char, 65536> buffer;
  while (out.size() < bytes) {
    const ssize_t got = read(fd, buffer.data(), buffer.size());
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got <= 0) break;
    out.append(buffer.data(), static_cast<size_t>(got));
  }
  return out;
}

// Fills the queue while nobody reads, then reads, and compares.
void check_queue(OutputQueue& queue, int reader) {
  std::string all;
  const auto start = Clock::now();
  for (int i = 0; !queue.full(); ++i) {
    const std::string line = cat("line ", i, "\n");
    all += line;
    queue.add(line);
    if (i % 100 == 0) queue.write_some();
  }
  CHECK_FALSE(queue.drain(Deadline(30ms)));
  CHECK(Clock::now() - start < 20s);
  std::string got;
  std::thread reading([&] { got = take(reader, all.size()); });
  CHECK(queue.drain(Deadline(20s)));
  reading.join();
  CHECK(queue.empty());
  CHECK(got == all);
}

}  // namespace

TEST_CASE("dist: a queue of output loses nothing and waits for nobody, whatever it leads to") {
  SECTION("a pipe, whose flags stay") {
    const Ends pipe = new_pipe();
    OutputQueue queue(pipe.write.fd());
    check_queue(queue, pipe.read.fd());
    CHECK((fcntl(pipe.write.fd(), F_GETFL) & O_NONBLOCK) == 0);
  }
  SECTION("a pipe that does not block") {
    const Ends pipe = new_pipe(O_NONBLOCK);
    OutputQueue queue(pipe.write.fd());
    check_queue(queue, pipe.read.fd());
  }
  SECTION("a pipe of another user") {
    if (geteuid() != 0) return;
    const Ends pipe = new_pipe();
    REQUIRE(seteuid(65534) == 0);
    OutputQueue queue(pipe.write.fd());
    REQUIRE(seteuid(0) == 0);
    prctl(PR_SET_DUMPABLE, 1);  // as before
    check_queue(queue, pipe.read.fd());
  }
  SECTION("a socket") {
    std::array<int, 2> ends{};
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    const Socket a(ends[0]), b(ends[1]);
    OutputQueue queue(a.fd());
    check_queue(queue, b.fd());
  }
  SECTION("a terminal") {
    int leader = -1, terminal = -1;
    termios raw{};
    cfmakeraw(&raw);
    REQUIRE(openpty(&leader, &terminal, nullptr, &raw, nullptr) == 0);
    const Socket a(terminal), b(leader);
    OutputQueue queue(a.fd());
    check_queue(queue, b.fd());
  }
}

TEST_CASE("dist: a queue of output goes into a file at once, and nowhere when nobody reads") {
  const test::TempFolder folder;
  const std::string path = folder.path("log"), text(3 * OutputQueue::kMost, 'x');
  {
    const Socket file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    OutputQueue queue(file.fd());
    queue.add(text);
    CHECK(queue.drain(Deadline(20s)));
  }
  CHECK(test::read_bytes(path) == text);

  signal(SIGPIPE, SIG_IGN);
  Ends pipe = new_pipe();
  OutputQueue queue(pipe.write.fd());
  queue.add(text);
  queue.write_some();
  CHECK_FALSE(queue.empty());
  pipe.read.close();
  CHECK(queue.write_some());
  CHECK(queue.empty());
  OutputQueue late(pipe.write.fd());
  late.add(text);
  CHECK(late.drain(Deadline(20s)));
  signal(SIGPIPE, SIG_DFL);
  pipe.write.close();
  OutputQueue none(pipe.write.fd());
  none.add(text);
  CHECK(none.empty());
}

TEST_CASE("dist: the end of a worker's output does not wait for others that hold its pipe") {
  Ends pipe = new_pipe(O_NONBLOCK);
  const std::string line = "one more line\n";
  const auto write_one = [&] {
    REQUIRE(write(pipe.write.fd(), line.data(), line.size()) == static_cast<ssize_t>(line.size()));
  };
  write_one();
  int taken = 0;
  // Somebody who writes as fast as is read.
  WorkerOutput output(std::move(pipe.read), [&](std::string_view) {
    REQUIRE(++taken < 1000);
    write_one();
  });
  output.finish();
  CHECK(taken == 1);
  CHECK(output.fd() == -1);
}

TEST_CASE("dist: nobody has to read for a failure to end the run within two seconds") {
  Launcher launcher({"--workers", "2", "--", kWorker, "flood", "0"});
  launcher.reads_out = false;
  REQUIRE(launcher.wait_for([&] { return pids_in(launcher.err).size() == 2; }));
  // The other one fails 0.5 s after its line.
  for (const pid_t pid : pids_in(launcher.err)) CHECK(gone(pid, 0.5 + 2));
  // What was written still has its reader.
  std::this_thread::sleep_for(300ms);
  CHECK_FALSE(gone(launcher.pid(), 0));
  launcher.reads_out = true;
  CHECK(launcher.wait_for_end().shell() == 3);
  CHECK_THAT(launcher.err, Contains("cairn launch: rank 1 ended with exit status 3\n"));
  CHECK(numbered_lines(launcher.out, "[0] ") * 100 > static_cast<int>(OutputQueue::kMost));
}

TEST_CASE("dist: nobody has to read for Ctrl-C to end the run") {
  Launcher launcher({"--workers", "2", "--", kWorker, "flood", "all"});
  launcher.reads_out = false;
  REQUIRE(launcher.wait_for([&] { return pids_in(launcher.err).size() == 2; }));
  std::this_thread::sleep_for(300ms);
  const auto start = Clock::now();
  interrupt(launcher);
  CHECK(launcher.wait_for_end().shell() == 130);
  CHECK(Clock::now() - start < 5s);
  for (const pid_t pid : pids_in(launcher.err)) CHECK(gone(pid));
}

TEST_CASE("dist: a reader that is slow gets every line, also from an output that does not block") {
  const std::string count = "8000";
  Launcher launcher({"--workers", "1", "--no-prefix", "--", kWorker, "nonblocking", "all", kCairn,
                     "launch", "--workers", "1", "--no-prefix", "--", kWorker, "lines", "all",
                     count});
  launcher.reads_out = false;
  launcher.wait_for([] { return false; }, 0.7);
  launcher.reads_out = true;
  CHECK(launcher.wait_for_end(30).shell() == 0);
  CHECK(numbered_lines(launcher.out, "") == std::stoi(count));
  CHECK(numbered_lines(launcher.err, "") == std::stoi(count));
}

TEST_CASE("dist: a reader that has gone changes nothing for the workers, nor for the program") {
  Ends pipe = new_pipe();
  pipe.read.close();
  std::fflush(stdout);
  const Socket before(dup(STDOUT_FILENO));
  dup2(pipe.write.fd(), STDOUT_FILENO);
  int lines = 0;
  const LaunchResult result = launch({.workers = 2,
                                      .program = {kWorker, "lines", "all", "500"},
                                      .show = [&](const OutputLine& line) {
                                        lines += line.error ? 0 : 1;
                                        return line.error ? "" : cat(line.text, "\n");
                                      }});
  dup2(before.fd(), STDOUT_FILENO);
  CHECK(result.exit_status == 0);
  CHECK(lines == 2 * 501);
  CHECK(result.text() ==
        "standard output must take what workers write, got: its reader has gone; the rest "
        "is lost\n");
}

TEST_CASE("dist: output that a full disk does not take is told of, and is a failure") {
  const Socket full(open("/dev/full", O_WRONLY | O_CLOEXEC));
  REQUIRE(full);
  std::fflush(stdout);
  const Socket before(dup(STDOUT_FILENO));
  const auto launch_into_full = [&](const std::vector<std::string>& program) {
    dup2(full.fd(), STDOUT_FILENO);
    const LaunchResult result =
        launch({.workers = 2, .program = program, .show = [](const OutputLine& line) {
                  return line.error ? "" : cat(line.text, "\n");
                }});
    dup2(before.fd(), STDOUT_FILENO);
    return result;
  };
  const std::string lost =
      "standard output must take what workers write, got: No space left on device; the "
      "rest is lost\n";
  const LaunchResult well = launch_into_full({kWorker, "lines", "all", "5"});
  CHECK(well.exit_status == 1);
  CHECK(well.failures.empty());
  CHECK(well.text() == lost);
  // A worker's own failure is told first and has its status.
  const LaunchResult failed =
      launch_into_full({"/bin/sh", "-c", "echo line; sleep 0.2; exit $((3 * RANK))"});
  CHECK(failed.exit_status == 3);
  CHECK(failed.text().rfind("rank 1 ended with exit status 3\n", 0) == 0);
  CHECK_THAT(failed.text(), Contains("\n" + lost));
  // Nothing is lost where nothing is written.
  const LaunchResult silent = launch_into_full({"/bin/sh", "-c", "true"});
  CHECK(silent.exit_status == 0);
  CHECK(silent.text().empty());
}

TEST_CASE("dist: a reader that stands still loses the last lines in the end, and is told of") {
  const Ends pipe = new_pipe();
  std::fflush(stdout);
  const Socket before(dup(STDOUT_FILENO));
  dup2(pipe.write.fd(), STDOUT_FILENO);
  const auto start = Clock::now();
  const LaunchResult result =
      launch({.workers = 1,
              .program = {kWorker, "lines", "all", "500"},
              .show = [](const OutputLine& line) { return line.error ? "" : cat(line.text, "\n"); },
              .output_grace = 200ms});
  dup2(before.fd(), STDOUT_FILENO);
  CHECK(Clock::now() - start < 10s);
  CHECK(result.exit_status == 0);
  CHECK(result.text() ==
        "what workers write must be read, got nobody who took any within 200 ms; the last "
        "lines are lost\n");
}
