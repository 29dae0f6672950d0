// FlightRecorder: a ring of the last calls.
#include "cairn/dist/flight_recorder.h"

#include <cstdio>

namespace cairn::dist {

uint64_t FlightRecorder::asked(const Call& call) {
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[next_ % kCapacity];
  entry.state = State::queued;
  entry.is = call.is;
  entry.shape = call.shape;
  entry.peer = call.peer;
  entry.asked = entry.started = entry.ended = Clock::now();
  return next_++;
}

void FlightRecorder::started(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  if (Entry* entry = find(ticket)) {
    entry->state = State::running;
    entry->started = Clock::now();
  }
}

void FlightRecorder::ended(uint64_t ticket, bool well) {
  const std::lock_guard lock(mutex_);
  if (Entry* entry = find(ticket)) {
    entry->state = well ? State::done : State::failed;
    entry->ended = Clock::now();
  }
}

FlightRecorder::Entry* FlightRecorder::find(uint64_t ticket) {
  return ticket < next_ && next_ - ticket <= kCapacity ? &entries_[ticket % kCapacity] : nullptr;
}

std::string FlightRecorder::table() const {
  const auto ms = [](Clock::time_point from, Clock::time_point to) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f ms",
                  std::chrono::duration<double, std::milli>(to - from).count());
    return std::string(text);
  };
  const std::lock_guard lock(mutex_);
  std::string out;
  const uint64_t first = next_ > kCapacity ? next_ - kCapacity : 0;
  for (uint64_t ticket = first; ticket < next_; ++ticket) {
    const Entry& entry = entries_[ticket % kCapacity];
    out += cat("  ", describe(entry.is, entry.shape, entry.peer), ": ");
    const Clock::time_point now = Clock::now();
    switch (entry.state) {
      case State::queued:
        out += cat("waits since ", ms(entry.asked, now));
        break;
      case State::running:
        out += cat("runs since ", ms(entry.started, now), " after a wait of ",
                   ms(entry.asked, entry.started));
        break;
      default:
        out += cat(entry.state == State::done ? "done in " : "failed after ",
                   ms(entry.started, entry.ended), " after a wait of ",
                   ms(entry.asked, entry.started));
    }
    out += '\n';
  }
  return out;
}

}  // namespace cairn::dist
