// StoreWaiters.
#include "cairn/dist/store_waiters.h"

#include <algorithm>

namespace cairn::dist {
namespace {

// The first key that is not set; null where all are.
const std::string* missing(const StoreWaiter& waiter, const StoreTable& table) {
  const auto at = std::find_if(waiter.keys.begin(), waiter.keys.end(),
                               [&](const std::string& key) { return !table.find(key); });
  return at == waiter.keys.end() ? nullptr : &*at;
}

// An index loses an entry, and a key without entries.
template <class Index, class Key>
void leave(Index& index, const Key& key, uint64_t id) {
  const auto at = index.find(key);
  at->second.erase(id);
  if (at->second.empty()) index.erase(at);
}

}  // namespace

std::optional<StoreWaiter> StoreWaiters::add(StoreWaiter waiter, const StoreTable& table) {
  const std::string* const key = missing(waiter, table);
  if (key == nullptr) return waiter;
  const uint64_t id = next_id_++;
  by_time_.emplace(waiter.deadline.at(), id);
  by_owner_[waiter.owner].insert(id);
  by_key_[*key].insert(id);
  std::string at = *key;
  entries_.emplace(id, Entry{std::move(waiter), std::move(at)});
  return std::nullopt;
}

StoreWaiter StoreWaiters::take(uint64_t id) {
  const auto at = entries_.find(id);
  StoreWaiter waiter = std::move(at->second.waiter);
  leave(by_key_, at->second.at, id);
  leave(by_owner_, waiter.owner, id);
  by_time_.erase({waiter.deadline.at(), id});
  entries_.erase(at);
  return waiter;
}

std::vector<StoreWaiter> StoreWaiters::key_set(std::string_view key, const StoreTable& table) {
  std::vector<StoreWaiter> out;
  const auto at = by_key_.find(key);
  if (at == by_key_.end()) return out;
  const std::set<uint64_t> here = at->second;
  for (const uint64_t id : here) {
    Entry& entry = entries_.at(id);
    const std::string* const next = missing(entry.waiter, table);
    if (next == nullptr) {
      out.push_back(take(id));
    } else {
      leave(by_key_, entry.at, id);
      entry.at = *next;
      by_key_[entry.at].insert(id);
    }
  }
  return out;
}

std::vector<StoreWaiter> StoreWaiters::expired() {
  std::vector<StoreWaiter> out;
  const auto now = Deadline::Clock::now();
  while (!by_time_.empty() && by_time_.begin()->first <= now)
    out.push_back(take(by_time_.begin()->second));
  return out;
}

std::optional<Deadline> StoreWaiters::next() const {
  if (by_time_.empty()) return std::nullopt;
  return Deadline(by_time_.begin()->first);
}

void StoreWaiters::drop(uint64_t owner) {
  const auto at = by_owner_.find(owner);
  if (at == by_owner_.end()) return;
  const std::set<uint64_t> ids = at->second;
  for (const uint64_t id : ids) take(id);
}

size_t StoreWaiters::count(uint64_t owner) const {
  const auto at = by_owner_.find(owner);
  return at == by_owner_.end() ? 0 : at->second.size();
}

}  // namespace cairn::dist
