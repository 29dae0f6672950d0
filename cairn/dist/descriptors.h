// Descriptors that travel between processes, over unix stream sockets.
// Invariant: a message arrives whole or is an error, and no descriptor of one that did not is left
// open.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "cairn/dist/socket.h"

namespace cairn::dist {

// A number, and up to two descriptors.
struct DescriptorMessage {
  static constexpr size_t kMost = 2;
  int64_t number = 0;
  std::array<Socket, kMost> descriptors;
};

// done, closed where the peer has gone, or timed_out. The system holds a user's descriptors on
// their way to a number (ETOOMANYREFS past RLIMIT_NOFILE): until the peers take some, it waits too.
// CommError `what: …` where it cannot be done at all.
Transfer send_descriptors(const Socket& to, int64_t number, std::span<const int> descriptors,
                          const Deadline& deadline, const std::string& what);
// The same, of a message with `count` descriptors. CommError `what: a descriptor must be free, got
// none` where this process may open no more.
Transfer recv_descriptors(const Socket& from, size_t count, const Deadline& deadline,
                          const std::string& what, DescriptorMessage& out);

}  // namespace cairn::dist
