// Value's accessors and the helpers for prefixed states.
#include "cairn/trainer/value.h"

#include <bit>

namespace cairn::trainer {
namespace {

const char* kind_name(const Value& value) {
  if (value.is_bool()) return "bool";
  if (value.is_int()) return "integer";
  if (value.is_double()) return "number";
  return "text";
}

}  // namespace

bool Value::operator==(const Value& other) const {
  if (is_double() && other.is_double())  // by bits, so that NaN equals itself
    return std::bit_cast<uint64_t>(std::get<double>(data_)) ==
           std::bit_cast<uint64_t>(std::get<double>(other.data_));
  return data_ == other.data_;
}

bool Value::as_bool() const {
  check(is_bool(), "value: kind must be bool, got ", kind_name(*this));
  return std::get<bool>(data_);
}

int64_t Value::as_int() const {
  check(is_int(), "value: kind must be integer, got ", kind_name(*this));
  return std::get<int64_t>(data_);
}

double Value::as_double() const {
  if (is_int()) return static_cast<double>(std::get<int64_t>(data_));
  check(is_double(), "value: kind must be number, got ", kind_name(*this));
  return std::get<double>(data_);
}

const std::string& Value::as_text() const {
  check(is_text(), "value: kind must be text, got ", kind_name(*this));
  return std::get<std::string>(data_);
}

std::string Value::to_text() const {
  if (is_text()) return as_text();
  if (is_bool()) return as_bool() ? "true" : "false";
  if (is_int()) return std::to_string(as_int());
  return cat(as_double());
}

const Value& require(const State& state, const std::string& key, std::string_view what) {
  const auto it = state.find(key);
  check(it != state.end(), what, ": state must have '", key, "', got none");
  return it->second;
}

State take_prefix(const State& state, std::string_view prefix) {
  State out;
  for (const auto& [key, value] : state)
    if (key.size() > prefix.size() && key.starts_with(prefix) && key[prefix.size()] == '.')
      out.emplace(key.substr(prefix.size() + 1), value);
  return out;
}

void add_prefix(State& into, std::string_view prefix, const State& state) {
  for (const auto& [key, value] : state) into[cat(prefix, ".", key)] = value;
}

}  // namespace cairn::trainer
