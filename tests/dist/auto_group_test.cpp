// The group that chooses its backend, and the one of two levels; hosts are told, not there.
#include "cairn/dist/auto_group.h"

#include <thread>

#include "cairn/dist/ring_group.h"
#include "cairn/dist/shm_group.h"
#include "cairn/tensor/factory.h"
#include "tests/catch.h"
#include "tests/dist/contract.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;

namespace {

// Ranks 0, 2, 3, … on one host but rank 1 on another, with every fourth.
int host_of(int rank) { return rank % 4 == 1 ? 7 : 3; }

std::shared_ptr<ProcessGroup> on_hosts(GroupOptions options) {
  std::vector<int> hosts;
  for (int r = 0; r < options.size; ++r) hosts.push_back(host_of(r));
  return group_over_hosts(std::move(options), std::move(hosts));
}

}  // namespace

TEST_CASE("dist: auto takes shared memory where ranks have it") {
  test::run_ranks(auto_group, 1, [](ProcessGroup& group) { CHECK(group.backend() == "local"); });
  test::run_ranks(auto_group, 3, [](ProcessGroup& group) {
    check(group.backend() == "shm", "auto must take shm, got ", group.backend());
    const auto pair = group.subgroup({2, 0}, "pair");
    check(!pair || pair->backend() == "shm", "a subgroup must take shm too");
  });
  test::run_ranks(on_hosts, 2, [](ProcessGroup& group) {
    check(group.backend() == "ring", "a rank on each host must take ring, got ", group.backend());
  });
}

TEST_CASE("dist: two levels keep the contract") {
  for (int size : {3, 4, 6}) {
    INFO(size << " ranks");
    test::check_contract(on_hosts, size);
  }
}

TEST_CASE("dist: what breaks between hosts is heard inside them") {
  // Rank 1, alone on its host, fails to come; the others' leader is rank 0.
  const auto errors = test::errors_of_ranks(on_hosts, 4, [](ProcessGroup& group) {
    group.barrier();
    if (group.rank() == 1) return;
    group.all_reduce(full({4}, 1));
  });
  for (int r : {0, 2, 3})
    CHECK_THAT(errors[static_cast<size_t>(r)], Contains("rank 1 finished after 1 collectives"));
}

TEST_CASE("dist: errors of a part of a group name its ranks as the whole does") {
  for (const auto& make : {shm_group, ring_group}) {
    const auto errors = test::errors_of_ranks(
        [&](GroupOptions options) {
          options.rank_names = {4, 7, 9};
          return make(std::move(options));
        },
        3,
        [](ProcessGroup& group) {
          group.barrier();
          const CallOptions soon{.timeout = Milliseconds(group.rank() == 2 ? 60000 : 300)};
          if (group.rank() == 2) std::this_thread::sleep_for(Milliseconds(2000));
          group.broadcast(full({4}, 1), 2, soon);
        });
    CHECK_THAT(errors[0], Contains("broadcast #1 of f32 [4] with root 9: rank 4 waited 300 ms for "
                                   "rank 9, got nothing") &&
                              Contains("The last collectives of rank 4 "));
    CHECK_THAT(errors[1], Contains("rank 7 waited 300 ms for rank 9, got nothing"));
  }
  // Ranks 1 and 2 share a host.
  const auto errors = test::errors_of_ranks(
      [](GroupOptions options) {
        return group_over_hosts(std::move(options), {7, 3, 3});
      },
      3,
      [](ProcessGroup& group) {
        group.barrier();
        if (group.rank() == 2) group.shared_tensor(100, DType::f32);
      });
  CHECK_THAT(errors[2], Contains("rank 1 must share 8192 bytes, got its end"));
}
