// WorkerOutput: what one stream of a worker writes, line by line.
// Invariant: lines are handed on whole and in order; only a line of more than kLongestLine bytes is
// handed on in pieces.
#pragma once

#include <deque>
#include <functional>
#include <limits>
#include <string>
#include <string_view>

#include "cairn/dist/socket.h"

namespace cairn::dist {

// The last lines of a worker, both streams, oldest first.
class LastLines {
 public:
  static constexpr size_t kLines = 20, kLineBytes = 1000;
  void add(std::string_view line);
  const std::deque<std::string>& lines() const { return lines_; }

 private:
  std::deque<std::string> lines_;
};

class WorkerOutput {
 public:
  static constexpr size_t kLongestLine = 1 << 20;
  using Take = std::function<void(std::string_view line)>;  // without its line feed

  // `fd` is non-blocking.
  WorkerOutput(Socket fd, Take take) : fd_(std::move(fd)), take_(std::move(take)) {}

  int fd() const { return fd_.fd(); }  // -1 once it has ended
  // Takes what is there, at most about `most` bytes.
  void read_some(size_t most);
  // The worker has ended: what is there now is all that will be taken, whoever else may still hold
  // the other end and write.
  void end();
  // end(), and takes it, the line that was begun as well.
  void finish();

 private:
  void take_bytes(std::string_view bytes);
  void take_rest();
  void close();

  Socket fd_;
  Take take_;
  std::string begun_;
  size_t left_ = std::numeric_limits<size_t>::max();  // bytes that will still be taken
};

}  // namespace cairn::dist
