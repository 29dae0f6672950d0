// A rank that gives its group up: what the others hear and when, and what it costs to let go.
#include <atomic>
#include <thread>

#include "cairn/dist/auto_group.h"
#include "cairn/dist/local_group.h"
#include "cairn/dist/ring_group.h"
#include "cairn/dist/shm_group.h"
#include "cairn/tensor/factory.h"
#include "tests/catch.h"
#include "tests/dist/contract.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using Clock = std::chrono::steady_clock;
using test::MakeGroup;

namespace {

std::shared_ptr<ProcessGroup> on_two_hosts(GroupOptions options) {
  std::vector<int> hosts;
  for (int r = 0; r < options.size; ++r) hosts.push_back(r / 2);
  return group_over_hosts(std::move(options), std::move(hosts));
}

const std::vector<MakeGroup> kBackends = {shm_group, ring_group, on_two_hosts};

// What the ranks of four got when rank 1 did `end` after two barriers, and how late each of the
// others heard of it, in seconds.
struct Heard {
  Heard(const MakeGroup& make, const test::RankBody& end) {
    errors = test::errors_of_ranks(make, 4, [&](ProcessGroup& group) {
      const auto rank = static_cast<size_t>(group.rank());
      group.barrier();
      group.barrier();
      if (rank == 1) {
        std::this_thread::sleep_for(300ms);
        at = Clock::now().time_since_epoch().count();
        end(group);
        return;
      }
      try {
        group.all_reduce(full({3}, 1.0));
      } catch (...) {
        const Clock::time_point then{Clock::duration(at.load())};
        late[rank] = std::chrono::duration<double>(Clock::now() - then).count();
        throw;
      }
    });
  }

  void check(const std::string& word) const {
    for (const size_t rank : {0, 2, 3}) {
      INFO("rank " << rank << " after " << late[rank] << " s: " << errors[rank]);
      CHECK_THAT(errors[rank], Contains("all_reduce #2") && Contains(word));
      CHECK(late[rank] < 3);  // of a time-out of 60 s
    }
  }

  std::atomic<Clock::duration::rep> at = 0;
  std::vector<double> late = std::vector<double>(4);
  std::vector<std::string> errors;
};

}  // namespace

TEST_CASE("dist: what a rank gives its group up for is heard at once by those that wait") {
  for (const MakeGroup& make : kBackends) {
    std::string later;
    // It goes on and keeps the group.
    const Heard heard(make, [&](ProcessGroup& group) {
      group.abort("bad image 7");
      group.abort("and more");
      std::this_thread::sleep_for(4s);
      later = test::error_text([&] { group.barrier(); });
    });
    heard.check("rank 1 failed: bad image 7");
    CHECK(heard.errors[1].empty());
    CHECK(later == "bad image 7");
  }
}

TEST_CASE("dist: a group is given up behind the calls that run, and those that wait never run") {
  for (const MakeGroup& make : kBackends) {
    const auto errors = test::errors_of_ranks(make, 4, [](ProcessGroup& group) {
      group.barrier();
      const bool culprit = group.rank() == 1;
      if (!culprit) std::this_thread::sleep_for(300ms);
      const Tensor a = full({3}, 1.0), b = full({3}, 1.0);
      const Work first = group.all_reduce(a, ReduceOp::sum, {{.async_op = true}});
      if (culprit) std::this_thread::sleep_for(100ms);  // it runs now
      const Work second = group.all_reduce(b, ReduceOp::sum, {{.async_op = true}});
      if (culprit) group.abort("bad image 7");
      // Where the others are told while they are still in the first, that fails too.
      const std::string error = test::error_text([&] { first.wait(); });
      check(error.empty() || (!culprit && error.find("bad image 7") != std::string::npos),
            "the first must be done, got: ", error);
      second.wait();
    });
    CHECK(errors[1] == "bad image 7");
    for (const size_t rank : {0, 2, 3})
      CHECK_THAT(errors[rank], Contains("rank 1 failed: bad image 7"));
  }
}

TEST_CASE("dist: a group that is let go of because of an exception has not finished") {
  for (const MakeGroup& make : kBackends) {
    const Heard heard(make, [](ProcessGroup&) { fail("bad image 7"); });
    heard.check("rank 1 failed with an exception after 2 collectives");
    CHECK(heard.errors[1] == "bad image 7");
  }
}

TEST_CASE("dist: a group of one has nobody to give it up for") {
  const auto group = local_group({});
  group->abort("bad image 7");
  CHECK_NOTHROW(group->barrier());
}
