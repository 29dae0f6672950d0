// The ring: the collectives' contract over TCP, ranks as threads.
#include "cairn/dist/ring_group.h"

#include <chrono>

#include "cairn/tensor/factory.h"
#include "tests/catch.h"
#include "tests/dist/contract.h"

using namespace cairn;
using namespace cairn::dist;
using namespace cairn::test;
using Catch::Matchers::Contains;

TEST_CASE("dist: ring keeps the contract") {
  const int size = GENERATE(1, 2, 3, 4, 5, 8);
  CAPTURE(size);
  CHECK_NOTHROW(check_contract(ring_group, size));
}

TEST_CASE("dist: ring moves ten million elements") {
  CHECK_NOTHROW(check_large(ring_group, 2, 10'000'000));
}
