// What goes wrong between ranks on the way: bytes that change, connections that break off,
// strangers, interrupted calls, addresses. Ranks are threads.
#include <atomic>
#include <future>
#include <random>

#include "cairn/dist/auto_group.h"
#include "cairn/dist/init.h"
#include "cairn/dist/ring_group.h"
#include "cairn/dist/shm_group.h"
#include "cairn/tensor/factory.h"
#include "tests/catch.h"
#include "tests/dist/contract.h"
#include "tests/dist/middleman.h"
#include "tests/dist/net_support.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::dist;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using test::Middleman;

namespace {

// Any element that is not the sum is "sum: …".
void sum_once(ProcessGroup& group, int64_t numel, int seed) {
  const Tensor t = empty({numel}, {DType::f32});
  const auto value = [&](int rank, int64_t i) {
    return static_cast<float>((i * 31 + rank * 17 + seed) % 1021);
  };
  for (int64_t i = 0; i < numel; ++i) t.data<float>()[i] = value(group.rank(), i);
  group.all_reduce(t);
  for (int64_t i = 0; i < numel; ++i) {
    float wanted = 0;
    for (int r = 0; r < group.size(); ++r) wanted += value(r, i);
    check(t.data<float>()[i] == wanted, "sum: element ", i, " of ", numel, " must be ", wanted,
          ", got ", t.data<float>()[i]);
  }
}

// Errors of two ranks of a ring with a middleman, by rank.
std::vector<std::string> with_middleman(const Middleman::Change& change, const test::RankBody& body,
                                        Milliseconds timeout, size_t piece = size_t{1} << 20) {
  std::shared_ptr<Store> diverted;  // outlives both ranks
  return test::errors_of_ranks(
      [&](GroupOptions options) {
        if (options.rank == 1)
          options.store = diverted =
              std::make_shared<test::DivertedStore>(options.store, change, piece);
        return ring_group(std::move(options));
      },
      2, body, timeout);
}

// Ways to treat a frame on its way.
enum class Damage { header, payload, cut, longer, twice, swapped, dropped, broken_off };
constexpr Damage kDamages[] = {Damage::header,  Damage::payload,   Damage::cut,
                               Damage::longer,  Damage::twice,     Damage::swapped,
                               Damage::dropped, Damage::broken_off};
constexpr size_t kHeader = 48;

// Does it once, to this frame of this direction.
class Damaging {
 public:
  Damaging(Damage damage, bool forth, int number, uint32_t seed)
      : damage_(damage), forth_(forth), number_(number), random_(seed) {}

  std::optional<std::string> operator()(bool forth, int number, std::string& frame) {
    if (forth != forth_) return frame;
    if (!held_.empty()) return frame + std::exchange(held_, "");
    if (number != number_) return frame;
    done_ = true;
    switch (damage_) {
      case Damage::header:
        return flipped(frame, 0, kHeader);
      case Damage::payload:
        return flipped(frame, frame.size() > kHeader ? kHeader : 0, frame.size());
      case Damage::cut:
        return frame.erase(below(frame.size()), 1 + below(64));
      case Damage::longer:
        return frame.insert(below(frame.size()), 1 + below(64), 'x');
      case Damage::twice:
        return frame + frame;
      case Damage::swapped:
        held_ = frame;
        return "";
      case Damage::dropped:
        return "";
      case Damage::broken_off:
        frame.resize(below(frame.size()));
        return std::nullopt;
    }
    return frame;
  }
  // Asked for when the ranks have ended.
  bool done() const { return done_; }

 private:
  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }
  std::string flipped(std::string frame, size_t begin, size_t end) {
    const size_t at = begin + below(end - begin);
    frame[at] = static_cast<char>(frame[at] ^ (1 << below(8)));
    return frame;
  }

  const Damage damage_;
  const bool forth_;
  const int number_;
  std::mt19937 random_;
  std::string held_;
  std::atomic<bool> done_ = false;
};

Middleman::Change by(Damaging& damaging) {
  return [&](bool forth, int number, std::string& frame) { return damaging(forth, number, frame); };
}

ClusterEnvironment environment(int rank, int size, const std::string& address, int port) {
  ClusterEnvironment e;
  e.name = "cairn";
  e.rank = e.local_rank = rank;
  e.world_size = e.local_world_size = size;
  e.master_address = address;
  e.master_port = port;
  e.run_id = "test";
  e.secret = "of this test";
  return e;
}

}  // namespace

