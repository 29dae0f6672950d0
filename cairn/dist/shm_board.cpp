// ShmBoard: its layout, and how a rank waits: it spins for a short while, unless the peer needs its
// core, then sleeps in slices, between which it looks for dead peers and the deadline.
#include "cairn/dist/shm_board.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <ctime>

namespace cairn::dist {
namespace {

// Longer than ranks that come at the same time need for a step.
constexpr std::chrono::microseconds kSpin{3};
// Then others may have the core. Not a peer of another session or control group, which the kernel
// does not let in on a yield: where the peer was last on this core, a rank sleeps at once.
constexpr std::chrono::microseconds kYield{200};
// How often a waiting rank looks around. Far below the second in which a dead peer is noticed.
constexpr long kSliceNs = 20'000'000;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The kernel compares and sleeps as one, so that no waking is missed.
void sleep_on(std::atomic<uint32_t>& word, uint32_t seen) {
  const timespec slice{0, kSliceNs};
  ::syscall(SYS_futex, &word, FUTEX_WAIT, seen, &slice, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

int cores() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

// The parts of the board one after another: header, ranks, chunks, mail.
constexpr int64_t kPage = 4096;
int64_t up_to(int64_t bytes, int64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

}  // namespace

// Chunks begin at a huge page, and mail lies behind them, untouched until it is used.
ShmBoard::ShmBoard(const GroupOptions& options, const Deadline& deadline)
    : rank_(options.rank),
      size_(options.size),
      crowded_(options.size > cores()),
      links_(options, deadline),
      diagnosis_(options) {
  const int64_t ranks = size_;
  const int64_t head = up_to(int64_t{sizeof(Header)} + ranks * int64_t{sizeof(Part)}, kPage);
  const int64_t mail = size_ > 1 ? ranks * ranks * int64_t{sizeof(ShmMail)} : 0;
  memory_ = links_.share(head + ranks * 2 * kChunk + mail, deadline);
}

ShmBoard::Part& ShmBoard::part(int rank) const {
  return *reinterpret_cast<Part*>(memory_.data() + sizeof(Header) +
                                  static_cast<size_t>(rank) * sizeof(Part));
}

std::byte* ShmBoard::chunk(int rank, uint32_t step) const {
  const int64_t head = up_to(int64_t{sizeof(Header)} + size_ * int64_t{sizeof(Part)}, kPage);
  return memory_.data() + head + (2 * rank + static_cast<int>(step % 2)) * kChunk;
}

ShmMail& ShmBoard::mail(int from, int to) const {
  std::byte* const first = chunk(size_, 0);
  return *reinterpret_cast<ShmMail*>(first +
                                     static_cast<size_t>(from * size_ + to) * sizeof(ShmMail));
}

bool ShmBoard::arrived(int rank) const {
  const uint32_t value = part(rank).flag.value.load(std::memory_order_acquire);
  return static_cast<int32_t>(value - step_) >= 0;
}

std::vector<int> ShmBoard::late() const {
  std::vector<int> out;
  for (int r = 0; r < size_; ++r)
    if (!arrived(r)) out.push_back(r);
  return out;
}

// Sequentially consistent on both sides: either the sleeper sees the new value, or the one who
// raises it sees the sleeper.
void ShmBoard::raise(ShmFlag& flag, uint32_t by) {
  flag.core.store(::sched_getcpu(), std::memory_order_relaxed);
  flag.value.fetch_add(by, std::memory_order_seq_cst);
  if (flag.sleepers.load(std::memory_order_seq_cst) != 0) wake_all(flag.value);
}

void ShmBoard::meet(const Call& call) {
  ++step_;
  raise(part(rank_).flag, 1);
  for (int r = 0; r < size_; ++r)
    if (r != rank_)
      wait(part(r).flag, r, call,
           [&](uint32_t value) { return static_cast<int32_t>(value - step_) >= 0; });
}

uint32_t ShmBoard::wait_for_change(ShmFlag& flag, uint32_t seen, int peer, const Call& call) {
  uint32_t now = seen;
  wait(flag, peer, call, [&](uint32_t value) { return (now = value) != seen; });
  return now;
}

template <class Done>
void ShmBoard::wait(ShmFlag& flag, int peer, const Call& call, const Done& done) {
  const auto reached = [&] { return done(flag.value.load(std::memory_order_acquire)); };
  if (reached()) return;
  const auto start = Deadline::Clock::now();
  const bool same_core = flag.core.load(std::memory_order_relaxed) == ::sched_getcpu();
  for (bool alone = !crowded_; !same_core;) {
    for (int i = 0; alone && i < 64; ++i) {
      pause();
      if (reached()) return;
    }
    if (!alone) ::sched_yield();
    if (reached()) return;
    const auto waited = Deadline::Clock::now() - start;
    if (waited > kYield) break;
    alone = alone && waited < kSpin;
  }
  for (;;) {
    flag.sleepers.fetch_add(1, std::memory_order_seq_cst);
    const uint32_t seen = flag.value.load(std::memory_order_seq_cst);
    if (!done(seen)) sleep_on(flag.value, seen);
    flag.sleepers.fetch_sub(1, std::memory_order_relaxed);
    if (reached()) return;
    look_around(peer, call, reached);
    if (reached()) return;
  }
}

// Throws where waiting is in vain. A peer may do its part and end at once, so `done` is asked
// again.
template <class Done>
void ShmBoard::look_around(int peer, const Call& call, const Done& done) {
  const bool collective = call.peer < 0;
  for (int r = 0; r < size_; ++r) {
    if (r == rank_ || !(r == peer || collective) || !links_.ended(r)) continue;
    if (r == peer ? done() : arrived(r)) continue;
    throw CommError(diagnosis_.lost(call, r));
  }
  // Who failed later has done its part of this step.
  const uint64_t broken = header().broken.load(std::memory_order_acquire);
  if (broken != 0 && (!collective || reaches(broken)) && !done())
    throw CommError(diagnosis_.lost(call, static_cast<int>(broken & 0xffff'ffff) - 1));
  if (!call.deadline.expired()) return;
  const std::vector<int> silent = collective ? late() : std::vector<int>{peer};
  if (!silent.empty()) throw TimeoutError(diagnosis_.silent(call, silent));
}

void ShmBoard::check_whole(const Call& call) {
  const uint64_t broken = header().broken.load(std::memory_order_acquire);
  if (broken == 0 || !reaches(broken)) return;
  throw CommError(diagnosis_.lost(call, static_cast<int>(broken & 0xffff'ffff) - 1));
}

void ShmBoard::break_up(const Call* call) noexcept {
  const uint32_t at = call != nullptr && call->peer < 0 ? step_ : step_ + 1;
  const uint64_t mine = uint64_t{at} << 32 | static_cast<uint32_t>(rank_ + 1);
  uint64_t known = 0;
  // The earliest step counts, as others may wait there.
  while (!header().broken.compare_exchange_weak(known, mine))
    if (known != 0 && static_cast<int32_t>(at - static_cast<uint32_t>(known >> 32)) >= 0) return;
}

bool ShmBoard::reaches(uint64_t broken) const {
  return static_cast<int32_t>(step_ - static_cast<uint32_t>(broken >> 32)) >= 0;
}

}  // namespace cairn::dist
