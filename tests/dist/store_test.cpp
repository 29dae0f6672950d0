// What every store does, whichever it is: in memory, with a prefix, over TCP.
#include "cairn/dist/store.h"

#include <atomic>
#include <functional>
#include <thread>

#include "cairn/dist/tcp_store.h"
#include "tests/catch.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using namespace std::chrono_literals;

namespace {

// Each with two handles of the same store, as two ranks hold them.
struct Pair {
  const char* name;
  std::shared_ptr<Store> a, b;
};

std::vector<Pair> all_stores() {
  const auto memory = memory_store(), other = memory_store();
  const auto server = tcp_store({.is_server = true, .secret = "s"});
  const auto client = tcp_store({.port = server->server_port(), .secret = "s"});
  return {{"memory", memory, memory},
          {"prefix", prefix_store("p", other), prefix_store("p", other)},
          {"tcp", server, client},
          {"tcp with prefix", prefix_store("p", server), prefix_store("p", client)}};
}

// Runs f(rank) on so many threads.
void on_ranks(int count, const std::function<void(int)>& f) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) threads.emplace_back(f, rank);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("dist: every store keeps values, counters and their changes") {
  for (const auto& [name, a, b] : all_stores()) {
    INFO(name);
    const std::string bytes("a\0\xff\n", 4);
    a->set("k", bytes);
    CHECK(b->get("k", 10s) == bytes);
    CHECK(b->find("k") == bytes);
    CHECK(b->find("none") == std::nullopt);
    b->set("k", "");
    CHECK(a->find("k") == "");
    CHECK(a->add("n", 5) == 5);
    CHECK(b->add("n", -7) == -2);
    CHECK(a->get("n") == "-2");
    CHECK(b->delete_key("n"));
    CHECK_FALSE(a->delete_key("n"));
    CHECK(a->find("n") == std::nullopt);
    const int64_t keys = a->num_keys();
    a->set(std::string("\0", 1), "v");
    CHECK(b->num_keys() == keys + 1);
  }
}

TEST_CASE("dist: compare_set changes what is expected alone") {
  for (const auto& [name, a, b] : all_stores()) {
    INFO(name);
    CHECK(a->compare_set("c", "x", "1") == "");
    CHECK(a->find("c") == std::nullopt);
    CHECK(a->compare_set("c", "", "1") == "1");
    CHECK(b->compare_set("c", "", "2") == "1");
    CHECK(b->compare_set("c", "1", "2") == "2");
    CHECK(a->get("c") == "2");
    a->set("empty", "");
    CHECK(a->compare_set("empty", "", "3") == "3");
  }
}

TEST_CASE("dist: a store's mistakes and time-outs are one sentence") {
  for (const auto& [name, a, b] : all_stores()) {
    INFO(name);
    const bool prefixed = std::string_view(name).find("prefix") != std::string_view::npos;
    const std::string k = prefixed ? "'p/k'" : "'k'", l = prefixed ? "'p/l'" : "'l'";
    CHECK_THROWS_WITH(a->get("k", 30ms),
                      "store: key " + k + " must be set within 30 ms, got nothing");
    CHECK_THROWS_AS(a->get("k", 0ms), CommError);
    a->set("m", "1");
    const std::vector<std::string> keys{"k", "m", "l"};
    CHECK_THROWS_WITH(b->wait(keys, 30ms),
                      "store: keys " + k + ", " + l + " must be set within 30 ms, got nothing");
    CHECK_THROWS_WITH(a->set("", "v"), "store: key must have 1 to 1024 bytes, got 0");
    CHECK_THROWS_WITH(a->find(std::string(1025, 'k')), Contains("1 to 1024 bytes, got 1025"));
    CHECK_THROWS_WITH(a->set("k", std::string((16 << 20) + 1, 'v')),
                      Contains("at most 16777216 bytes, got 16777217"));
    a->set("text", "12x");
    CHECK_THROWS_WITH(a->add("text", 1), Contains("must be a whole number for add"));
    a->set("large", std::to_string(INT64_MAX));
    CHECK_THROWS_WITH(a->add("large", 1), Contains("must fit 64 bits"));
    CHECK(a->get("m", Milliseconds::max()) == "1");
    CHECK(b->get("m") == "1");
  }
  CHECK_THROWS_WITH(prefix_store("p", nullptr), "prefix_store: store must be given, got none");
}

TEST_CASE("dist: values of 16 MiB travel whole") {
  for (const auto& [name, a, b] : all_stores()) {
    INFO(name);
    std::string value(16 << 20, '\0');
    for (size_t i = 0; i < value.size(); ++i) value[i] = static_cast<char>(i * 31 >> 3);
    a->set("large", value);
    CHECK(b->get("large") == value);
    CHECK(b->compare_set("large", value, "small") == "small");
  }
}

TEST_CASE("dist: get and wait return as soon as the keys are there") {
  for (const auto& [name, a, b] : all_stores()) {
    INFO(name);
    std::thread setter([&store = b] {
      std::this_thread::sleep_for(30ms);
      store->set("one", "1");
      store->set("two", "1");
      store->delete_key("two");
      store->add("three", 2);
      std::this_thread::sleep_for(60ms);
      store->compare_set("two", "", "last");
    });
    CHECK(a->get("one", 20s) == "1");
    // Both must be there at a time.
    const std::vector<std::string> keys{"two", "three"};
    a->wait(keys, 20s);
    CHECK(a->get("two", 0ms) == "last");
    setter.join();
    a->wait({}, 0ms);
  }
}

TEST_CASE("dist: counters count right whoever adds") {
  for (const auto& [name, a, b] : all_stores()) {
    INFO(name);
    on_ranks(6, [&, &first = a, &second = b](int rank) {
      for (int i = 0; i < 200; ++i) (rank % 2 == 0 ? first : second)->add("sum", 1);
    });
    CHECK(a->get("sum") == "1200");
  }
}

TEST_CASE("dist: a store's barrier holds until all have come") {
  for (const auto& [name, a, b] : all_stores()) {
    INFO(name);
    std::atomic<int> come = 0, early = 0;
    on_ranks(5, [&, &first = a, &second = b](int rank) {
      Store& store = *(rank % 2 == 0 ? first : second);
      for (int round = 0; round < 4; ++round) {
        ++come;
        store.barrier("round " + std::to_string(round), rank, 5, 60s);
        if (come < 5 * (round + 1)) ++early;
      }
    });
    CHECK(early == 0);
    std::atomic<bool> other_failed = false;
    std::thread other([&, &store = b] {
      try {
        store->barrier("open", 3, 4, 150ms);
      } catch (const CommError&) {
        other_failed = true;
      }
    });
    CHECK_THROWS_WITH(a->barrier("open", 0, 4, 150ms), Contains("barrier 'open': ") &&
                                                           Contains(" of 4 ranks joined within") &&
                                                           Contains("missing [1, 2"));
    other.join();
    CHECK(other_failed);
    CHECK_THROWS_WITH(a->barrier("open", 0, 4, 10ms), Contains("rank 0 must join once"));
    CHECK_THROWS_WITH(a->barrier("x", 4, 4), Contains("rank must be below the world size"));
  }
}