TEST_CASE("dist: a frame that changes on its way is an error on both ranks that says how") {
  const std::pair<Damage, const char*> cases[] = {
      {Damage::header, "frame 2 must begin with an unchanged header, got other bytes"},
      {Damage::payload, "frame 2 must arrive unchanged, got other bytes"},
      {Damage::twice, "must be the next one, got frame 2"},
      {Damage::swapped, "frame 2 must be the next one, got frame 3"},
      {Damage::dropped, "frame 2 must be the next one, got frame 3"}};
  for (const auto& [damage, text] : cases)
    for (const bool forth : {true, false}) {
      INFO(text);
      Damaging damaging(damage, forth, 2, 1);
      const auto start = Deadline::Clock::now();
      const auto errors = with_middleman(
          by(damaging),
          [](ProcessGroup& group) {
            for (int i = 0; i < 8; ++i) sum_once(group, 1'000'000, i);
          },
          20s);
      CHECK(Deadline::Clock::now() - start < 10s);
      CHECK(damaging.done());
      const std::string way =
          forth ? "on the way from rank 1 to rank 0, " : "on the way from rank 0 to rank 1, ";
      for (const std::string& error : errors)
        CHECK_THAT(error, Contains(" (sum) of f32 [1000000]: ") && Contains(way) && Contains(text));
    }
}

TEST_CASE("dist: no change of frames between two ranks makes a wrong sum") {
  std::mt19937 random(11);
  int seen = 0, late = 0;
  for (int round = 0; round < 64; ++round) {
    const Damage damage = kDamages[round % 8];
    const bool forth = random() % 2 == 0;
    const auto number = static_cast<int>(random() % 12);
    INFO("round " << round << ": damage " << static_cast<int>(damage) << " to frame " << number);
    Damaging damaging(damage, forth, number, random());
    const auto errors = with_middleman(
        by(damaging),
        [](ProcessGroup& group) {
          for (const int64_t numel : {3, 5000, 200000, 1, 70000, 3})
            sum_once(group, numel, static_cast<int>(numel));
        },
        600ms);
    bool heard = false;
    for (const std::string& error : errors) {
      CHECK_FALSE(error.starts_with("sum: "));
      heard = heard || !error.empty();
    }
    if (!damaging.done()) continue;
    // What comes behind the last frame is nobody's.
    if (damage != Damage::twice) CHECK(heard);
    seen += heard ? 1 : 0;
    late += errors[0].find("waited 600 ms") != std::string::npos ? 1 : 0;
  }
  CHECK(seen > 30);
  CHECK(late < seen);
}

TEST_CASE("dist: a connection that breaks off within a frame is an error within a second") {
  for (const bool forth : {true, false}) {
    Damaging damaging(Damage::broken_off, forth, 3, 5);
    std::atomic<std::chrono::steady_clock::time_point> broken;
    std::vector<std::chrono::milliseconds> took(2);
    const auto errors = with_middleman(
        [&](bool to_zero, int number, std::string& frame) {
          auto changed = damaging(to_zero, number, frame);
          if (!changed) broken = Deadline::Clock::now();
          return changed;
        },
        [&](ProcessGroup& group) {
          try {
            for (int i = 0; i < 8; ++i) sum_once(group, 1'000'000, i);
          } catch (...) {
            took[static_cast<size_t>(group.rank())] =
                std::chrono::duration_cast<Milliseconds>(Deadline::Clock::now() - broken.load());
            throw;
          }
        },
        20s);
    for (size_t r = 0; r < 2; ++r) {
      CHECK_THAT(errors[r], Contains(" (sum) of f32 [1000000]: ") && Contains(cat("rank ", 1 - r)));
      CHECK(took[r] < 1s);
    }
  }
}

TEST_CASE("dist: frames that come by three bytes, with signals all the while, are the same") {
  const test::SignalStorm storm;
  const auto errors = with_middleman([](bool, int, std::string& frame) { return frame; },
                                     [](ProcessGroup& group) {
                                       for (const int64_t numel : {1, 3, 100, 2000, 9000})
                                         sum_once(group, numel, 1);
                                     },
                                     60s, 3);
  CHECK(errors == std::vector<std::string>(2));
  CHECK(test::SignalStorm::count() > 0);
}

