// Plans of the ring: walked in memory, in a random order of events.
#include "cairn/dist/ring_plan.h"

#include <algorithm>
#include <deque>
#include <random>

#include "tests/catch.h"

using namespace cairn;
using namespace cairn::dist;

namespace {

using Values = std::vector<int64_t>;

// What rank r holds as element i: different primes would do; only equal sums must be unlikely.
int64_t given(int rank, int64_t i) { return (i + 1) * 1000003 + (rank + 1) * 7919 * (i % 13 + 1); }

// One rank: its plan and its memory.
struct Actor {
  RingPlan plan;
  Values input, output, scratch;
  std::vector<size_t> sent, received;  // by peer
  size_t tasks = 0;

  Values& area(Area area) {
    return area == Area::input ? input : area == Area::output ? output : scratch;
  }
};

// All ranks of one collective. Frames have no room on their way: one is sent when it is received.
class World {
 public:
  World(RingPlanOptions options, unsigned seed) : options_(options), random_(seed) {
    for (int r = 0; r < options.size; ++r) {
      RingPlanOptions own = options;
      own.rank = r;
      Actor actor;
      if (options.kind == CallKind::send) {
        own.kind = r == 0 ? CallKind::send : CallKind::recv;
        own.peer = 1 - r;
      }
      actor.plan = plan(own);
      actor.sent.resize(static_cast<size_t>(options.size));
      actor.received.resize(static_cast<size_t>(options.size));
      actor.scratch.resize(static_cast<size_t>(actor.plan.scratch), -1);
      allocate(actor, r);
      actors_.push_back(std::move(actor));
    }
  }

  // Walks all plans to their end. False if nothing can go on before.
  bool walk() {
    for (;;) {
      std::vector<std::pair<int, int>> moves;  // from, to; or a rank's task as (rank, rank)
      for (int a = 0; a < options_.size; ++a)
        for (int b = 0; b < options_.size; ++b)
          if (a == b ? can_work(at(a)) : can_move(a, b)) moves.emplace_back(a, b);
      if (moves.empty()) return finished();
      const auto [a, b] = moves[random_() % moves.size()];
      a == b ? work(a) : move(a, b);
    }
  }

  Actor& at(int rank) { return actors_[static_cast<size_t>(rank)]; }

 private:
  int64_t whole() const { return options_.numel * options_.size; }

  void allocate(Actor& actor, int rank) {
    const auto sized = [&](int64_t n, bool full) {
      Values out(static_cast<size_t>(n), -1);
      if (full)
        for (int64_t i = 0; i < n; ++i) out[static_cast<size_t>(i)] = given(rank, i);
      return out;
    };
    const bool root = rank == options_.root;
    switch (options_.kind) {
      case CallKind::all_reduce:
      case CallKind::reduce:
        actor.output = sized(options_.numel, true);
        break;
      case CallKind::broadcast:
        actor.output = sized(options_.numel, root);
        break;
      case CallKind::reduce_scatter:
        actor.input = sized(whole(), true);
        actor.output = sized(options_.numel, false);
        break;
      case CallKind::all_gather:
      case CallKind::gather:
        actor.input = sized(options_.numel, true);
        if (root || options_.kind == CallKind::all_gather) actor.output = sized(whole(), false);
        break;
      case CallKind::scatter:
        if (root) actor.input = sized(whole(), true);
        actor.output = sized(options_.numel, false);
        break;
      case CallKind::all_to_all:
        actor.input = sized(whole(), true);
        actor.output = sized(whole(), false);
        break;
      default:
        actor.input = sized(options_.numel, true);
        actor.output = sized(options_.numel, false);
    }
  }

