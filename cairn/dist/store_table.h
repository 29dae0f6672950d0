// StoreTable: what a store holds, and what each operation does to it; for one thread at a time.
// Invariant: the server and the in-memory store differ in how they wait, never in what they hold.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "cairn/dist/deadline.h"
#include "cairn/tensor/error.h"

namespace cairn::dist {

// Texts for keys that nobody has set: "store: key 'k' must be set within 60 s, got nothing".
CommError not_set(std::span<const std::string> missing, Milliseconds timeout);
// 0 to a year, whatever was asked for, so that no clock overflows.
Milliseconds sane(Milliseconds timeout);
// Error where a store does not take them.
void check_key(std::string_view key);
void check_value(std::string_view value);

class StoreTable {
 public:
  static constexpr size_t kMaxKey = 1024, kMaxValue = size_t{16} << 20;

  // Shared, so that a value is in memory once however many readers it is on its way to.
  using Value = std::shared_ptr<const std::string>;

  void set(std::string_view key, std::string_view value);
  // Null where the key is not set.
  Value find(std::string_view key) const;
  int64_t add(std::string_view key, int64_t delta);
  Value compare_set(std::string_view key, std::string_view expected, std::string_view desired);
  bool erase(std::string_view key);
  int64_t size() const { return static_cast<int64_t>(values_.size()); }

 private:
  std::map<std::string, Value, std::less<>> values_;
};

}  // namespace cairn::dist
