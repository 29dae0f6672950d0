// RingPlan: one function for each kind of collective.
#include "cairn/dist/ring_plan.h"

#include <algorithm>

namespace cairn::dist {
namespace {

// Segments of a shard that travel before the first result does: what keeps the network busy while
// results wait for the slowest peer. As few as do that, so that results leave the cache's memory
// late.
constexpr int64_t kAhead = 8;
// Segments of one peer that wait to be reduced.
constexpr int64_t kSlots = 2;
// Of a cache line, so that shards and segments do not share one.
constexpr int64_t kAlign = 64;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

struct Stretch {
  int64_t begin = 0, count = 0;
};

class Planner {
 public:
  explicit Planner(const RingPlanOptions& options) : o_(options) {
    plan_.sends.resize(static_cast<size_t>(o_.size));
    plan_.recvs.resize(static_cast<size_t>(o_.size));
    segment_ = std::max<int64_t>(1, o_.segment / o_.item_size);
  }

  RingPlan take() {
    greet();
    return std::move(plan_);
  }

  void all_reduce();
  void reduce();
  void reduce_scatter();
  void all_gather();
  void broadcast();
  void scatter();
  void gather();
  void all_to_all();
  void send() { move(plan_.sends, o_.peer, {Area::input, 0}, o_.numel); }
  void recv() { move(plan_.recvs, o_.peer, {Area::output, 0}, o_.numel); }

 private:
  using Moves = std::vector<std::vector<Move>>;
  static constexpr int kAll = -1, kNobody = -2;

  // Calls body(peer), the one behind this rank first.
  template <class Body>
  void for_each_peer(Body&& body) const {
    for (int k = 1; k < o_.size; ++k) body((o_.rank + k) % o_.size);
  }
  int32_t push(Moves& moves, int peer, Place place, int64_t count, int32_t after = 0) {
    auto& of = moves[static_cast<size_t>(peer)];
    of.push_back({place, count, after});
    return static_cast<int32_t>(of.size());
  }
  void need(int peer, bool sent, int32_t frames) { plan_.needs.push_back({peer, sent, frames}); }
  // Ends the needs of the next task. Returns how many tasks there are with it.
  int32_t add(Task task) {
    task.first_need = plan_.tasks.empty() ? 0 : plan_.tasks.back().end_need;
    task.end_need = static_cast<uint32_t>(plan_.needs.size());
    plan_.tasks.push_back(task);
    return static_cast<int32_t>(plan_.tasks.size());
  }
  // All of a stretch, by segments.
  void move(Moves& moves, int peer, Place place, int64_t count) {
    for (int64_t at = 0; at < count; at += segment_)
      push(moves, peer, {place.area, place.offset + at}, std::min(segment_, count - at));
  }
  void copy(Place out, Place own) {
    add({.kind = Task::Kind::copy, .out = out, .own = own, .count = o_.numel});
  }
  // One step is the better way for so little, or for two ranks.
  bool is_direct() const {
    return o_.size <= 2 || o_.numel * o_.item_size * (o_.size - 1) <= o_.direct;
  }
  // Part `index` of the tensor cut into `count`; the last ones may be short or empty.
  Stretch shard(int index, int count) const {
    const int64_t each = round_up((o_.numel + count - 1) / count, kAlign);
    const int64_t begin = std::min(o_.numel, index * each);
    return {begin, std::min(each, o_.numel - begin)};
  }
  static Stretch cut(const Stretch& shard, int64_t segment, int64_t index) {
    const int64_t at = std::min(shard.count, index * segment);
    return {shard.begin + at, std::min(segment, shard.count - at)};
  }

  // A plan in which a peer would hear nothing from this rank gets an empty frame: what is wrong
  // with a call must be known to all before anyone goes on.
  void greet() {
    if (!is_collective(o_.kind)) return;
    for_each_peer([&](int p) {
      for (Moves* moves : {&plan_.sends, &plan_.recvs})
        if ((*moves)[static_cast<size_t>(p)].empty()) push(*moves, p, {}, 0);
    });
  }

  // Every rank (or root alone) reduces all of the tensor.
  void reduce_in_one_step(int root);
  // Every rank reduces its shard; all ranks, or one, or nobody else get the results.
  void reduce_by_shards(int to);