  bool finished() {
    for (Actor& actor : actors_) {
      if (actor.tasks < actor.plan.tasks.size()) return false;
      for (size_t p = 0; p < actors_.size(); ++p)
        if (actor.sent[p] < actor.plan.sends[p].size() ||
            actor.received[p] < actor.plan.recvs[p].size())
          return false;
    }
    return true;
  }
  bool can_move(int from, int to) {
    const Actor &a = at(from), &b = at(to);
    const size_t out = a.sent[static_cast<size_t>(to)], in = b.received[static_cast<size_t>(from)];
    const auto& sends = a.plan.sends[static_cast<size_t>(to)];
    const auto& recvs = b.plan.recvs[static_cast<size_t>(from)];
    return out < sends.size() && in < recvs.size() &&
           static_cast<size_t>(sends[out].after) <= a.tasks &&
           static_cast<size_t>(recvs[in].after) <= b.tasks;
  }
  void move(int from, int to) {
    Actor &a = at(from), &b = at(to);
    const Move& send = a.plan.sends[static_cast<size_t>(to)][a.sent[static_cast<size_t>(to)]++];
    const Move& recv =
        b.plan.recvs[static_cast<size_t>(from)][b.received[static_cast<size_t>(from)]++];
    REQUIRE(send.count == recv.count);
    if (send.count == 0) return;
    const Values& source = a.area(send.place.area);
    Values& target = b.area(recv.place.area);
    REQUIRE(send.place.offset + send.count <= static_cast<int64_t>(source.size()));
    REQUIRE(recv.place.offset + recv.count <= static_cast<int64_t>(target.size()));
    std::copy_n(source.begin() + send.place.offset, send.count, target.begin() + recv.place.offset);
  }
  bool can_work(const Actor& actor) const {
    if (actor.tasks == actor.plan.tasks.size()) return false;
    const Task& task = actor.plan.tasks[actor.tasks];
    for (uint32_t i = task.first_need; i < task.end_need; ++i) {
      const Need& need = actor.plan.needs[i];
      const auto peer = static_cast<size_t>(need.peer);
      if (static_cast<int32_t>(need.sent ? actor.sent[peer] : actor.received[peer]) < need.frames)
        return false;
    }
    return true;
  }
  void work(int rank) {
    Actor& actor = at(rank);
    const Task& task = actor.plan.tasks[actor.tasks++];
    if (task.kind == Task::Kind::pass) return;
    for (int64_t i = 0; i < task.count; ++i) {
      int64_t value = actor.area(task.own.area)[static_cast<size_t>(task.own.offset + i)];
      for (int r = 0; r < options_.size && task.kind == Task::Kind::reduce; ++r)
        if (r != rank)
          value += actor.scratch[static_cast<size_t>(task.parts + slot(rank, r) * task.stride + i)];
      actor.area(task.out.area)[static_cast<size_t>(task.out.offset + i)] = value;
    }
  }

  const RingPlanOptions options_;
  std::mt19937 random_;
  std::vector<Actor> actors_;
};

// What rank r's output must hold as element i.
int64_t expected(const RingPlanOptions& o, int rank, int64_t i) {
  const auto sum = [&](int64_t at) {
    int64_t out = 0;
    for (int r = 0; r < o.size; ++r) out += given(r, at);
    return out;
  };
  switch (o.kind) {
    case CallKind::all_reduce:
      return sum(i);
    case CallKind::reduce:
      return rank == o.root ? sum(i) : given(rank, i);
    case CallKind::reduce_scatter:
      return sum(rank * o.numel + i);
    case CallKind::broadcast:
      return given(o.root, i);
    case CallKind::scatter:
      return given(o.root, rank * o.numel + i);
    case CallKind::all_gather:
    case CallKind::gather:
      return given(static_cast<int>(i / o.numel), i % o.numel);
    case CallKind::all_to_all:
      return given(static_cast<int>(i / o.numel), rank * o.numel + i % o.numel);
    default:
      return rank == 1 ? given(0, i) : -1;
  }
}

void check_plan(const RingPlanOptions& options, unsigned seed) {
  World world(options, seed);
  REQUIRE(world.walk());
  for (int r = 0; r < options.size; ++r) {
    const Values& output = world.at(r).output;
    for (size_t i = 0; i < output.size(); ++i)
      if (output[i] != expected(options, r, static_cast<int64_t>(i))) {
        CAPTURE(name_of(options.kind), options.size, options.numel, r, i);
        REQUIRE(output[i] == expected(options, r, static_cast<int64_t>(i)));
      }
  }
}

int64_t elements(const std::vector<std::vector<Move>>& moves) {
  int64_t out = 0;
  for (const auto& of_peer : moves)
    for (const Move& move : of_peer) out += move.count;
  return out;
}

}  // namespace

