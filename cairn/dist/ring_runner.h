// RingRunner: walks a plan over a mesh.
// Invariant: it decides nothing; what is sent, received and reduced stands in the plan. It waits
// only while nothing can be moved, and every wait ends at the deadline or with a dead peer.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cairn/dist/mesh.h"
#include "cairn/dist/ring_plan.h"

namespace cairn::dist {

// A tensor's memory as plans count its elements: stretches may be left out.
class Window {
 public:
  Window() = default;
  Window(void* data, int64_t numel, int64_t item_size) : Window(data, numel, item_size, {}) {}
  // Without `holes`.
  Window(void* data, int64_t numel, int64_t item_size, const kernels::ZeroRanges& holes);

  int64_t numel() const { return starts_.empty() ? 0 : starts_.back(); }
  // Calls body(memory, elements) for each stretch of [begin, begin + count).
  template <class Body>
  void for_each(int64_t begin, int64_t count, Body&& body) const {
    auto at = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), begin) -
                                  starts_.begin());
    for (; count > 0; ++at) {
      const int64_t here = std::min(count, starts_[at] - begin);
      body(memory_[at - 1] + (begin - starts_[at - 1]) * item_size_, here);
      begin += here;
      count -= here;
    }
  }

 private:
  std::vector<std::byte*> memory_;
  std::vector<int64_t> starts_;  // of the stretches, counted without holes; then the end
  int64_t item_size_ = 1;
};

// Why a call cannot go on; the group makes sentences of it.
struct PeerLost {
  int peer;
};
struct FrameDamaged {
  int peer;
  std::string what;
};
struct CallsDiffer {};
struct TooLate {
  std::vector<int> peers;  // that were waited for
};

// What a call works on.
struct RingMemory {
  Window input, output;
  DType dtype = DType::u8;
  ReduceOp op = ReduceOp::sum;
  double scale = 1;  // of the result
};

class RingRunner {
 public:
  // `is_past(peer)`: whether a peer whose connection ended has sent all that it owed to the current
  // call.
  RingRunner(Mesh& mesh, int rank, std::function<bool(int)> is_past);

  // `call`: the fingerprint that all frames carry. Throws the reasons above.
  void walk(const RingPlan& plan, const RingMemory& memory, uint64_t call,
            const Deadline& deadline);
  // Tells all others a number (not 0) and returns whether all of them told the same, where one that
  // goes on with its plan at once told none.
  bool agree(uint64_t call, uint64_t number, const Deadline& deadline);

 private:
  struct Stream {
    int32_t sent = 0, received = 0;  // frames
  };

  bool push(int peer);
  bool pull(int peer);
  bool work();
  bool ready(const Task& task) const;
  void run(const Task& task);
  std::span<const Piece> pieces_of(Place place, int64_t count);
  std::byte* scratch(int64_t offset) const;
  // Throws unless done or again; whether done.
  bool settle(int peer, Progress progress);
  // Nothing moved: spins for a moment, then sleeps until something can.
  void rest(const Deadline& deadline);
  void begin();
  void look_around();
  void wait(Milliseconds at_most);

  Mesh& mesh_;
  const int rank_;
  const std::function<bool(int)> is_past_;
  bool may_spin_;

  std::vector<std::byte> memory_of_scratch_;
  std::vector<Piece> pieces_;
  std::vector<kernels::Part> parts_;
  std::vector<Mesh::Wish> wishes_;
  std::vector<Stream> streams_;

  // Of the current walk.
  const RingPlan* plan_ = nullptr;
  const RingMemory* memory_ = nullptr;
  uint64_t call_ = 0;
  size_t tasks_done_ = 0;
  Deadline::Clock::time_point last_move_, last_look_;
};

}  // namespace cairn::dist
