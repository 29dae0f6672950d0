// Sockets: addresses, and how connections are made.
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "cairn/dist/socket.h"

namespace cairn::dist {
namespace {

// As the kernel wants it, of either family.
struct Address {
  sockaddr_storage storage{};
  socklen_t length = sizeof(sockaddr_storage);

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
};

std::string text_of_errno(int number) { return std::generic_category().message(number); }

Endpoint endpoint_of(const Address& address) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  const int failed = ::getnameinfo(address.get(), address.length, host, sizeof host, port,
                                   sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
  if (failed != 0) throw CommError(cat("socket: address must be IPv4 or IPv6, got another"));
  return {host, std::stoi(port)};
}

struct Lookup {
  int error = 0;
  std::vector<Endpoint> found;
};

Lookup look_up(const std::string& host, int port, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* list = nullptr;
  Lookup result;
  result.error = ::getaddrinfo(host.c_str(), nullptr, &hints, &list);
  if (result.error != 0) return result;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    Address address;
    std::memcpy(&address.storage, entry->ai_addr, entry->ai_addrlen);
    address.length = entry->ai_addrlen;
    Endpoint endpoint = endpoint_of(address);
    endpoint.port = port;
    if (std::find(result.found.begin(), result.found.end(), endpoint) == result.found.end())
      result.found.push_back(std::move(endpoint));
  }
  ::freeaddrinfo(list);
  return result;
}

// The system's look-up has no deadline of its own, so it runs on a thread that may outlive the
// wait.
Lookup look_up_name(const std::string& host, int port, const Deadline& deadline) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable done;
    std::optional<Lookup> result;
  };
  const auto shared = std::make_shared<Shared>();
  std::thread([shared, host, port] {
    Lookup result = look_up(host, port, 0);
    const std::lock_guard lock(shared->mutex);
    shared->result = std::move(result);
    shared->done.notify_all();
  }).detach();
  std::unique_lock lock(shared->mutex);
  if (!shared->done.wait_until(lock, deadline.at(), [&] { return shared->result.has_value(); }))
    return {EAI_AGAIN, {}};
  return std::move(*shared->result);
}

Address numeric(const Endpoint& endpoint) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const std::string port = std::to_string(endpoint.port);
  if (::getaddrinfo(endpoint.address.c_str(), port.c_str(), &hints, &list) != 0)
    throw CommError(cat("socket: address must be numeric, got '", endpoint.address, "'"));
  Address address;
  std::memcpy(&address.storage, list->ai_addr, list->ai_addrlen);
  address.length = list->ai_addrlen;
  ::freeaddrinfo(list);
  return address;
}

void check_port(int port, std::string_view op) {
  if (port < 0 || port > 65535) throw CommError(cat(op, ": port must be 0 to 65535, got ", port));
}

Socket new_socket(const Address& address, std::string_view op) {
  Socket socket(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket)
    throw CommError(cat(op, ": a socket must be available, got: ", text_of_errno(errno)));
  return socket;
}

void set_option(const Socket& socket, int level, int name, int value) noexcept {
  ::setsockopt(socket.fd(), level, name, &value, sizeof value);
}

std::string why(const std::string& got, const Endpoint& endpoint) {
  return cat(got, " (", endpoint, ")");
}

// The socket, or 0's place the number of the error that came.
Socket try_connect(const Endpoint& endpoint, const Deadline& deadline, int& error) {
  const Address address = numeric(endpoint);
  Socket socket = new_socket(address, "connect");
  error = 0;
  if (::connect(socket.fd(), address.get(), address.length) != 0) {
    // An interrupted connect() goes on by itself.
    if (errno != EINPROGRESS && errno != EINTR) {
      error = errno;
      return {};
    }
    if (socket.wait_writable(deadline) != Transfer::done) {
      error = ETIMEDOUT;
      return {};
    }
    socklen_t length = sizeof error;
    ::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return {};
  }
  Address peer;
  if (::getpeername(socket.fd(), peer.get(), &peer.length) != 0) {
    error = errno;  // ended again already
    return {};
  }
  // A free port may be connected to itself by chance, and would then look taken to its owner.
  if (socket.local() == endpoint_of(peer)) {
    error = ECONNREFUSED;
    return {};
  }
  set_no_delay(socket);
  return socket;
}

}  // namespace

void append_text(std::string& out, const Endpoint& endpoint) {
  const bool v6 = endpoint.address.find(':') != std::string::npos;
  out += v6 ? cat("[", endpoint.address, "]:", endpoint.port)
            : cat(endpoint.address, ":", endpoint.port);
}

Endpoint Socket::local() const {
  Address address;
  if (::getsockname(fd_, address.get(), &address.length) != 0)
    throw CommError(cat("socket: it must be open, got: ", text_of_errno(errno)));
  return endpoint_of(address);
}

Endpoint Socket::peer() const {
  Address address;
  if (::getpeername(fd_, address.get(), &address.length) != 0)
    throw CommError(cat("socket: it must be connected, got: ", text_of_errno(errno)));
  return endpoint_of(address);
}

