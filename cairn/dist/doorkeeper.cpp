// Doorkeeper: handshakes with many unproven peers at once, on one epoll set.
#include "cairn/dist/doorkeeper.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>

namespace cairn::dist {
namespace {

// After descriptors have run out.
constexpr Milliseconds kPause{100};

}  // namespace

void Refusals::add(const std::string& address, std::string_view why) {
  const std::lock_guard lock(mutex_);
  ++count_;
  const std::pair key(address, std::string(why));
  if (times_.size() < kKept || times_.count(key) != 0) ++times_[key];
}

uint64_t Refusals::count() const {
  const std::lock_guard lock(mutex_);
  return count_;
}

std::vector<std::string> Refusals::texts() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> out;
  for (const auto& [who, times] : times_)
    out.push_back(
        cat(who.first, " was refused ", times, times == 1 ? " time: " : " times: ", who.second));
  return out;
}

struct Doorkeeper::Unproven {
  Socket socket;
  Endpoint from;
  Handshake handshake;
  Deadline deadline;
  std::array<std::byte, Handshake::kLargest> buffer{};
  size_t filled = 0;
};

Doorkeeper::Doorkeeper(Socket listener, AuthOptions options, const Claim& claim)
    : options_(std::move(options)),
      claim_(claim),
      listener_(std::move(listener)),
      poll_(::epoll_create1(EPOLL_CLOEXEC)) {
  if (!poll_) throw CommError("doorkeeper: a descriptor must be free, got none");
  listen(true);
}

Doorkeeper::~Doorkeeper() = default;

void Doorkeeper::listen(bool on) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = listener_.fd();
  if (::epoll_ctl(poll_.fd(), on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listener_.fd(), &event) != 0)
    throw CommError("doorkeeper: the listening socket must be open, got a closed one");
  resume_.reset();
  if (!on) resume_ = Deadline(kPause);
}

std::optional<Deadline> Doorkeeper::next() const {
  std::optional<Deadline> out = resume_;
  for (const auto& [fd, peer] : unproven_)
    if (!out || peer->deadline.at() < out->at()) out = peer->deadline;
  return out;
}

std::vector<Doorkeeper::Guest> Doorkeeper::step() {
  std::vector<Guest> in;
  std::array<epoll_event, kMaxUnproven + 1> events;
  const int ready = ::epoll_wait(poll_.fd(), events.data(), static_cast<int>(events.size()), 0);
  bool knocked = false;
  for (int i = 0; i < ready; ++i) {
    const int fd = events[static_cast<size_t>(i)].data.fd;
    if (fd == listener_.fd())
      knocked = true;
    else
      go_on(fd, in);
  }
  std::vector<int> late;
  for (const auto& [fd, peer] : unproven_)
    if (peer->deadline.expired()) late.push_back(fd);
  for (const int fd : late)
    refuse(fd, cat("proof must come within ", in_words(kProofTime), ", got no whole one"));
  if (resume_ && resume_->expired()) {
    listen(true);
    knocked = true;
  }
  // Last, so that the events above are of the descriptors that they were about.
  if (knocked) take_new();
  return in;
}

std::optional<Doorkeeper::Guest> Doorkeeper::admit(const Deadline& deadline) {
  while (waiting_.empty()) {
    waiting_ = step();
    if (!waiting_.empty()) break;
    if (deadline.expired()) return std::nullopt;
    const std::optional<Deadline> own = next();
    PollEntry entry{poll_.fd(), true, false};
    poll_until({&entry, 1}, own && own->at() < deadline.at() ? *own : deadline);
  }
  Guest guest = std::move(waiting_.front());
  waiting_.erase(waiting_.begin());
  return guest;
}

void Doorkeeper::take_new() {
  // At most so many at a time, so that a flood leaves room for those who are in.
  for (size_t i = 0; i < kMaxUnproven; ++i) {
    Socket socket;
    try {
      socket = accept_from(listener_);
    } catch (const CommError&) {
      // Without a descriptor the system does not say whether anybody is there.
      if (listener_.wait_readable(Deadline(Milliseconds(0))) != Transfer::done) return;
      starved_ = true;
      if (unproven_.empty()) return listen(false);
      drop_oldest();
      continue;
    }
    if (!socket) return;
    if (unproven_.size() == kMaxUnproven) drop_oldest();
    Endpoint from;
    try {
      from = socket.peer();
    } catch (const CommError&) {
      continue;  // gone already
    }
    const int fd = socket.fd();
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (::epoll_ctl(poll_.fd(), EPOLL_CTL_ADD, fd, &event) != 0) continue;
    unproven_[fd] = std::make_unique<Unproven>(Unproven{std::move(socket), std::move(from),
                                                        Handshake(Side::server, options_, claim_),
                                                        Deadline(kProofTime)});
  }
}

void Doorkeeper::drop_oldest() {
  const auto oldest =
      std::min_element(unproven_.begin(), unproven_.end(), [](const auto& a, const auto& b) {
        return a.second->deadline.at() < b.second->deadline.at();
      });
  refuse(oldest->first, "proof must come sooner while many others connect, got none yet");
}

void Doorkeeper::refuse(int fd, std::string_view why) {
  const auto at = unproven_.find(fd);
  refusals_.add(at->second->from.address, why);
  // Closing is not enough where a forked child still holds the connection.
  ::epoll_ctl(poll_.fd(), EPOLL_CTL_DEL, fd, nullptr);
  unproven_.erase(at);
}

void Doorkeeper::go_on(int fd, std::vector<Guest>& in) {
  const auto at = unproven_.find(fd);
  if (at == unproven_.end()) return;  // refused earlier in this round
  Unproven& peer = *at->second;
  Handshake& handshake = peer.handshake;
  while (true) {
    const auto rest = std::span(peer.buffer).first(handshake.expects()).subspan(peer.filled);
    size_t moved = 0;
    const Transfer now = peer.socket.recv_some(rest, moved);
    if (now == Transfer::again) return;
    if (now != Transfer::done) return refuse(fd, "proof must be whole, got the connection's end");
    peer.filled += moved;
    if (moved < rest.size()) continue;
    handshake.received(std::span(peer.buffer).first(peer.filled));
    peer.filled = 0;
    // A new connection has room for what a handshake says; who makes it have none is a stranger.
    const auto out = handshake.outgoing();
    if (!out.empty() &&
        (peer.socket.send_some(out, moved) != Transfer::done || moved != out.size()))
      return refuse(fd, "peer must take the answer, got no room for it");
    handshake.sent();
    if (handshake.refused()) return refuse(fd, handshake.refusal());
    if (handshake.done()) break;
  }
  ::epoll_ctl(poll_.fd(), EPOLL_CTL_DEL, fd, nullptr);
  in.push_back({std::move(peer.socket), handshake.peer(), std::move(peer.from)});
  unproven_.erase(fd);
}

}  // namespace cairn::dist
