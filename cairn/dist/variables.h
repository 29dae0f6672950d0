// Variables: the environment variables of a process as a cluster's launcher sets them, or a table
// that a test gives.
// Invariant: what is missing or no number is one sentence that names the variable, and a hint.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

namespace cairn::dist {

// The value of a variable, or nothing where it is not set.
using Lookup = std::function<std::optional<std::string>(const std::string& name)>;

// Those of this process. HOSTNAME is asked of the system where no variable tells it, as shells do
// not export theirs.
Lookup process_variables();

class Variables {
 public:
  // `who` begins every error ("slurm"), `hint` ends it.
  Variables(const Lookup& lookup, std::string who, std::string hint)
      : lookup_(lookup), who_(std::move(who)), hint_(std::move(hint)) {}

  bool has(const std::string& name) const { return find(name).has_value(); }
  // An empty value counts as none.
  std::optional<std::string> find(const std::string& name) const;
  // The first of these that is set, or "".
  std::string first_of(std::initializer_list<const char*> names) const;
  // Error where it is not set.
  std::string text(const std::string& name) const;
  // Error where it is not set or no number from lo to hi.
  int number(const std::string& name, int lo, int hi) const;
  int number_or(const std::string& name, int lo, int hi, int otherwise) const;

  // Error `who: name must be wanted, got got; hint`.
  [[noreturn]] void wrong(const std::string& name, const std::string& wanted,
                          const std::string& got) const;

 private:
  const Lookup& lookup_;
  std::string who_, hint_;
};

// The whole text as a number from lo to hi.
std::optional<int> parse_number(std::string_view text, int lo, int hi);

}  // namespace cairn::dist
