// The ring: the collectives' contract over TCP, ranks as threads.
#include "cairn/dist/ring_group.h"

#include <chrono>
#include <future>

#include "cairn/dist/auth.h"
#include "cairn/tensor/factory.h"
#include "tests/catch.h"
#include "tests/dist/contract.h"

using namespace cairn;
using namespace cairn::dist;
using namespace cairn::test;
using Catch::Matchers::Contains;
using namespace std::chrono_literals;

TEST_CASE("dist: ring keeps the contract") {
  const int size = GENERATE(1, 2, 3, 4, 5, 8);
  CAPTURE(size);
  CHECK_NOTHROW(check_contract(ring_group, size));
}

TEST_CASE("dist: ring moves ten million elements") {
  CHECK_NOTHROW(check_large(ring_group, 2, 10'000'000));
}

TEST_CASE("dist: a ring's connection that was dropped unheard is made again") {
  const auto store = memory_store();
  const Socket listener = listen_on({"127.0.0.1", 0});
  store->set("world/ring/run", "run");
  store->set("world/ring/0", cat(listener.local().port, " 127.0.0.1 machine"));
  // Rank 0, as far as rank 1 can see; it drops the first two connections.
  auto leader = std::async(std::launch::async, [&] {
    const Deadline deadline(20s);
    Socket socket;
    for (int i = 0; i < 3; ++i) {
      socket.close();
      if (listener.wait_readable(deadline) != Transfer::done) return 0u;
      socket = accept_from(listener);
    }
    return authenticate(socket, Side::server, {"", "run", "ring world"}, {0}, deadline, "test")[0];
  });
  const auto group = ring_group({.rank = 1, .size = 2, .store = store, .timeout = 20s});
  CHECK(leader.get() == 1);
}
