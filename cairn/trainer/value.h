// Value and State: the small, typed settings and counters that checkpoints, callbacks and loggers
// exchange.
// Invariant: a State written to text and read back is equal, bit for bit, NaN and infinities
// included.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "cairn/tensor/error.h"

namespace cairn::trainer {

// One bool, integer, floating number or text. Keeps the kind it was made with: 1 is an integer, 1.0
// is not.
class Value {
 public:
  Value() : data_(int64_t{0}) {}
  template <class T>
  requires std::is_arithmetic_v<T> Value(T value) : data_(kind_of(value)) {}
  Value(std::string text) : data_(std::move(text)) {}
  Value(const char* text) : data_(std::string(text)) {}

  bool operator==(const Value& other) const;

  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<int64_t>(data_); }
  bool is_double() const { return std::holds_alternative<double>(data_); }
  bool is_text() const { return std::holds_alternative<std::string>(data_); }

  // Each throws Error when the value is of another kind (an integer passes as a double).
  bool as_bool() const;
  int64_t as_int() const;
  double as_double() const;
  const std::string& as_text() const;

  // As a table cell shows it: no quotes; the shortest number that reads back the same.
  std::string to_text() const;

 private:
  template <class T>
  static std::variant<bool, int64_t, double, std::string> kind_of(T value) {
    if constexpr (std::is_same_v<T, bool>)
      return value;
    else if constexpr (std::is_integral_v<T>)
      return static_cast<int64_t>(value);
    else
      return static_cast<double>(value);
  }

  std::variant<bool, int64_t, double, std::string> data_;
};

using State = std::map<std::string, Value>;

// The value of `key`; throws Error naming `what` (the state's owner) when there is none.
const Value& require(const State& state, const std::string& key, std::string_view what);

// `state`'s entries under "prefix." without that prefix, and the reverse.
State take_prefix(const State& state, std::string_view prefix);
void add_prefix(State& into, std::string_view prefix, const State& state);

}  // namespace cairn::trainer
