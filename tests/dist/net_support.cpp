// See net_support.h.
#include "tests/dist/net_support.h"

#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include <climits>
#include <filesystem>
#include <iterator>

#include "tests/catch.h"

namespace cairn::test {

using namespace dist;

namespace {

constexpr Milliseconds kStep{20};
std::atomic<int> interrupts = 0;

void count_interrupt(int) { ++interrupts; }

}  // namespace

Socket stranger(int port) { return connect_to("127.0.0.1", port, std::chrono::seconds(5)); }

void say(Socket& socket, const std::string& bytes) {
  socket.send_all(std::as_bytes(std::span(bytes)), Deadline(std::chrono::seconds(5)));
}

std::string hear_until_closed(Socket& socket, Milliseconds within) {
  const Deadline deadline(within);
  std::string out;
  std::byte buffer[256];
  while (true) {
    size_t moved = 0;
    Transfer now = socket.recv_some(buffer, moved);
    if (now == Transfer::again) now = socket.wait_readable(deadline);
    if (now == Transfer::closed) return out;
    if (now == Transfer::timed_out) {
      FAIL_CHECK("the connection must be closed within " << within.count() << " ms");
      return out;
    }
    out.append(reinterpret_cast<const char*>(buffer), moved);
  }
}

int open_descriptors() {
  std::error_code failed;
  const std::filesystem::directory_iterator folder("/proc/self/fd", failed);
  if (failed) return INT_MAX;  // not even one for looking
  return static_cast<int>(std::distance(begin(folder), end(folder)));
}

DescriptorLimit::DescriptorLimit(int more) {
  ::getrlimit(RLIMIT_NOFILE, &before_);
  const int lowest_free = ::dup(STDIN_FILENO);
  ::close(lowest_free);
  rlimit few = before_;
  few.rlim_cur = static_cast<rlim_t>(lowest_free + more);
  ::setrlimit(RLIMIT_NOFILE, &few);
}

DescriptorLimit::~DescriptorLimit() { ::setrlimit(RLIMIT_NOFILE, &before_); }

Proxy::Proxy(int server_port, size_t piece)
    : server_port_(server_port),
      piece_(piece),
      listener_(listen_on({"127.0.0.1", 0})),
      port_(listener_.local().port) {
  acceptor_ = std::thread([this] {
    while (!stop_) {
      if (listener_.wait_readable(Deadline(kStep)) != Transfer::done) continue;
      if (Socket client = accept_from(listener_))
        threads_.emplace_back([this, c = std::move(client)]() mutable { serve(std::move(c)); });
    }
  });
}

Proxy::~Proxy() {
  stop_ = true;
  acceptor_.join();
  for (std::thread& thread : threads_) thread.join();
}

std::string Proxy::said() const {
  const std::lock_guard lock(mutex_);
  return said_;
}

void Proxy::serve(Socket client) {
  Socket server = stranger(server_port_);
  while (!stop_) {
    PollEntry entries[] = {{client.fd(), true, false}, {server.fd(), true, false}};
    poll_until(entries, Deadline(kStep));
    if (entries[0].ready && !hand_on(client, server, true)) return;
    if (entries[1].ready && !hand_on(server, client, false)) return;
  }
}

bool Proxy::hand_on(Socket& from, Socket& to, bool keep) {
  std::vector<std::byte> buffer(piece_);
  size_t moved = 0;
  const Transfer now = from.recv_some(buffer, moved);
  if (now == Transfer::again) return true;
  if (now != Transfer::done) return false;
  if (keep) {
    const std::lock_guard lock(mutex_);
    said_.append(reinterpret_cast<const char*>(buffer.data()), moved);
  }
  return to.send_all(std::span(buffer).first(moved), Deadline(std::chrono::seconds(20))) ==
         Transfer::done;
}

SignalStorm::SignalStorm() {
  interrupts = 0;
  struct sigaction action {};
  action.sa_handler = count_interrupt;
  sigaction(SIGALRM, &action, nullptr);
  const itimerval often{{0, 300}, {0, 300}};
  setitimer(ITIMER_REAL, &often, nullptr);
}

SignalStorm::~SignalStorm() {
  const itimerval never{};
  setitimer(ITIMER_REAL, &never, nullptr);
  // One that is still on its way must find its handler ignored, not the default that ends us.
  struct sigaction action {};
  action.sa_handler = SIG_IGN;
  sigaction(SIGALRM, &action, nullptr);
}

int SignalStorm::count() { return interrupts; }

}  // namespace cairn::test
