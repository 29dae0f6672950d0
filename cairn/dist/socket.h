// Sockets: TCP connections that never block without a deadline, and addresses of both families.
// Invariant: every descriptor is non-blocking, closed on exec and owned by one object; signals and
// short reads and writes are dealt with here and seen nowhere else.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cairn/dist/deadline.h"
#include "cairn/tensor/error.h"

namespace cairn::dist {

// Where a socket listens or connects to.
struct Endpoint {
  std::string address;  // numeric; IPv6 with its zone where it has one
  int port = 0;

  bool operator==(const Endpoint&) const = default;
};
// "127.0.0.1:29500", "[::1]:29500".
void append_text(std::string& out, const Endpoint& endpoint);

// How a transfer ended, or where it stands.
enum class Transfer {
  done,
  // Nothing can be moved at the moment.
  again,
  // The peer ended the connection, or it was lost.
  closed,
  timed_out,
};

// Owns a descriptor; empty where it has none.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) noexcept : fd_(fd) {}
  ~Socket() { close(); }
  Socket(Socket&& other) noexcept : fd_(other.release()) {}
  Socket& operator=(Socket&& other) noexcept;

  explicit operator bool() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  int release() noexcept;
  void close() noexcept;
  // Ends the connection in both directions: whoever waits for it, in any thread, sees it closed.
  void shut_down() noexcept;

  // One try. `moved` is the number of bytes, above 0 exactly with Transfer::done.
  Transfer send_some(std::span<const std::byte> bytes, size_t& moved) noexcept;
  Transfer recv_some(std::span<std::byte> bytes, size_t& moved) noexcept;
  // All bytes: done, closed or timed_out.
  Transfer send_all(std::span<const std::byte> bytes, const Deadline& deadline) noexcept;
  Transfer recv_all(std::span<std::byte> bytes, const Deadline& deadline) noexcept;
  // Waits for bytes (or the connection's end): done or timed_out.
  Transfer wait_readable(const Deadline& deadline) const noexcept;
  Transfer wait_writable(const Deadline& deadline) const noexcept;

  // Of this side and of the other one; CommError where it is not connected (or does not listen).
  Endpoint local() const;
  Endpoint peer() const;

 private:
  int fd_ = -1;
};

// poll() until the deadline, signals or not: how many entries have something, 0 past the deadline.
struct PollEntry {
  int fd;
  bool read, write;    // what to wait for
  bool ready = false;  // readable, writable or ended
};
int poll_until(std::span<PollEntry> entries, const Deadline& deadline);

// Wakes a thread that polls: signal() makes fd() readable until clear().
class Wakeup {
 public:
  Wakeup();
  int fd() const { return event_.fd(); }
  void signal() noexcept;
  void clear() noexcept;

 private:
  Socket event_;
};

// Numeric addresses of a host name, of a numeric address or of a network interface of this machine
// ("eth0"), in the order in which to try them. CommError `resolve: host 'x' must have an address,
// got: …` where there is none, or none in time. `port` becomes theirs.
std::vector<Endpoint> resolve(const std::string& host, int port, const Deadline& deadline);

// Of this machine, those that are up: name and address, loopback included.
struct Interface {
  std::string name, address;
};
std::vector<Interface> interfaces();

bool is_loopback(const std::string& address);
// 0.0.0.0 and ::, which mean every address.
bool is_wildcard(const std::string& address);

// Listens on this one address; port 0: a free one, which local() tells. CommError `listen: port
// 29500 of 127.0.0.1 must be free, got one in use`.
Socket listen_on(const Endpoint& endpoint);
// A connection that has come, or nothing. CommError where descriptors have run out.
Socket accept_from(const Socket& listener);

// Tries the addresses of the host until one answers; while all refuse, tries again until the
// deadline, since the peer may not listen yet. CommError `connect: host:port must answer within
// 60 s, got: connection refused`, with `hint` behind it.
Socket connect_to(const std::string& host, int port, Milliseconds timeout,
                  std::string_view hint = {});
// One try of one address.
Socket connect_once(const Endpoint& endpoint, const Deadline& deadline);

// Small messages go out at once. Every socket that is made here has it.
void set_no_delay(const Socket& socket) noexcept;
// How long what was sent may stay unanswered before the system ends the connection, whatever the
// machine's settings say.
void set_patience(const Socket& socket, Milliseconds patience) noexcept;
// Lets the connection, idle or not, end when the peer's machine has not answered for about this
// long.
void set_keep_alive(const Socket& socket, Milliseconds lost_after) noexcept;

}  // namespace cairn::dist
