// Errors of the library: one sentence `op: subject must be X, got Y`, then at most one hint.
// Invariant: the library throws; it never prints and never aborts.
#pragma once

#include <concepts>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace cairn {

// A mistake of the caller, of a file, or of the environment.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A peer process or the network failed.
class CommError : public Error {
 public:
  using Error::Error;
};

// Text building without streams. Other types join by an `append_text(std::string&, const T&)` in
// their own namespace.
inline void append_text(std::string& out, std::string_view text) { out += text; }
inline void append_text(std::string& out, const char* text) { out += text; }
inline void append_text(std::string& out, const std::string& text) { out += text; }
inline void append_text(std::string& out, char c) { out += c; }
inline void append_text(std::string& out, bool b) { out += b ? "true" : "false"; }
template <std::integral I>
void append_text(std::string& out, I value) {
  out += std::to_string(value);
}
void append_text(std::string& out, double value);  // shortest text that reads back the same

// The parts' texts one after another.
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::string out;
  (append_text(out, parts), ...);
  return out;
}

// Throws Error with the parts' texts joined.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(cat(parts...));
}

// Throws Error with the parts' texts joined unless `ok`. The text is built only on failure.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail(parts...);
}

}  // namespace cairn
