// StoreTable.
#include "cairn/dist/store_table.h"

#include <algorithm>
#include <charconv>

namespace cairn::dist {
namespace {

// As error texts name them; a key can be any bytes.
std::string quoted(std::string_view key) {
  std::string out = "'";
  for (const char c : key.substr(0, 100)) out += c >= ' ' && c <= '~' ? c : '?';
  return out + (key.size() > 100 ? "…'" : "'");
}

}  // namespace

CommError not_set(std::span<const std::string> missing, Milliseconds timeout) {
  constexpr size_t kNamed = 16;
  std::string keys;
  for (size_t i = 0; i < std::min(kNamed, missing.size()); ++i)
    keys += cat(i == 0 ? "" : ", ", quoted(missing[i]));
  if (missing.size() > kNamed) keys += cat(" and ", missing.size() - kNamed, " more");
  return CommError(cat("store: ", missing.size() == 1 ? "key " : "keys ", keys,
                       " must be set within ", in_words(timeout), ", got nothing"));
}

Milliseconds sane(Milliseconds timeout) {
  return std::clamp(timeout, Milliseconds(0), Milliseconds(std::chrono::hours(24 * 365)));
}

void check_key(std::string_view key) {
  check(!key.empty() && key.size() <= StoreTable::kMaxKey, "store: key must have 1 to ",
        StoreTable::kMaxKey, " bytes, got ", key.size());
}

void check_value(std::string_view value) {
  check(value.size() <= StoreTable::kMaxValue, "store: value must have at most ",
        StoreTable::kMaxValue, " bytes, got ", value.size());
}

void StoreTable::set(std::string_view key, std::string_view value) {
  check_key(key);
  check_value(value);
  values_.insert_or_assign(std::string(key), std::make_shared<const std::string>(value));
}

StoreTable::Value StoreTable::find(std::string_view key) const {
  check_key(key);
  const auto at = values_.find(key);
  return at == values_.end() ? nullptr : at->second;
}

int64_t StoreTable::add(std::string_view key, int64_t delta) {
  const Value value = find(key);
  int64_t number = 0;
  if (value) {
    const char* const end = value->data() + value->size();
    const auto [read, failed] = std::from_chars(value->data(), end, number);
    check(failed == std::errc() && read == end, "store: key ", quoted(key),
          " must be a whole number for add, got ", value->size(), " other bytes");
  }
  int64_t sum = 0;
  check(!__builtin_add_overflow(number, delta, &sum), "store: the sum of key ", quoted(key),
        " must fit 64 bits, got ", number, " and ", delta);
  set(key, std::to_string(sum));
  return sum;
}

StoreTable::Value StoreTable::compare_set(std::string_view key, std::string_view expected,
                                          std::string_view desired) {
  check_value(desired);
  Value value = find(key);
  if ((value ? std::string_view(*value) : std::string_view()) != expected) return value;
  set(key, desired);
  return find(key);
}

bool StoreTable::erase(std::string_view key) {
  check_key(key);
  const auto at = values_.find(key);
  if (at == values_.end()) return false;
  values_.erase(at);
  return true;
}

}  // namespace cairn::dist
