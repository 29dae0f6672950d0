// FlightRecorder: the last collectives of a group on this rank, for the case that one goes wrong.
// Invariant: recording neither allocates (in a steady state) nor waits for anything but a mutex.
#pragma once

#include <array>
#include <chrono>
#include <mutex>
#include <string>

#include "cairn/dist/call.h"

namespace cairn::dist {

class FlightRecorder {
 public:
  static constexpr size_t kCapacity = 64;

  // Returns the call's ticket.
  uint64_t asked(const Call& call);
  void started(uint64_t ticket);
  void ended(uint64_t ticket, bool well);

  // One line per collective, the oldest first: number, what, state, and how long it waited and ran.
  std::string table() const;

 private:
  using Clock = std::chrono::steady_clock;
  enum class State : uint8_t { queued, running, done, failed };
  struct Entry {
    State state = State::queued;
    CallShape is;
    Shape shape;
    int peer = -1;
    Clock::time_point asked, started, ended;
  };
  // Null where it is no longer kept.
  Entry* find(uint64_t ticket);

  mutable std::mutex mutex_;
  std::array<Entry, kCapacity> entries_;
  uint64_t next_ = 0;  // tickets count from 0
};

}  // namespace cairn::dist
