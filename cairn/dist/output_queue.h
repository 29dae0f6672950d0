// OutputQueue: text on its way to a descriptor of this process whose reader may be slow.
// Invariant: nothing here waits, but for drain() until its deadline; what was added goes out whole
// and in order while somebody reads.
#pragma once

#include <string>
#include <string_view>

#include "cairn/dist/socket.h"

namespace cairn::dist {

class OutputQueue {
 public:
  // What may wait for the reader, in bytes, before full().
  static constexpr size_t kMost = size_t{1} << 20;

  // `fd` is a file, a pipe, a socket or a terminal. It stays the caller's, and whoever shares it
  // sees none of its flags change. Where SIGPIPE is neither blocked nor ignored, a reader that has
  // gone ends the process.
  explicit OutputQueue(int fd);

  // Nothing once the reader has gone.
  void add(std::string_view text);
  bool empty() const { return text_.size() == out_; }
  bool full(size_t more = 0) const { return text_.size() - out_ >= kMost + more; }

  // To be polled for room while not empty(); -1 once the reader has gone.
  int fd() const { return fd_.fd(); }
  // Writes what fits. Whether anything went out, or the reader has gone.
  bool write_some();
  // Lets go of what waits and of all that comes.
  void give_up();
  // Why a write failed, after which nothing more is written: EPIPE where the reader has gone,
  // ENOSPC, …; else 0.
  int error() const { return error_; }
  // Until empty(), at most until the deadline; whether it is.
  bool drain(const Deadline& deadline);

 private:
  // How write() is kept from waiting.
  enum class Way {
    direct,       // files never let anybody wait for a reader
    nonblocking,  // a description of our own says so
    socket,       // each call says so
    small,        // by no more than fits for sure, after a look
  };
  ssize_t write_once(std::string_view text);

  Socket fd_;
  Way way_ = Way::direct;
  std::string text_;
  size_t out_ = 0;  // bytes of text_ that are written
  int error_ = 0;
};

// Whether both are the same file, pipe or terminal.
bool same_output(int a, int b);

}  // namespace cairn::dist
