// Sockets: transfers and waits.
#include "cairn/dist/socket.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdint>
#include <utility>

namespace cairn::dist {
namespace {

// poll() with one entry takes no memory; an interrupted one goes on with what is left.
int poll_entries(pollfd* entries, nfds_t count, const Deadline& deadline) noexcept {
  while (true) {
    const auto left = std::min<Milliseconds::rep>(deadline.remaining().count(), INT_MAX);
    const int ready = ::poll(entries, count, static_cast<int>(left));
    if (ready > 0) return ready;
    if (ready < 0 && errno != EINTR) return 0;
    if (deadline.expired()) return 0;
  }
}

Transfer wait_for(int fd, short events, const Deadline& deadline) noexcept {
  pollfd entry{fd, events, 0};
  return poll_entries(&entry, 1, deadline) > 0 ? Transfer::done : Transfer::timed_out;
}

Transfer ended(ssize_t result, size_t& moved) noexcept {
  moved = result > 0 ? static_cast<size_t>(result) : 0;
  if (result > 0) return Transfer::done;
  const bool later = result < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  return later ? Transfer::again : Transfer::closed;
}

}  // namespace

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = other.release();
  }
  return *this;
}

int Socket::release() noexcept { return std::exchange(fd_, -1); }

void Socket::close() noexcept {
  // Linux frees the descriptor even where close() is interrupted.
  if (fd_ >= 0) ::close(release());
}

void Socket::shut_down() noexcept {
  if (fd_ >= 0) ::shutdown(fd_, SHUT_RDWR);
}

Transfer Socket::send_some(std::span<const std::byte> bytes, size_t& moved) noexcept {
  ssize_t sent = 0;
  do {
    sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  return ended(sent, moved);
}

Transfer Socket::recv_some(std::span<std::byte> bytes, size_t& moved) noexcept {
  ssize_t got = 0;
  do {
    got = ::recv(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  return ended(got, moved);
}

Transfer Socket::send_all(std::span<const std::byte> bytes, const Deadline& deadline) noexcept {
  while (!bytes.empty()) {
    size_t moved = 0;
    Transfer now = send_some(bytes, moved);
    if (now == Transfer::again) now = wait_writable(deadline);
    if (now != Transfer::done) return now;
    bytes = bytes.subspan(moved);
  }
  return Transfer::done;
}

Transfer Socket::recv_all(std::span<std::byte> bytes, const Deadline& deadline) noexcept {
  while (!bytes.empty()) {
    size_t moved = 0;
    Transfer now = recv_some(bytes, moved);
    if (now == Transfer::again) now = wait_readable(deadline);
    if (now != Transfer::done) return now;
    bytes = bytes.subspan(moved);
  }
  return Transfer::done;
}

Transfer Socket::wait_readable(const Deadline& deadline) const noexcept {
  return wait_for(fd_, POLLIN, deadline);
}

Transfer Socket::wait_writable(const Deadline& deadline) const noexcept {
  return wait_for(fd_, POLLOUT, deadline);
}

int poll_until(std::span<PollEntry> entries, const Deadline& deadline) {
  std::vector<pollfd> polled;
  polled.reserve(entries.size());
  for (const PollEntry& entry : entries)
    polled.push_back(
        {entry.fd, static_cast<short>((entry.read ? POLLIN : 0) | (entry.write ? POLLOUT : 0)), 0});
  const int ready = poll_entries(polled.data(), polled.size(), deadline);
  for (size_t i = 0; i < polled.size(); ++i) entries[i].ready = polled[i].revents != 0;
  return ready;
}

Wakeup::Wakeup() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!event_) throw CommError("wakeup: a descriptor must be free, got none");
}

void Wakeup::signal() noexcept {
  const uint64_t one = 1;
  // A full counter is readable all the same.
  while (::write(event_.fd(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void Wakeup::clear() noexcept {
  uint64_t count = 0;
  while (::read(event_.fd(), &count, sizeof count) < 0 && errno == EINTR) {
  }
}

}  // namespace cairn::dist
