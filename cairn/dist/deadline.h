// Deadline: the moment until which something may wait.
// Invariant: counted on the monotonic clock, so that a jump of the wall clock changes nothing.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>

namespace cairn::dist {

using Milliseconds = std::chrono::milliseconds;

// What a wait may last where nobody says otherwise.
inline constexpr Milliseconds kDefaultTimeout = std::chrono::seconds(60);

// "60 s", "250 ms".
inline std::string in_words(Milliseconds time) {
  const bool whole = time.count() % 1000 == 0 && time.count() != 0;
  return whole ? std::to_string(time.count() / 1000) + " s" : std::to_string(time.count()) + " ms";
}

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr Milliseconds kLongest = std::chrono::hours(24 * 24);

  // At most 24 days, which is what poll() can be told.
  explicit Deadline(Milliseconds timeout) : at_(Clock::now() + std::min(timeout, kLongest)) {}
  explicit Deadline(Clock::time_point at) : at_(at) {}

  Clock::time_point at() const { return at_; }
  bool expired() const { return Clock::now() >= at_; }
  // What is left, not below 0, rounded up, so that a poll() of it does not end just before.
  Milliseconds remaining() const {
    return std::max(Milliseconds(0), std::chrono::ceil<Milliseconds>(at_ - Clock::now()));
  }
  // The nearer of the two.
  Deadline or_in(Milliseconds timeout) const {
    return Deadline(std::min(at_, Deadline(timeout).at_));
  }

 private:
  Clock::time_point at_;
};

}  // namespace cairn::dist
