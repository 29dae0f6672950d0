// The thread pool: every index once, exceptions, nesting, callers side by side.
#include "cairn/tensor/parallel.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/catch.h"
#include "tests/temp_folder.h"

using namespace cairn;
using test::error_text;

namespace {

// Sets a thread count for a scope.
struct Threads {
  explicit Threads(int n) : before(num_threads()) { set_num_threads(n); }
  ~Threads() { set_num_threads(before); }
  int before;
};

}  // namespace

TEST_CASE("tensor: parallel_for runs every index once on any thread count") {
  for (int threads : {1, 2, 4}) {
    Threads scope(threads);
    CHECK(num_threads() == threads);
    for (int64_t n : {0, 1, 7, 1000, 12345}) {
      for (int64_t grain : {1, 16, 100000}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
        parallel_for(3, 3 + n, grain, [&](int64_t lo, int64_t hi) {
          for (int64_t i = lo; i < hi; ++i) seen[static_cast<size_t>(i - 3)]++;
        });
        for (auto& count : seen) REQUIRE(count == 1);
      }
    }
  }
  bool called = false;
  parallel_for(5, 2, 1, [&](int64_t, int64_t) { called = true; });
  CHECK_FALSE(called);
}

TEST_CASE("tensor: parallel_for hands on an exception and stays usable") {
  Threads scope(4);
  for (int round = 0; round < 50; ++round) {
    CHECK(error_text([&] {
            parallel_for(0, 1000, 1, [](int64_t lo, int64_t hi) {
              if (lo <= 500 && 500 < hi) throw std::runtime_error("number 500");
            });
          }) == "number 500");
    std::atomic<int64_t> sum{0};
    parallel_for(0, 1000, 1, [&](int64_t lo, int64_t hi) { sum += hi - lo; });
    REQUIRE(sum == 1000);
  }
}

TEST_CASE("tensor: parallel_for inside another one and from several threads at once") {
  Threads scope(4);
  std::atomic<int64_t> sum{0};
  parallel_for(0, 8, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t i = lo; i < hi; ++i)
      parallel_for(0, 100, 1, [&](int64_t a, int64_t b) { sum += b - a; });
  });
  CHECK(sum == 800);

  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round)
        parallel_for(0, 64, 1, [&](int64_t lo, int64_t hi) { total += hi - lo; });
    });
  for (auto& caller : callers) caller.join();
  CHECK(total == 4 * 200 * 64);
}

TEST_CASE("tensor: a forked child has as many threads, of its own") {
  Threads scope(4);
  const auto sum = [] {
    std::atomic<int64_t> total{0};
    parallel_for(0, 1000, 1, [&](int64_t lo, int64_t hi) { total += hi - lo; });
    return total.load();
  };
  REQUIRE(sum() == 1000);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // a child that waits for its parent's threads ends here
    const bool same = num_threads() == 4 && sum() == 1000 && sum() == 1000;
    set_num_threads(2);
    _exit(same && sum() == 1000 && num_threads() == 2 ? 0 : 1);
  }
  REQUIRE(child > 0);
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(num_threads() == 4);
  CHECK(sum() == 1000);
}

TEST_CASE("tensor: fork waits for a region that another thread runs") {
  Threads scope(3);
  std::atomic<bool> done{false};
  std::atomic<int64_t> regions{0};
  std::thread busy([&] {
    while (!done) {
      std::atomic<int64_t> total{0};
      parallel_for(0, 64, 1, [&](int64_t lo, int64_t hi) { total += hi - lo; });
      if (total == 64) ++regions;
    }
  });
  while (regions == 0) std::this_thread::yield();
  for (int round = 0; round < 10; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      std::atomic<int64_t> total{0};
      parallel_for(0, 64, 1, [&](int64_t lo, int64_t hi) { total += hi - lo; });
      _exit(total == 64 ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
  done = true;
  busy.join();
}

TEST_CASE("tensor: the thread count may change while other threads compute") {
  Threads scope(2);
  std::atomic<bool> done{false};
  std::atomic<int64_t> wrong{0}, regions{0};
  std::vector<std::thread> busy;
  for (int t = 0; t < 2; ++t)
    busy.emplace_back([&] {
      while (!done) {
        std::atomic<int64_t> total{0};
        parallel_for(0, 64, 1, [&](int64_t lo, int64_t hi) { total += hi - lo; });
        if (total != 64) ++wrong;
        ++regions;
      }
    });
  while (regions == 0) std::this_thread::yield();
  for (int round = 0; round < 100; ++round) {
    set_num_threads(1 + round % 4);
    CHECK(num_threads() == 1 + round % 4);
  }
  done = true;
  for (auto& thread : busy) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("tensor: the thread count is checked") {
  CHECK(error_text([] { set_num_threads(0); }) == "set_num_threads: n must be at least 1, got 0");
  Threads scope(2);
  CHECK(error_text([] { parallel_for(0, 100, 1, [](int64_t, int64_t) { set_num_threads(3); }); }) ==
        "set_num_threads: must not be called inside a parallel region");
  CHECK(num_threads() == 2);
}
