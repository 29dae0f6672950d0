// Mesh: ranks publish where they listen; each connects to those below it and admits those above.
#include "cairn/dist/mesh.h"

#include <poll.h>
#include <sodium.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <optional>
#include <thread>
#include <utility>

#include "cairn/dist/auth.h"
#include "cairn/dist/doorkeeper.h"

namespace cairn::dist {
namespace {

// What a connection may stay unanswered beyond the group's time-out: the deadlines of calls decide,
// also where calls follow one another, and never the system. This much is Linux's default.
constexpr Milliseconds kPatience = std::chrono::minutes(15);
// Before a connection that was dropped is made again.
constexpr Milliseconds kPause{50};
// What the store may take to say who is there, once the time is up.
constexpr Milliseconds kAnswer{1000};

// The same for all processes of one machine and of no other.
std::string machine_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id.empty() ? "unknown" : id;
}

std::string random_name() {
  std::array<unsigned char, 16> bytes;
  randombytes_buf(bytes.data(), bytes.size());
  std::string out(2 * bytes.size() + 1, '\0');
  sodium_bin2hex(out.data(), out.size(), bytes.data(), bytes.size());
  out.pop_back();
  return out;
}

// Making the connections of one group.
class Meeting {
 public:
  explicit Meeting(const GroupOptions& options)
      : o_(options), deadline_(options.timeout), machine_(machine_id()) {}

  std::vector<std::unique_ptr<Link>> meet();
  int local_size() const { return local_size_; }

 private:
  struct Card {
    Endpoint endpoint;
    std::string machine;
  };

  std::string key(const std::string& what) const { return cat(o_.name, "/ring/", what); }
  void agree_on_size();
  void publish(const Endpoint& endpoint);
  Card card_of(int rank);
  Socket connect_to(int rank);
  void admit();
  void add(int rank, Socket socket);
  [[noreturn]] void too_late();

