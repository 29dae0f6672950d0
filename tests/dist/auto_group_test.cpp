// The group that chooses its backend, and the one of two levels; hosts are told, not there.
#include "cairn/dist/auto_group.h"

#include "cairn/tensor/factory.h"

#include "tests/catch.h"
#include "tests/dist/contract.h"

using namespace cairn;
using namespace cairn::dist;

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
    CHECK_THAT(errors[static_cast<size_t>(r)],
               Catch::Matchers::Contains("rank 1 finished after 1 collectives"));
}
