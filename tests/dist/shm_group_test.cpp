// Ranks that share memory: the contract.
#include "cairn/dist/shm_group.h"

#include "tests/catch.h"
#include "tests/dist/contract.h"

using namespace cairn;
using namespace cairn::dist;

TEST_CASE("dist: shm keeps the contract") {
  for (int size : {1, 2, 3, 4, 5, 8}) {
    INFO(size << " ranks");
    test::check_contract(shm_group, size);
  }
}

TEST_CASE("dist: shm reduces ten million elements") { test::check_large(shm_group, 2, 10'000'019); }
