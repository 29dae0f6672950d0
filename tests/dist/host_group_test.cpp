// Calls of several threads in one group: turns, and who waits how long for them.
#include "cairn/dist/host_group.h"

#include <future>
#include <thread>

#include "tests/catch.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using namespace std::chrono_literals;
using Clock = Deadline::Clock;

namespace {

// A group of one in which a call lasts until it is let go.
class Holding : public HostGroup {
 public:
  Holding() : HostGroup({.timeout = 20s}) {}
  ~Holding() override {
    let_go();
    stop();
  }

  std::string_view backend() const override { return "holding"; }
  std::shared_ptr<ProcessGroup> subgroup(const std::vector<int>&, const std::string&) override {
    return nullptr;
  }
  void let_go() {
    const std::lock_guard lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }
  // How many calls have begun, once there are so many.
  int begun(int at_least) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, 20s, [&] { return begun_ >= at_least; });
    return begun_;
  }

 private:
  void run(const Call& call) override {
    std::unique_lock lock(mutex_);
    ++begun_;
    changed_.notify_all();
    if (!changed_.wait_until(lock, call.deadline.at(), [&] { return !held_; }))
      throw TimeoutError("holding: was not let go");
  }
  void failed(const Call*, const std::exception&) noexcept override {}

  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = true;
  int begun_ = 0;
};

}  // namespace

TEST_CASE("dist: an asynchronous call returns at once although another thread's call runs") {
  Holding group;
  auto first = std::async(std::launch::async, [&] { group.barrier(); });
  REQUIRE(group.begun(1) == 1);
  const auto start = Clock::now();
  const Work second = group.barrier({.async_op = true});
  CHECK(Clock::now() - start < 5s);
  CHECK_FALSE(second.is_completed());
  CHECK(group.sequence() == 2);
  group.let_go();
  first.get();
  second.wait();
  CHECK(group.begun(2) == 2);
}

TEST_CASE("dist: a call waits for its turn no longer than it may, and never runs then") {
  for (const bool async_op : {true, false}) {
    Holding group;
    auto first = std::async(std::launch::async, [&] { group.barrier(); });
    REQUIRE(group.begun(1) == 1);
    const auto start = Clock::now();
    const std::string error =
        test::error_text([&] { group.barrier({.async_op = async_op, .timeout = 100ms}).wait(); });
    CHECK(Clock::now() - start < 10s);
    CHECK_THAT(error, Contains("barrier #1: rank 0 waited 100 ms for its turn, got none") &&
                          Contains("barrier #0: runs since"));
    CHECK(first.wait_for(0s) == std::future_status::timeout);
    group.let_go();
    first.get();
    // Other ranks may have done it, so the group is broken.
    CHECK(test::error_text([&] { group.barrier(); }) == error);
    CHECK(group.begun(1) == 1);
  }
}

TEST_CASE("dist: the error of the call before tells more than that it took the turn") {
  Holding group;
  const Work first = group.barrier({.async_op = true, .timeout = 100ms});
  const Work second = group.barrier({.async_op = true, .timeout = 100ms});
  CHECK_THAT(test::error_text([&] { second.wait(); }), Contains("holding: was not let go"));
  CHECK_THAT(test::error_text([&] { first.wait(); }), Contains("holding: was not let go"));
}
