// Variables.
#include "cairn/dist/variables.h"

#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>

#include "cairn/tensor/error.h"

namespace cairn::dist {

Lookup process_variables() {
  return [](const std::string& name) -> std::optional<std::string> {
    if (const char* value = std::getenv(name.c_str())) return value;
    std::array<char, 256> host{};
    if (name == "HOSTNAME" && gethostname(host.data(), host.size() - 1) == 0) return host.data();
    return std::nullopt;
  };
}

std::optional<std::string> Variables::find(const std::string& name) const {
  auto value = lookup_(name);
  if (value && value->empty()) value.reset();
  return value;
}

std::string Variables::first_of(std::initializer_list<const char*> names) const {
  for (const char* name : names)
    if (auto value = find(name)) return *value;
  return "";
}

std::string Variables::text(const std::string& name) const {
  auto value = find(name);
  if (!value) wrong(name, "set", "nothing");
  return *value;
}

int Variables::number(const std::string& name, int lo, int hi) const {
  const std::string value = text(name);
  const auto number = parse_number(value, lo, hi);
  if (!number) wrong(name, cat("a number from ", lo, " to ", hi), cat("'", value, "'"));
  return *number;
}

int Variables::number_or(const std::string& name, int lo, int hi, int otherwise) const {
  return has(name) ? number(name, lo, hi) : otherwise;
}

void Variables::wrong(const std::string& name, const std::string& wanted,
                      const std::string& got) const {
  fail(who_, ": ", name, " must be ", wanted, ", got ", got, "; ", hint_);
}

std::optional<int> parse_number(std::string_view text, int lo, int hi) {
  int value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < lo || value > hi) return std::nullopt;
  return value;
}

}  // namespace cairn::dist