TEST_CASE("dist: plans of the ring lead to the result, whatever happens first") {
  unsigned seed = 1;
  for (CallKind kind : {CallKind::all_reduce, CallKind::reduce, CallKind::reduce_scatter,
                        CallKind::all_gather, CallKind::broadcast, CallKind::scatter,
                        CallKind::gather, CallKind::all_to_all, CallKind::barrier})
    for (int size : {1, 2, 3, 4, 5, 8})
      for (int64_t numel : {0, 1, 64, 1000, 5000})
        for (int root : {0, size - 1}) {
          RingPlanOptions options{.kind = kind, .size = size, .numel = numel, .item_size = 4};
          if (kind == CallKind::barrier) options.numel = 0;
          options.root = root;
          // Small enough that a few thousand elements are many segments.
          options.segment = 1024;
          options.direct = 2048;
          check_plan(options, ++seed);
        }
  check_plan({.kind = CallKind::send, .size = 2, .numel = 5000, .item_size = 4, .segment = 1024},
             3);
}

TEST_CASE("dist: everybody hears from everybody in every collective of the ring") {
  for (CallKind kind : {CallKind::all_reduce, CallKind::reduce, CallKind::reduce_scatter,
                        CallKind::all_gather, CallKind::broadcast, CallKind::scatter,
                        CallKind::gather, CallKind::all_to_all, CallKind::barrier})
    for (int64_t numel : {0, 10, 1 << 20})
      for (int rank = 0; rank < 4; ++rank) {
        const RingPlan made = plan(
            {.kind = kind, .rank = rank, .size = 4, .numel = numel, .item_size = 4, .root = 2});
        for (int p = 0; p < 4; ++p) {
          CHECK(made.sends[static_cast<size_t>(p)].empty() == (p == rank));
          CHECK(made.recvs[static_cast<size_t>(p)].empty() == (p == rank));
        }
      }
}

TEST_CASE("dist: large reductions move no more than they must") {
  for (int size : {2, 3, 4, 8}) {
    const int64_t numel = 1 << 20;
    for (int rank = 0; rank < size; ++rank) {
      const RingPlan made = plan({.kind = CallKind::all_reduce,
                                  .rank = rank,
                                  .size = size,
                                  .numel = numel,
                                  .item_size = 4});
      // Shards are whole cache lines, so they are not quite equal.
      const int64_t least = 2 * (size - 1) * numel / size, slack = 64 * size * size;
      CHECK(std::abs(elements(made.sends) - least) <= slack);
      CHECK(std::abs(elements(made.recvs) - least) <= slack);
      // What waits to be reduced fits a core's cache.
      CHECK(made.scratch * 4 <= 1 << 20);
    }
  }
}

TEST_CASE("dist: small reductions take one step") {
  const RingPlan made =
      plan({.kind = CallKind::all_reduce, .rank = 1, .size = 4, .numel = 1024, .item_size = 4});
  for (int p : {0, 2, 3}) {
    CHECK(made.sends[static_cast<size_t>(p)].size() == 1);
    CHECK(made.sends[static_cast<size_t>(p)][0].after == 0);
    CHECK(made.recvs[static_cast<size_t>(p)].size() == 1);
  }
  CHECK(made.tasks.size() == 1);
}

TEST_CASE("dist: each rank begins with the one behind it") {
  // The first results of the three others are reduced after one frame of each.
  const RingPlan made = plan(
      {.kind = CallKind::reduce_scatter, .rank = 2, .size = 4, .numel = 1 << 18, .item_size = 4});
  REQUIRE(made.tasks.size() > 2);
  std::vector<int> order;
  for (uint32_t i = made.tasks[0].first_need; i < made.tasks[0].end_need; ++i)
    order.push_back(made.needs[i].peer);
  CHECK(order == std::vector<int>{3, 0, 1});
}