  const GroupOptions& o_;
  const Deadline deadline_;
  const std::string machine_;
  AuthOptions auth_;
  int local_size_ = 1;
  std::vector<std::unique_ptr<Link>> links_;
  std::optional<Doorkeeper> door_;
};

void Meeting::agree_on_size() {
  const std::string mine = std::to_string(o_.size);
  const std::string agreed = o_.store->compare_set(key("size"), "", mine);
  check(agreed == mine, "ring: size of the group '", o_.name,
        "' must be the same on all ranks, got ", mine, " on rank ", o_.name_of(o_.rank), " and ",
        agreed, " on another");
}

void Meeting::publish(const Endpoint& endpoint) {
  // The port is not all: two processes must not both believe that they are this rank.
  const std::string card = cat(endpoint.port, " ", endpoint.address, " ", machine_);
  const std::string taken = o_.store->compare_set(key(std::to_string(o_.rank)), "", card);
  check(taken == card, "ring: rank ", o_.name_of(o_.rank), " of the group '", o_.name,
        "' must be one process (and a group's name new), got a second one");
}

Meeting::Card Meeting::card_of(int rank) {
  const std::string name = key(std::to_string(rank));
  try {
    o_.store->wait(std::span(&name, 1), deadline_.remaining());
  } catch (const CommError&) {
    if (deadline_.expired()) too_late();
    throw;
  }
  const std::string text = o_.store->get(name, deadline_.remaining());
  const size_t first = text.find(' '), last = text.rfind(' ');
  Card card;
  const char* end = text.data() + std::min(first, text.size());
  const bool good = first < last && last != std::string::npos &&
                    std::from_chars(text.data(), end, card.endpoint.port).ptr == end;
  check(good, "ring: the address of rank ", o_.name_of(rank), " must be one, got '", text, "'");
  card.endpoint.address = text.substr(first + 1, last - first - 1);
  card.machine = text.substr(last + 1);
  return card;
}

Socket Meeting::connect_to(int rank) {
  const Card card = card_of(rank);
  const Claim claim{static_cast<uint32_t>(o_.rank)};
  while (true) {
    Socket socket = connect_once(card.endpoint, deadline_);
    try {
      const Claim peer = authenticate(
          socket, Side::client, auth_, claim, deadline_,
          cat("ring: connection from rank ", o_.name_of(o_.rank), " to rank ", o_.name_of(rank)));
      if (peer[0] != static_cast<uint32_t>(rank))
        throw RefusedError(cat("ring: ", card.endpoint, " must be rank ", rank, " of the group '",
                               o_.name, "', got rank ", peer[0]));
      return socket;
    } catch (const RefusedError&) {
      throw;
    } catch (const CommError&) {
      // Dropped unheard, as strangers may be while many come at once. One that has ended no longer
      // listens.
      if (deadline_.expired()) throw;
    }
    std::this_thread::sleep_until(deadline_.or_in(kPause).at());
  }
}

void Meeting::admit() {
  for (int missing = o_.size - 1 - o_.rank; missing > 0;) {
    std::optional<Doorkeeper::Guest> guest = door_->admit(deadline_);
    if (!guest) too_late();
    const auto rank = static_cast<size_t>(guest->claim[0]);
    if (rank <= static_cast<size_t>(o_.rank) || rank >= links_.size()) continue;
    // One that comes again has given up the connection that it made before.
    if (!links_[rank]) --missing;
    add(static_cast<int>(rank), std::move(guest->socket));
  }
}

void Meeting::add(int rank, Socket socket) {
  set_patience(socket, o_.timeout + kPatience);
  links_[static_cast<size_t>(rank)] = std::make_unique<Link>(std::move(socket));
}

void Meeting::too_late() {
  std::string missing, unconnected;
  int joined = 0;
  for (int r = 0; r < o_.size; ++r) {
    if (o_.store->find(key(std::to_string(r)), kAnswer))
      ++joined;
    else
      missing += cat(missing.empty() ? "" : ", ", o_.name_of(r));
    if (r != o_.rank && !links_[static_cast<size_t>(r)])
      unconnected += cat(unconnected.empty() ? "" : ", ", o_.name_of(r));
  }
  const std::string start = cat("ring: ", joined, " of ", o_.size, " ranks joined the group '",
                                o_.name, "' within ", in_words(o_.timeout));
  if (joined < o_.size) throw CommError(cat(start, ", missing [", missing, "]"));
  throw CommError(cat(start, ", but rank ", o_.name_of(o_.rank), " is not connected to [",
                      unconnected, "]",
                      door_->starved() ? "; a descriptor must be free for each, got too few" : ""));
}

std::vector<std::unique_ptr<Link>> Meeting::meet() {
  links_.resize(static_cast<size_t>(o_.size));
  agree_on_size();
  // Other runs with the same secret are refused.
  auth_ = {.secret = o_.secret,
           .run_id = o_.store->compare_set(key("run"), "", random_name()),
           .purpose = cat("ring ", o_.name)};
  const Claim claim{static_cast<uint32_t>(o_.rank)};
  door_.emplace(listen_on({o_.address, 0}), auth_, claim);
  publish(door_->endpoint());
  for (int r = 0; r < o_.rank; ++r) add(r, connect_to(r));
  admit();
  for (int r = 0; r < o_.size; ++r)
    if (r != o_.rank && card_of(r).machine == machine_) ++local_size_;
  return std::move(links_);
}

}  // namespace

Mesh::Mesh(const GroupOptions& options) {
  links_.resize(1);
  if (options.size > 1) {
    Meeting meeting(options);
    links_ = meeting.meet();
    local_size_ = meeting.local_size();
  }
  ignored_.resize(links_.size());
}

int Mesh::wait(std::span<const Wish> wishes, Milliseconds at_most) {
  constexpr short kEnd = POLLRDHUP | POLLHUP | POLLERR;
  std::array<pollfd, 64> few;
  std::vector<pollfd> many;
  std::span<pollfd> polled(few);
  if (links_.size() > few.size()) {
    many.resize(links_.size());
    polled = many;
  }
  for (size_t r = 0; r < links_.size(); ++r) {
    const bool wanted = wishes[r].read || wishes[r].write;
    const bool watched = links_[r] != nullptr && (wanted || !ignored_[r]);
    polled[r].fd = watched ? links_[r]->fd() : -1;
    polled[r].events = static_cast<short>(POLLRDHUP | (wishes[r].read ? POLLIN : 0) |
                                          (wishes[r].write ? POLLOUT : 0));
    polled[r].revents = 0;
  }
  // Interrupted or not, the caller looks at its deadline.
  if (::poll(polled.data(), links_.size(), static_cast<int>(at_most.count())) <= 0) return -1;
  for (size_t r = 0; r < links_.size(); ++r)
    if ((polled[r].revents & kEnd) != 0 && !wishes[r].read && !ignored_[r])
      return static_cast<int>(r);
  return -1;
}

void Mesh::cut() noexcept {
  for (const auto& link : links_)
    if (link) link->end();
}

void Mesh::leave() noexcept {
  for (const auto& link : links_)
    if (link) {
      link->drain();
      link->close();
    }
}

}  // namespace cairn::dist