  const RingPlanOptions o_;
  RingPlan plan_;
  int64_t segment_;
};

void Planner::reduce_in_one_step(int root) {
  const bool here = root == kAll || root == o_.rank;
  // What waits in the scratch memory should stay in the cache.
  const int64_t segment =
      o_.size > 2 ? std::max(kAlign, segment_ / (o_.size - 1) / kAlign * kAlign) : segment_;
  const int64_t stride = std::min(round_up(segment, kAlign), round_up(o_.numel, kAlign));
  const int64_t slots = o_.numel > segment ? kSlots : 1;
  if (here) plan_.scratch = stride * slots * (o_.size - 1);
  for (int64_t begin = 0, j = 0; begin < o_.numel; begin += segment, ++j) {
    const int64_t count = std::min(segment, o_.numel - begin);
    const Place place{Area::output, begin};
    const int64_t parts = j % slots * stride * (o_.size - 1);
    const auto free = static_cast<int32_t>(std::max<int64_t>(0, j - slots + 1));
    for_each_peer([&](int p) {
      int32_t frames = 0;
      if (root == kAll || root == p) {
        frames = push(plan_.sends, p, place, count);
        // The result is written over what is to be sent.
        if (here) need(p, true, frames);
      }
      if (!here) return;
      frames =
          push(plan_.recvs, p, {Area::scratch, parts + slot(o_.rank, p) * stride}, count, free);
      need(p, false, frames);
    });
    if (here)
      add({.kind = Task::Kind::reduce,
           .out = place,
           .own = place,
           .count = count,
           .parts = parts,
           .stride = stride});
  }
}

void Planner::reduce_by_shards(int to) {
  const bool scattered = o_.kind == CallKind::reduce_scatter;
  const int others = o_.size - 1;
  const int64_t segment = std::max(kAlign, segment_ / others / kAlign * kAlign);
  const auto shard_of = [&](int r) {
    return scattered ? Stretch{r * o_.numel, o_.numel} : shard(r, o_.size);
  };
  const Area from = scattered ? Area::input : Area::output;
  const int64_t longest = shard_of(0).count;
  const int64_t segments = (longest + segment - 1) / segment;
  const int64_t stride = std::min(round_up(segment, kAlign), round_up(longest, kAlign));
  // Where nobody but `to` may see results, they lie behind the parts until they are sent.
  const bool aside = to >= 0 && to != o_.rank;
  plan_.scratch = stride * kSlots * (others + (aside ? 1 : 0));
  const auto reduced_into = [&](int64_t j, const Stretch& mine) {
    if (aside) return Place{Area::scratch, stride * (kSlots * others + j % kSlots)};
    return Place{Area::output, scattered ? mine.begin - o_.rank * o_.numel : mine.begin};
  };
  std::vector<int32_t> results_sent(static_cast<size_t>(std::max<int64_t>(segments, 1)));
  for (int64_t j = 0; j < segments + kAhead; ++j) {
    if (j < segments) {
      const Stretch mine = cut(shard_of(o_.rank), segment, j);
      const int64_t parts = j % kSlots * stride * others;
      const auto free = static_cast<int32_t>(std::max<int64_t>(0, j - kSlots + 1));
      for_each_peer([&](int p) {
        const Stretch theirs = cut(shard_of(p), segment, j);
        push(plan_.sends, p, {from, theirs.begin}, theirs.count);
        need(p, false,
             push(plan_.recvs, p, {Area::scratch, parts + slot(o_.rank, p) * stride}, mine.count,
                  free));
      });
      if (aside && j >= kSlots) need(to, true, -static_cast<int32_t>(j - kSlots) - 1);
      add({.kind = Task::Kind::reduce,
           .out = reduced_into(j, mine),
           .own = {from, mine.begin},
           .count = mine.count,
           .parts = parts,
           .stride = stride});
    }
    const int64_t done = j - kAhead;
    if (done < 0 || to == kNobody) continue;
    const Stretch mine = cut(shard_of(o_.rank), segment, done);
    for_each_peer([&](int p) {
      const Stretch theirs = cut(shard_of(p), segment, done);
      if (to == kAll || to == p)
        results_sent[static_cast<size_t>(done)] = push(plan_.sends, p, reduced_into(done, mine),
                                                       mine.count, static_cast<int32_t>(done + 1));
      if (to == kAll || to == o_.rank)
        push(plan_.recvs, p, {Area::output, theirs.begin}, theirs.count);
    });
  }
  // Results that had to be sent were not numbered yet when they were waited for.
  for (Need& need : plan_.needs)
    if (need.frames < 0) need.frames = results_sent[static_cast<size_t>(-need.frames - 1)];
}

void Planner::all_reduce() { is_direct() ? reduce_in_one_step(kAll) : reduce_by_shards(kAll); }

void Planner::reduce() { is_direct() ? reduce_in_one_step(o_.root) : reduce_by_shards(o_.root); }

void Planner::reduce_scatter() {
  if (o_.size == 1)
    copy({Area::output, 0}, {Area::input, 0});
  else
    reduce_by_shards(kNobody);
}

void Planner::all_gather() {
  copy({Area::output, o_.rank * o_.numel}, {Area::input, 0});
  for_each_peer([&](int p) {
    move(plan_.sends, p, {Area::input, 0}, o_.numel);
    move(plan_.recvs, p, {Area::output, p * o_.numel}, o_.numel);
  });
}

void Planner::broadcast() {
  const int root = o_.root;
  const Place all{Area::output, 0};
  if (is_direct()) {
    if (o_.rank != root) return move(plan_.recvs, root, all, o_.numel);
    return for_each_peer([&](int p) { move(plan_.sends, p, all, o_.numel); });
  }
  // Root sends a shard to each of the others, which pass it on to each other.
  const auto shard_of = [&](int r) { return shard(slot(root, r), o_.size - 1); };
  if (o_.rank == root)
    return for_each_peer([&](int p) {
      const Stretch theirs = shard_of(p);
      move(plan_.sends, p, {Area::output, theirs.begin}, theirs.count);
    });
  const Stretch mine = shard_of(o_.rank);
  for (int64_t at = 0; at < mine.count; at += segment_) {
    const Place place{Area::output, mine.begin + at};
    const int64_t count = std::min(segment_, mine.count - at);
    need(root, false, push(plan_.recvs, root, place, count));
    const int32_t after = add({});
    for_each_peer([&](int p) {
      if (p != root) push(plan_.sends, p, place, count, after);
    });
  }
  for_each_peer([&](int p) {
    if (p == root) return;
    const Stretch theirs = shard_of(p);
    move(plan_.recvs, p, {Area::output, theirs.begin}, theirs.count);
  });
}

void Planner::scatter() {
  if (o_.rank != o_.root) return move(plan_.recvs, o_.root, {Area::output, 0}, o_.numel);
  copy({Area::output, 0}, {Area::input, o_.rank * o_.numel});
  for_each_peer([&](int p) { move(plan_.sends, p, {Area::input, p * o_.numel}, o_.numel); });
}

void Planner::gather() {
  if (o_.rank != o_.root) return move(plan_.sends, o_.root, {Area::input, 0}, o_.numel);
  copy({Area::output, o_.rank * o_.numel}, {Area::input, 0});
  for_each_peer([&](int p) { move(plan_.recvs, p, {Area::output, p * o_.numel}, o_.numel); });
}

void Planner::all_to_all() {
  const int64_t own = o_.rank * o_.numel;
  copy({Area::output, own}, {Area::input, own});
  for_each_peer([&](int p) {
    move(plan_.sends, p, {Area::input, p * o_.numel}, o_.numel);
    move(plan_.recvs, p, {Area::output, p * o_.numel}, o_.numel);
  });
}

}  // namespace

RingPlan plan(const RingPlanOptions& options) {
  Planner planner(options);
  switch (options.kind) {
    case CallKind::all_reduce:
      planner.all_reduce();
      break;
    case CallKind::reduce:
      planner.reduce();
      break;
    case CallKind::reduce_scatter:
      planner.reduce_scatter();
      break;
    case CallKind::all_gather:
      planner.all_gather();
      break;
    case CallKind::broadcast:
      planner.broadcast();
      break;
    case CallKind::scatter:
      planner.scatter();
      break;
    case CallKind::gather:
      planner.gather();
      break;
    case CallKind::all_to_all:
      planner.all_to_all();
      break;
    case CallKind::send:
      planner.send();
      break;
    case CallKind::recv:
      planner.recv();
      break;
    case CallKind::barrier:
      break;
  }
  return planner.take();
}

}  // namespace cairn::dist