std::vector<Endpoint> resolve(const std::string& host, int port, const Deadline& deadline) {
  check_port(port, "resolve");
  Lookup result = look_up(host, port, AI_NUMERICHOST);
  if (result.error == 0 && !host.empty()) return result.found;
  std::vector<Endpoint> own;
  for (const Interface& interface : interfaces())
    if (interface.name == host) own.push_back({interface.address, port});
  if (!own.empty()) return own;
  if (host.empty()) throw CommError("resolve: host must be a name or an address, got none");
  result = look_up_name(host, port, deadline);
  if (result.error != 0 || result.found.empty()) {
    std::string known;
    for (const Interface& interface : interfaces())
      known += cat(known.empty() ? "" : ", ", interface.name, " ", interface.address);
    throw CommError(cat("resolve: host '", host, "' must have an address, got: ",
                        ::gai_strerror(result.error), ". This machine has ", known));
  }
  return result.found;
}

std::vector<Interface> interfaces() {
  std::vector<Interface> out;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return out;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    Address address;
    address.length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    std::memcpy(&address.storage, entry->ifa_addr, address.length);
    out.push_back({entry->ifa_name, endpoint_of(address).address});
  }
  ::freeifaddrs(list);
  return out;
}

bool is_loopback(const std::string& address) {
  in_addr v4{};
  if (::inet_pton(AF_INET, address.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6{};
  if (::inet_pton(AF_INET6, address.c_str(), &v6) != 1) return false;
  const bool mapped = IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127;
  return IN6_IS_ADDR_LOOPBACK(&v6) || mapped;
}

bool is_wildcard(const std::string& address) {
  in_addr v4{};
  if (::inet_pton(AF_INET, address.c_str(), &v4) == 1) return v4.s_addr == INADDR_ANY;
  in6_addr v6{};
  return ::inet_pton(AF_INET6, address.c_str(), &v6) == 1 && IN6_IS_ADDR_UNSPECIFIED(&v6);
}

Socket listen_on(const Endpoint& endpoint) {
  check_port(endpoint.port, "listen");
  const Address address = numeric(endpoint);
  Socket socket = new_socket(address, "listen");
  // A port whose last connections are just fading away is free.
  set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
  if (::bind(socket.fd(), address.get(), address.length) == 0 &&
      ::listen(socket.fd(), SOMAXCONN) == 0)
    return socket;
  if (errno == EADDRINUSE)
    throw CommError(cat("listen: port ", endpoint.port, " of ", endpoint.address,
                        " must be free, got one in use. Port 0 stands for a free one"));
  throw CommError(cat("listen: ", endpoint,
                      " must be an address of this machine, got: ", text_of_errno(errno)));
}

Socket accept_from(const Socket& listener) {
  while (true) {
    Socket socket(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      set_no_delay(socket);
      return socket;
    }
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
      throw CommError(cat("accept: a descriptor must be free, got: ", text_of_errno(errno)));
    // Else that one connection had ended before it was taken, or there is none.
    if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO) return {};
  }
}

Socket connect_once(const Endpoint& endpoint, const Deadline& deadline) {
  int error = 0;
  Socket socket = try_connect(endpoint, deadline, error);
  if (!socket)
    throw CommError(cat("connect: ", endpoint, " must answer, got: ", text_of_errno(error)));
  return socket;
}

Socket connect_to(const std::string& host, int port, Milliseconds timeout, std::string_view hint) {
  const Deadline deadline(timeout);
  const std::vector<Endpoint> endpoints = resolve(host, port, deadline);
  Milliseconds pause(5);
  while (true) {
    std::string got;
    for (size_t i = 0; i < endpoints.size(); ++i) {
      // One address that swallows everything must not use up the others' time.
      const auto share =
          deadline.remaining() / static_cast<Milliseconds::rep>(endpoints.size() - i);
      int error = 0;
      Socket socket = try_connect(endpoints[i], deadline.or_in(share), error);
      if (socket) return socket;
      got += cat(got.empty() ? "" : ", ", why(text_of_errno(error), endpoints[i]));
    }
    if (deadline.expired())
      throw CommError(cat("connect: ", host, " port ", port, " must answer within ",
                          in_words(timeout), ", got: ", got, hint));
    std::this_thread::sleep_until(deadline.or_in(pause).at());
    pause = std::min(pause * 2, Milliseconds(200));
  }
}

void set_no_delay(const Socket& socket) noexcept {
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
}

void set_patience(const Socket& socket, Milliseconds patience) noexcept {
  const auto longest = std::min<Milliseconds::rep>(patience.count(), INT_MAX);
  set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(longest));
}

void set_keep_alive(const Socket& socket, Milliseconds lost_after) noexcept {
  // A third of the time idle, then probes; what was sent and not answered counts the same.
  constexpr Milliseconds::rep kMost = 32767;  // the system's
  const auto third = std::clamp<Milliseconds::rep>(lost_after.count() / 3000, 1, kMost);
  const int seconds = static_cast<int>(third);
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, seconds);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, seconds);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, 2);
  set_patience(socket, lost_after);
}

}  // namespace cairn::dist
