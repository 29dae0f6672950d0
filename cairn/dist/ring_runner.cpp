// RingRunner: one loop over connections and tasks.
#include "cairn/dist/ring_runner.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

namespace cairn::dist {
namespace {

// How long a rank tries again before it sleeps: about what waking up costs, twice.
constexpr std::chrono::microseconds kSpin{50};
// How often connections that are not needed at the moment are looked at while others keep it busy.
constexpr Milliseconds kLookAround{100};
// A group that was left alone for so long is looked at before a call: a peer that gave up since
// then must not get messages that look as if all were well.
constexpr Milliseconds kIdle{10};
constexpr size_t kAlign = 64;

int processors() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

Window::Window(void* data, int64_t numel, int64_t item_size, const kernels::ZeroRanges& holes)
    : item_size_(item_size) {
  auto* bytes = static_cast<std::byte*>(data);
  starts_.push_back(0);
  kernels::for_each_rest(holes, numel, [&](int64_t begin, int64_t end) {
    memory_.push_back(bytes + begin * item_size);
    starts_.push_back(starts_.back() + end - begin);
  });
}

RingRunner::RingRunner(Mesh& mesh, int rank, std::function<bool(int)> is_past)
    : mesh_(mesh),
      rank_(rank),
      is_past_(std::move(is_past)),
      may_spin_(mesh.local_size() <= processors()) {
  const auto size = static_cast<size_t>(mesh.size());
  wishes_.resize(size);
  streams_.resize(size);
}

std::byte* RingRunner::scratch(int64_t offset) const {
  auto address = reinterpret_cast<uintptr_t>(memory_of_scratch_.data());
  address = (address + kAlign - 1) / kAlign * kAlign;
  return reinterpret_cast<std::byte*>(address) + offset * item_size(memory_->dtype);
}

std::span<const Piece> RingRunner::pieces_of(Place place, int64_t count) {
  const auto item = item_size(memory_->dtype);
  pieces_.clear();
  if (place.area == Area::scratch) {
    pieces_.push_back({scratch(place.offset), static_cast<size_t>(count * item)});
  } else {
    const Window& window = place.area == Area::input ? memory_->input : memory_->output;
    window.for_each(place.offset, count, [&](std::byte* data, int64_t n) {
      pieces_.push_back({data, static_cast<size_t>(n * item)});
    });
  }
  return pieces_;
}

bool RingRunner::settle(int peer, Progress progress) {
  switch (progress) {
    case Progress::done:
      return true;
    case Progress::again:
      return false;
    case Progress::closed:
      throw PeerLost{peer};
    case Progress::damaged:
      throw FrameDamaged{peer, mesh_.link(peer).damage()};
    case Progress::different:
      throw CallsDiffer{};
  }
  return false;
}

// One frame at most, so that all peers get their turn. Returns whether anything moved.
bool RingRunner::push(int peer) {
  Link& link = mesh_.link(peer);
  const auto& moves = plan_->sends[static_cast<size_t>(peer)];
  Stream& stream = streams_[static_cast<size_t>(peer)];
  bool& wish = wishes_[static_cast<size_t>(peer)].write;
  wish = false;
  if (!link.sending()) {
    if (stream.sent == static_cast<int32_t>(moves.size())) return false;
    const Move& move = moves[static_cast<size_t>(stream.sent)];
    if (static_cast<size_t>(move.after) > tasks_done_) return false;
    link.begin_send(call_, pieces_of(move.place, move.count));
  }
  if (settle(peer, link.push())) {
    ++stream.sent;
    return true;
  }
  wish = true;
  return false;
}

bool RingRunner::pull(int peer) {
  Link& link = mesh_.link(peer);
  const auto& moves = plan_->recvs[static_cast<size_t>(peer)];
  Stream& stream = streams_[static_cast<size_t>(peer)];
  bool& wish = wishes_[static_cast<size_t>(peer)].read;
  wish = false;
  if (!link.receiving()) {
    if (stream.received == static_cast<int32_t>(moves.size())) return false;
    const Move& move = moves[static_cast<size_t>(stream.received)];
    if (static_cast<size_t>(move.after) > tasks_done_) return false;
    link.begin_recv(call_, pieces_of(move.place, move.count));
  }
  if (settle(peer, link.pull())) {
    ++stream.received;
    return true;
  }
  wish = true;
  return false;
}

bool RingRunner::ready(const Task& task) const {
  for (uint32_t i = task.first_need; i < task.end_need; ++i) {
    const Need& need = plan_->needs[i];
    const Stream& stream = streams_[static_cast<size_t>(need.peer)];
    if ((need.sent ? stream.sent : stream.received) < need.frames) return false;
  }
  return true;
}

bool RingRunner::work() {
  bool any = false;
  for (; tasks_done_ < plan_->tasks.size(); ++tasks_done_, any = true) {
    const Task& task = plan_->tasks[tasks_done_];
    if (!ready(task)) break;
    run(task);
  }
  return any;
}

void RingRunner::run(const Task& task) {
  if (task.kind == Task::Kind::pass || task.count == 0) return;
  const auto item = item_size(memory_->dtype);
  // Where the result lies over the own part both have the same stretches; else each has one.
  const std::span<const Piece> own = pieces_of(task.own, task.count);
  int64_t at = 0;
  const auto each = [&](std::byte* out, const std::byte* mine, int64_t n) {
    if (task.kind == Task::Kind::copy) {
      if (out != mine) std::memcpy(out, mine, static_cast<size_t>(n * item));
      return;
    }
    parts_.clear();
    for (int r = 0; r < mesh_.size(); ++r)
      parts_.push_back({r == rank_ ? mine : scratch(task.parts + slot(rank_, r) * task.stride + at),
                        memory_->dtype});
    kernels::combine(Device(), out, memory_->dtype, parts_, n, memory_->op, memory_->scale);
    at += n;
  };
  if (task.out == task.own) {
    for (const Piece& piece : own)
      each(piece.data, piece.data, static_cast<int64_t>(piece.size) / item);
  } else {
    // Not through pieces_of(), which would take the place of `own`.
    std::byte* mine = own[0].data;
    std::byte* out = nullptr;
    if (task.out.area == Area::scratch)
      out = scratch(task.out.offset);
    else
      memory_->output.for_each(task.out.offset, 1, [&](std::byte* data, int64_t) { out = data; });
    each(out, mine, task.count);
  }
}

void RingRunner::walk(const RingPlan& plan, const RingMemory& memory, uint64_t call,
                      const Deadline& deadline) {
  plan_ = &plan;
  memory_ = &memory;
  call_ = call;
  tasks_done_ = 0;
  std::fill(streams_.begin(), streams_.end(), Stream{});
  const auto bytes = static_cast<size_t>(plan.scratch * item_size(memory.dtype)) + kAlign;
  if (memory_of_scratch_.size() < bytes) memory_of_scratch_.resize(bytes);
  begin();
  const int size = mesh_.size();
  const auto finished = [&] {
    if (tasks_done_ < plan.tasks.size()) return false;
    for (size_t p = 0; p < streams_.size(); ++p)
      if (streams_[p].sent < static_cast<int32_t>(plan.sends[p].size()) ||
          streams_[p].received < static_cast<int32_t>(plan.recvs[p].size()))
        return false;
    return true;
  };
  while (!finished()) {
    bool moved = work();
    for (int k = 1; k < size; ++k) {
      const int to = (rank_ + k) % size, from = (rank_ + size - k) % size;
      moved = push(to) || moved;
      moved = pull(from) || moved;
      moved = work() || moved;
    }
    if (moved)
      look_around();
    else if (!finished())
      rest(deadline);
  }
}

void RingRunner::begin() {
  const auto idle_since = std::exchange(last_look_, Deadline::Clock::now());
  last_move_ = last_look_;
  if (last_look_ - idle_since > kIdle) wait(Milliseconds(0));
}

void RingRunner::look_around() {
  last_move_ = Deadline::Clock::now();
  if (last_move_ - last_look_ < kLookAround) return;
  last_look_ = last_move_;
  wait(Milliseconds(0));
}

void RingRunner::rest(const Deadline& deadline) {
  if (may_spin_ && Deadline::Clock::now() - last_move_ < kSpin) {
    ::sched_yield();
    return;
  }
  if (deadline.expired()) {
    TooLate late;
    for (size_t p = 0; p < wishes_.size(); ++p)
      if (wishes_[p].read || wishes_[p].write) late.peers.push_back(static_cast<int>(p));
    throw late;
  }
  wait(std::min<Milliseconds>(deadline.remaining(), std::chrono::seconds(10)));
  last_look_ = Deadline::Clock::now();
}

void RingRunner::wait(Milliseconds at_most) {
  const int ended = mesh_.wait(wishes_, at_most);
  if (ended < 0) return;
  if (!is_past_(ended)) throw PeerLost{ended};
  mesh_.ignore(ended);
}

bool RingRunner::agree(uint64_t call, uint64_t number, const Deadline& deadline) {
  const int size = mesh_.size();
  begin();
  std::vector<char> told(static_cast<size_t>(size)), heard(static_cast<size_t>(size));
  int left = 2 * (size - 1);
  bool equal = true;
  for (int p = 0; p < size; ++p)
    if (p != rank_) mesh_.link(p).begin_note(call, number);
  while (left > 0) {
    bool moved = false;
    for (int p = 0; p < size; ++p) {
      if (p == rank_) continue;
      const auto at = static_cast<size_t>(p);
      if (!told[at] && settle(p, mesh_.link(p).push())) told[at] = moved = true, --left;
      uint64_t theirs = 0;
      if (!heard[at] && settle(p, mesh_.link(p).pull_note(call, theirs))) {
        heard[at] = moved = true, --left;
        equal = equal && theirs == number;
      }
      wishes_[at] = {.read = !heard[at], .write = !told[at]};
    }
    if (moved)
      look_around();
    else
      rest(deadline);
  }
  return equal;
}

}  // namespace cairn::dist
