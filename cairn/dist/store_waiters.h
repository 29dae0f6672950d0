// StoreWaiters: the get() and wait() requests whose keys are not set yet.
// Invariant: a waiter stands at one key that is not set, and moves on when it is; so setting a key
// looks at those who wait for it alone.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "cairn/dist/store_table.h"

namespace cairn::dist {

struct StoreWaiter {
  uint64_t owner = 0;  // the connection
  uint32_t request = 0;
  bool wants_value = false;  // get() of its only key
  std::vector<std::string> keys;
  Milliseconds timeout{};
  Deadline deadline{Milliseconds(0)};
};

class StoreWaiters {
 public:
  // Gives it back where all its keys are set.
  std::optional<StoreWaiter> add(StoreWaiter waiter, const StoreTable& table);
  // Those that wait no more, now that the key is set.
  std::vector<StoreWaiter> key_set(std::string_view key, const StoreTable& table);
  // Those whose time is over.
  std::vector<StoreWaiter> expired();
  // The first deadline.
  std::optional<Deadline> next() const;
  void drop(uint64_t owner);
  size_t count(uint64_t owner) const;

 private:
  struct Entry {
    StoreWaiter waiter;
    std::string at;  // the key that it stands at
  };

  StoreWaiter take(uint64_t id);

  uint64_t next_id_ = 0;
  std::unordered_map<uint64_t, Entry> entries_;
  std::map<std::string, std::set<uint64_t>, std::less<>> by_key_;
  std::set<std::pair<Deadline::Clock::time_point, uint64_t>> by_time_;
  std::map<uint64_t, std::set<uint64_t>> by_owner_;
};

}  // namespace cairn::dist
