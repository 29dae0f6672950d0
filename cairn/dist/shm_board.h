// ShmBoard: what the ranks of one host tell each other in shared memory: how far each is, in which
// call, and the bytes of its tensors by chunks.
// Invariant: ranks walk in steps, each of which ends when all have arrived. What a rank writes for
// step s lies in buffer s % 2 and stands until step s + 2 is written, which no rank can reach
// before all have arrived at s + 1 and so are done with s.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "cairn/dist/diagnosis.h"
#include "cairn/dist/shm_links.h"

namespace cairn::dist {

// A counter that one rank raises and others wait for; on cache lines of its own.
struct alignas(128) ShmFlag {
  std::atomic<uint32_t> value{0};
  std::atomic<uint32_t> sleepers{0};
  std::atomic<int> core{-1};  // where it was raised last
};
static_assert(std::atomic<uint32_t>::is_always_lock_free &&
              std::atomic<uint64_t>::is_always_lock_free);

// What a rank tells of its call, so that all can compare.
struct ShmNotice {
  CallNotice call;
  uint64_t zeros_hash = 0;
  // Where its input lies in memory that all can reach; region 0 where it does not.
  uint64_t region = 0;
  int64_t offset = 0;  // in bytes, within the rank's part of the region
};

// The bytes under way from one rank to another; `written` and `read` count them modulo 2^32.
struct ShmMail {
  static constexpr uint32_t kCapacity = 64 << 10;
  ShmFlag written, read;
  std::byte bytes[kCapacity];
};

class ShmBoard {
 public:
  // What one rank may write for one step, in bytes.
  static constexpr int64_t kChunk = int64_t{1} << 19;

  ShmBoard(const GroupOptions& options, const Deadline& deadline);

  ShmLinks& links() { return links_; }
  Diagnosis& diagnosis() { return diagnosis_; }

  // Own: for the step to come. Others': of the step that is done.
  ShmNotice& next_notice() { return part(rank_).notices[(step_ + 1) % 2]; }
  const ShmNotice& notice(int rank) const { return part(rank).notices[step_ % 2]; }
  std::byte* next_chunk() const { return chunk(rank_, step_ + 1); }
  std::byte* chunk(int rank) const { return chunk(rank, step_); }
  ShmMail& mail(int from, int to) const;

  // Tells that this rank has written its part of the next step, and waits for all others.
  // TimeoutError or CommError where one does not come.
  void meet(const Call& call);
  // CommError where a rank has given up on the step that is done here: this one came too late.
  void check_whole(const Call& call);
  void step(const Call& call) {
    meet(call);
    check_whole(call);
  }
  // Raises a flag by `by` and wakes those who sleep on it.
  void raise(ShmFlag& flag, uint32_t by);
  // Waits until flag's value is another than `seen` and returns it; `peer` raises it.
  uint32_t wait_for_change(ShmFlag& flag, uint32_t seen, int peer, const Call& call);

  // Tells all others that this call failed here.
  void break_up(const Call* call) noexcept;

 private:
  // Whether the step that is done here is one that the rank which broke the group did not do.
  bool reaches(uint64_t broken) const;
  struct Part {
    ShmFlag flag;
    alignas(128) ShmNotice notices[2];
  };
  // The first failure: 1 + its rank, and in the upper half the step that it was in. 0: none.
  struct alignas(128) Header {
    std::atomic<uint64_t> broken{0};
  };

  Header& header() const { return *reinterpret_cast<Header*>(memory_.data()); }
  Part& part(int rank) const;
  std::byte* chunk(int rank, uint32_t step) const;
  template <class Done>
  void wait(ShmFlag& flag, int peer, const Call& call, const Done& done);
  template <class Done>
  void look_around(int peer, const Call& call, const Done& done);
  std::vector<int> late() const;
  bool arrived(int rank) const;

  const int rank_, size_;
  const bool crowded_;  // more ranks than cores
  ShmLinks links_;
  Diagnosis diagnosis_;
  SharedMemory memory_;
  uint32_t step_ = 0;
};

}  // namespace cairn::dist
