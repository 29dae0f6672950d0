// Descriptors over unix sockets.
#include "cairn/dist/descriptors.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>
#include <thread>

namespace cairn::dist {
namespace {

// Nothing tells when descriptors on their way have been taken.
constexpr Milliseconds kPause{2};

union Control {
  char bytes[CMSG_SPACE(sizeof(int) * DescriptorMessage::kMost)];
  cmsghdr header;
};

// Takes what a message brought, so that it is closed where it is not wanted.
size_t take_all(msghdr& message, DescriptorMessage& out) {
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return 0;
  const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
  for (size_t i = 0; i < count && i < out.descriptors.size(); ++i) {
    int descriptor = -1;
    std::memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
    out.descriptors[i] = Socket(descriptor);
  }
  return count;
}

}  // namespace

Transfer send_descriptors(const Socket& to, int64_t number, std::span<const int> descriptors,
                          const Deadline& deadline, const std::string& what) {
  iovec bytes{&number, sizeof number};
  Control control{};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
  control.header.cmsg_level = SOL_SOCKET;
  control.header.cmsg_type = SCM_RIGHTS;
  control.header.cmsg_len = CMSG_LEN(descriptors.size_bytes());
  std::memcpy(CMSG_DATA(&control.header), descriptors.data(), descriptors.size_bytes());
  for (;;) {
    const ssize_t sent = ::sendmsg(to.fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    // So few bytes go at once or not at all.
    if (sent == sizeof number) return Transfer::done;
    if (sent >= 0 || errno == EPIPE || errno == ECONNRESET) return Transfer::closed;
    if (errno == EINTR) continue;
    if (errno == ETOOMANYREFS && !deadline.expired()) {
      std::this_thread::sleep_until(deadline.or_in(kPause).at());
      continue;
    }
    if (errno != EAGAIN)
      throw CommError(
          cat(what, ": descriptors must go to another process, got: ", std::strerror(errno)));
    if (to.wait_writable(deadline) != Transfer::done) return Transfer::timed_out;
  }
}

Transfer recv_descriptors(const Socket& from, size_t count, const Deadline& deadline,
                          const std::string& what, DescriptorMessage& out) {
  for (;;) {
    const Transfer ready = from.wait_readable(deadline);
    if (ready != Transfer::done) return ready;
    iovec bytes{&out.number, sizeof out.number};
    Control control{};
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    const ssize_t got = ::recvmsg(from.fd(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got != sizeof out.number) return Transfer::closed;
    const size_t taken = take_all(message, out);
    if (taken == count) return Transfer::done;
    out.descriptors = {};
    if ((message.msg_flags & MSG_CTRUNC) == 0) return Transfer::closed;
    throw CommError(
        cat(what, ": a descriptor must be free, got none; raise the limit (ulimit -n)"));
  }
}

}  // namespace cairn::dist
