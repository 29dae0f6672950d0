// Peers that do not behave, and a proxy between two that do, for tests of everything that listens.
#pragma once

#include <sys/resource.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cairn/dist/socket.h"

namespace cairn::test {

// The port of 127.0.0.1, connected to and with nothing said.
dist::Socket stranger(int port);
void say(dist::Socket& socket, const std::string& bytes);
// What comes until the other side ends the connection; fails the test if it is open after the time.
std::string hear_until_closed(dist::Socket& socket, dist::Milliseconds within);

int open_descriptors();

// While it lives, this process may open so many descriptors more.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(int more);
  ~DescriptorLimit();

 private:
  rlimit before_{};
};

// Hands bytes on between clients and a server on loopback, in pieces of `piece` bytes, and keeps
// what the clients said.
class Proxy {
 public:
  Proxy(int server_port, size_t piece);
  ~Proxy();
  int port() const { return port_; }
  std::string said() const;

 private:
  void serve(dist::Socket client);
  // False when the connection is over.
  bool hand_on(dist::Socket& from, dist::Socket& to, bool keep);

  const int server_port_;
  const size_t piece_;
  dist::Socket listener_;
  int port_ = 0;
  std::atomic<bool> stop_ = false;
  mutable std::mutex mutex_;
  std::string said_;
  std::vector<std::thread> threads_;
  std::thread acceptor_;
};

// Interrupts this process's threads again and again, without a restart of what they were in.
class SignalStorm {
 public:
  SignalStorm();
  ~SignalStorm();
  // Signals handled so far.
  static int count();
};

}  // namespace cairn::test