TEST_CASE("dist: signals without a restart disturb no collective") {
  const auto two_levels = [](GroupOptions options) {
    return group_over_hosts(std::move(options), {0, 0, 1});
  };
  for (const test::MakeGroup& make :
       {test::MakeGroup(ring_group), test::MakeGroup(shm_group), test::MakeGroup(two_levels)}) {
    const test::SignalStorm storm;
    CHECK_NOTHROW(test::run_ranks(make, 3, [](ProcessGroup& group) {
      const auto sub = group.subgroup({0, 1, 2}, "again");
      for (int i = 0; i < 20; ++i) {
        sum_once(group, 3, i);
        sum_once(*sub, 100000, i);
        if (i % 5 == group.rank()) std::this_thread::sleep_for(3ms);
      }
    }));
    CHECK(test::SignalStorm::count() > 0);
  }
}

TEST_CASE("dist: strangers at a rank's door do not disturb the meeting") {
  const auto strange = [](const std::shared_ptr<Store>& store) {
    const std::string card = store->get("world/ring/0", 20s);
    const int port = std::stoi(card);
    std::vector<Socket> strangers;
    for (const std::string& words :
         {std::string(300, '\xff'), std::string("GET / HTTP/1.1\r\n\r\n"), std::string(),
          std::string("cairn\0\0\1", 8) + std::string(32, 'x')}) {
      strangers.push_back(test::stranger(port));
      test::say(strangers.back(), words);
    }
    return strangers;
  };
  const auto start = Deadline::Clock::now();
  std::vector<Socket> strangers;
  test::run_ranks(
      [&](GroupOptions options) {
        if (options.rank == 1) strangers = strange(options.store);
        return ring_group(std::move(options));
      },
      3, [](ProcessGroup& group) { sum_once(group, 1000, 1); });
  CHECK(Deadline::Clock::now() - start < 10s);
  for (Socket& each : strangers) test::hear_until_closed(each, 5s);
}

TEST_CASE("dist: groups that come and go leave no descriptor behind") {
  for (const test::MakeGroup& make :
       {test::MakeGroup(ring_group), test::MakeGroup(shm_group), test::MakeGroup(auto_group)}) {
    test::run_ranks(make, 2, [](ProcessGroup& group) { sum_once(group, 100, 1); });
    const int before = test::open_descriptors();
    for (int i = 0; i < 50; ++i)
      test::run_ranks(make, 2, [&](ProcessGroup& group) { sum_once(group, 100, i); });
    // Nor do those that fail.
    for (int i = 0; i < 10; ++i) {
      const auto errors = test::errors_of_ranks(make, 2, [](ProcessGroup& group) {
        if (group.rank() == 0) group.barrier();
      });
      CHECK_THAT(errors[0], Contains("rank 1 finished after 0 collectives"));
    }
    CHECK(test::open_descriptors() == before);
  }
}

TEST_CASE("dist: ranks meet over IPv6 alone") {
  int port = 0;
  try {
    port = listen_on({"::1", 0}).local().port;
  } catch (const CommError& error) {
    WARN("skipped: no IPv6 here: " << error.what());
    return;
  }
  for (const char* backend : {"ring", "auto"}) {
    std::vector<std::future<std::string>> ranks;
    for (int rank = 0; rank < 3; ++rank)
      ranks.push_back(std::async(std::launch::async, [&, rank] {
        return test::error_text([&] {
          const auto group =
              init_process_group(environment(rank, 3, "::1", port),
                                 {.backend = backend, .timeout = 20s, .bind = "::1"});
          sum_once(*group, 1000, 1);
          check(group->options().address == "::1", "address: must be ::1, got ",
                group->options().address);
        });
      }));
    for (auto& rank : ranks) CHECK(rank.get().empty());
  }
}

TEST_CASE("dist: a master that has no address is named") {
  ClusterEnvironment e = environment(1, 2, "no-such-host.invalid", 29500);
  e.num_nodes = 2;
  const auto start = Deadline::Clock::now();
  CHECK_THROWS_WITH(init_process_group(e, {.timeout = 2s}),
                    Contains("host 'no-such-host.invalid' must have an address, got: "));
  CHECK(Deadline::Clock::now() - start < 10s);
}
