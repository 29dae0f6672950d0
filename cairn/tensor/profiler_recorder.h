// What the profiler keeps: a recorder per thread, and the session they belong to.
// Invariant: events point to sites and sites to names, so that an event is small and a steady state
// allocates nothing but the events themselves.
#pragma once

#include <mutex>
#include <unordered_map>

#include "cairn/tensor/profiler.h"

namespace cairn::profiler::detail {

// Header of a tensor in Work: dtype, number of dimensions, whether it is added to.
inline int64_t header_word(DType dtype, size_t dims, bool add) {
  return static_cast<int64_t>(dtype) | static_cast<int64_t>(dims) << 8 |
         static_cast<int64_t>(add) << 16;
}

// All ranges of one name, kind, work and shapes on one thread.
struct Site {
  uint32_t name = 0;
  Kind kind = Kind::range;
  std::vector<int64_t> words;  // as in Work
  int64_t calls = 0;
  int64_t total = 0, self = 0;  // nanoseconds
  int64_t bytes = 0, flops = 0;
};

struct Event {
  int64_t start;     // nanoseconds of the steady clock
  int64_t duration;  // nanoseconds
  uint32_t site;
};

// Shared by a session and its recorders, which may outlive it in an open range.
struct Limits {
  bool take();  // whether there is room for one more event

  std::atomic<bool> stopped{false};
  std::atomic<int64_t> events{0};
  int64_t max_events = 0;
};

struct WordsHash {
  size_t operator()(const std::vector<int64_t>& words) const;
};
struct NameHash {
  using is_transparent = void;
  size_t operator()(std::string_view name) const { return std::hash<std::string_view>()(name); }
};

class Recorder {
 public:
  explicit Recorder(std::shared_ptr<Limits> limits) : limits_(std::move(limits)) {}

  // Returns the depth to close.
  size_t open(std::string_view name, Kind kind, const Work& work);
  void close(size_t depth);

  // read(names, sites, events), while nothing changes.
  template <class Read>
  void with(Read&& read) const {
    const std::lock_guard lock(mutex_);
    read(names_, sites_, events_);
  }

 private:
  struct Frame {
    uint32_t site;
    bool recursive;  // inside a range of the same name
    int64_t bytes, flops;
    int64_t start;
    int64_t nested;  // nanoseconds in the ranges directly below
  };

  uint32_t name_id(std::string_view name);
  uint32_t site_of(std::string_view name, Kind kind, const Work& work);

  const std::shared_ptr<Limits> limits_;
  mutable std::mutex mutex_;
  std::vector<Frame> frames_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, uint32_t, NameHash, std::equal_to<>> name_ids_;
  std::vector<Site> sites_;
  std::unordered_map<std::vector<int64_t>, uint32_t, WordsHash> site_ids_;
  std::vector<int64_t> key_;  // of the site looked for
  std::vector<Event> events_;
};

class Session {
 public:
  explicit Session(int64_t max_events);

  static void start(const std::shared_ptr<Session>& session);
  void stop();
  void add(std::shared_ptr<Recorder> recorder);

  const std::shared_ptr<Limits>& limits() const { return limits_; }
  std::vector<std::shared_ptr<Recorder>> recorders() const;  // in the order they started
  int64_t start_time() const { return start_; }
  int64_t nanoseconds() const;

 private:
  const std::shared_ptr<Limits> limits_;
  const int64_t start_;
  std::atomic<int64_t> end_{0};  // 0: still recording
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Recorder>> recorders_;
};

}  // namespace cairn::profiler::detail
