// WorkerOutput.
#include "cairn/dist/worker_output.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>

namespace cairn::dist {

void LastLines::add(std::string_view line) {
  lines_.emplace_back(line.substr(0, kLineBytes));
  if (lines_.size() > kLines) lines_.pop_front();
}

void WorkerOutput::read_some(size_t most) {
  std::array<char, 16384> buffer;
  for (size_t total = 0; fd_ && total < most;) {
    const ssize_t got = read(fd_.fd(), buffer.data(), std::min(buffer.size(), left_));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return close();
    take_bytes({buffer.data(), static_cast<size_t>(got)});
    total += static_cast<size_t>(got);
    if (left_ == std::numeric_limits<size_t>::max()) continue;
    left_ -= static_cast<size_t>(got);
    if (left_ == 0) close();
  }
}

void WorkerOutput::end() {
  int there = 0;
  if (!fd_) return;
  if (ioctl(fd_.fd(), FIONREAD, &there) != 0 || there <= 0) return close();
  left_ = static_cast<size_t>(there);
}

void WorkerOutput::finish() {
  end();
  read_some(std::numeric_limits<size_t>::max());
}

void WorkerOutput::close() {
  take_rest();
  fd_.close();
}

void WorkerOutput::take_bytes(std::string_view bytes) {
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    const std::string_view line = bytes.substr(0, end);
    begun_ += line;
    if (end != std::string_view::npos) {
      take_(begun_);
      begun_.clear();
    } else {
      if (begun_.size() >= kLongestLine) take_rest();
      return;
    }
    bytes.remove_prefix(end + 1);
  }
}

void WorkerOutput::take_rest() {
  if (!begun_.empty()) take_(begun_);
  begun_.clear();
}

}  // namespace cairn::dist
