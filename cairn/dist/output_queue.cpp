// OutputQueue.
#include "cairn/dist/output_queue.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace cairn::dist {
namespace {

// Written bytes that are kept before the rest moves to the front.
constexpr size_t kWritten = 64 << 10;
// Fits where poll() sees room: a pipe has a free page then.
constexpr size_t kSmall = 512;
// Files take any amount; other descriptors get their turn after so much.
constexpr size_t kAtOnce = 256 << 10;

}  // namespace

OutputQueue::OutputQueue(int fd) {
  struct stat is {};
  if (::fstat(fd, &is) != 0) return;  // closed: there is no reader
  const bool terminal = ::isatty(fd) == 1;
  if (S_ISSOCK(is.st_mode)) {
    way_ = Way::socket;
  } else if (S_ISFIFO(is.st_mode) || terminal) {
    // O_NONBLOCK belongs to the description, which others may share, so this takes a new one.
    const std::string path = cat("/proc/self/fd/", fd);
    fd_ = Socket(::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    way_ = fd_ ? Way::nonblocking : Way::small;
  }
  if (!fd_) fd_ = Socket(::fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
}

void OutputQueue::add(std::string_view text) {
  if (fd_) text_ += text;
}

void OutputQueue::give_up() {
  fd_.close();
  text_.clear();
  out_ = 0;
}

ssize_t OutputQueue::write_once(std::string_view text) {
  if (way_ == Way::socket)
    return ::send(fd(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (way_ == Way::small) {
    text = text.substr(0, kSmall);
    pollfd entry{fd(), POLLOUT, 0};
    if (::poll(&entry, 1, 0) <= 0) {
      errno = EAGAIN;
      return -1;
    }
  }
  return ::write(fd(), text.data(), text.size());
}

bool OutputQueue::write_some() {
  size_t total = 0;
  while (!empty() && total < kAtOnce) {
    const ssize_t wrote =
        write_once(std::string_view(text_).substr(out_, std::min(kAtOnce, text_.size() - out_)));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote == 0 || (wrote < 0 && errno == EAGAIN)) break;
    if (wrote < 0) {
      error_ = errno;
      give_up();
      return true;
    }
    out_ += static_cast<size_t>(wrote);
    total += static_cast<size_t>(wrote);
  }
  if (empty() || out_ >= kWritten) {
    text_.erase(0, out_);
    out_ = 0;
  }
  return total > 0;
}

bool OutputQueue::drain(const Deadline& deadline) {
  while (!empty()) {
    write_some();
    if (empty()) break;
    PollEntry entry{fd(), false, true};
    if (poll_until(std::span(&entry, 1), deadline) == 0) return false;
  }
  return true;
}

bool same_output(int a, int b) {
  struct stat one {
  }, other{};
  return ::fstat(a, &one) == 0 && ::fstat(b, &other) == 0 && one.st_dev == other.st_dev &&
         one.st_ino == other.st_ino && one.st_rdev == other.st_rdev;
}

}  // namespace cairn::dist
