// See http_server.h.
#include "tests/data/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>

#include "cairn/tensor/error.h"

namespace cairn::test {
namespace {

constexpr int kPollMs = 20;

int bound_socket(int& port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  check(fd >= 0 && ::bind(fd, generic, length) == 0 && getsockname(fd, generic, &length) == 0,
        "http_server: loopback must be usable");
  port = ntohs(address.sin_port);
  return fd;
}

// Up to the empty line; "" when the peer ended first.
std::string read_request(int fd, const std::atomic<bool>& stop) {
  std::string request;
  while (!stop && request.find("\r\n\r\n") == std::string::npos) {
    pollfd entry{fd, POLLIN, 0};
    if (::poll(&entry, 1, kPollMs) <= 0) continue;
    char buffer[4096];
    const ssize_t got = ::recv(fd, buffer, sizeof(buffer), 0);
    if (got <= 0) return "";
    request.append(buffer, static_cast<size_t>(got));
  }
  return request;
}

}  // namespace

void HttpServer::Peer::send(const std::string& bytes) const {
  size_t done = 0;
  while (done < bytes.size() && !stop_) {
    const ssize_t sent =
        ::send(fd_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      done += static_cast<size_t>(sent);
      continue;
    }
    if (errno != EAGAIN && errno != EWOULDBLOCK) return;  // the client has gone
    pollfd entry{fd_, POLLOUT, 0};
    ::poll(&entry, 1, kPollMs);
  }
}

void HttpServer::Peer::sleep(double seconds) const {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!stop_ && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

HttpServer::HttpServer(Handler handler) : handler_(std::move(handler)) {
  listener_ = bound_socket(port_);
  check(::listen(listener_, 8) == 0, "http_server: loopback must be usable");
  thread_ = std::thread([this] { serve(); });
}

HttpServer::~HttpServer() {
  stop_ = true;
  thread_.join();
  ::close(listener_);
}

std::string HttpServer::url() const { return cat("http://127.0.0.1:", port_, "/"); }

std::vector<std::string> HttpServer::requests() const {
  std::lock_guard lock(mutex_);
  return requests_;
}

void HttpServer::serve() {
  while (!stop_) {
    pollfd entry{listener_, POLLIN, 0};
    if (::poll(&entry, 1, kPollMs) <= 0) continue;
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    const std::string request = read_request(fd, stop_);
    if (request.rfind("GET ", 0) == 0) {
      const std::string path = request.substr(4, request.find(' ', 4) - 4);
      {
        std::lock_guard lock(mutex_);
        requests_.push_back(path);
      }
      handler_(path, Peer(fd, stop_));
    }
    ::shutdown(fd, SHUT_WR);
    ::close(fd);
  }
}

std::string http_answer(const std::string& body, const std::string& status, long length) {
  return cat("HTTP/1.1 ", status, "\r\nConnection: close\r\nContent-Length: ",
             length >= 0 ? length : static_cast<long>(body.size()), "\r\n\r\n", body);
}

int unused_port() {
  int port = 0;
  ::close(bound_socket(port));
  return port;
}

}  // namespace cairn::test
