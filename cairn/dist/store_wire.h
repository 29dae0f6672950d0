// How a TCP store's client and server talk: frames of a head and a body, little-endian.
// Invariant: a body is read with its bounds checked, and its size before any memory is taken.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "cairn/dist/store_table.h"

namespace cairn::dist {

enum class StoreOp : uint32_t {
  join,         // rank, world size, timeout
  set,          // key, value
  get,          // key, timeout -> value
  find,         // key -> value or nothing
  add,          // key, delta -> sum
  wait,         // timeout, number of keys, keys
  compare_set,  // key, expected, desired -> value
  erase,        // key -> whether it was there
  num_keys,     // -> number
};

enum class StoreStatus : uint32_t {
  ok,          // the result
  nothing,     // no value
  error,       // a text: the caller's mistake
  comm_error,  // a text: time-outs, and whatever keeps the run from coming together
};

struct StoreFrame {
  static constexpr size_t kHead = 12;
  // Two values and a key, or the keys of a wait().
  static constexpr size_t kMaxBody = 2 * StoreTable::kMaxValue + 4096;

  uint32_t bytes = 0;  // of the body
  uint32_t id = 0;     // of the request; its reply has the same
  uint32_t kind = 0;   // StoreOp of a request, StoreStatus of a reply
};

namespace wire {

template <class T>
void put(std::string& out, T value) {
  for (size_t i = 0; i < sizeof value; ++i)
    out += static_cast<char>(static_cast<uint64_t>(value) >> (8 * i));
}

template <class T>
T take(const char* bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i)
    value |= uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  return static_cast<T>(value);
}

inline void put_text(std::string& out, std::string_view text) {
  put(out, static_cast<uint32_t>(text.size()));
  out += text;
}

inline std::string head_of(const StoreFrame& frame) {
  std::string out;
  put(out, frame.bytes);
  put(out, frame.id);
  put(out, frame.kind);
  return out;
}

inline StoreFrame frame_of(const char* head) {
  return {take<uint32_t>(head), take<uint32_t>(head + 4), take<uint32_t>(head + 8)};
}

// Reads a body from its beginning; CommError where it is not what is asked: its sender is none of
// ours.
class Reader {
 public:
  explicit Reader(std::string_view body) : rest_(body) {}

  template <class T>
  T number() {
    return take<T>(next(sizeof(T)).data());
  }
  std::string_view text() { return next(number<uint32_t>()); }
  // To be called last.
  void end() const {
    if (!rest_.empty())
      throw CommError(cat("store: frame must end, got ", rest_.size(), " bytes more"));
  }

 private:
  std::string_view next(size_t bytes) {
    if (bytes > rest_.size())
      throw CommError(cat("store: frame must hold ", bytes, " bytes more, got ", rest_.size()));
    const std::string_view out = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return out;
  }

  std::string_view rest_;
};

}  // namespace wire

}  // namespace cairn::dist
