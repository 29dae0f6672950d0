// Doorkeeper: takes the connections that come to a listening socket, and lets in those that prove
// that they belong to the run.
// Invariant: a stranger costs one descriptor and less than a KiB for at most kProofTime; it can
// neither block nor end anything, and kMaxUnproven of them are the most there are at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cairn/dist/auth.h"
#include "cairn/dist/socket.h"

namespace cairn::dist {

// Who was turned away and why; the library does not print, so this is where it can be asked.
// Safe to be used by several threads at once.
class Refusals {
 public:
  void add(const std::string& address, std::string_view why);
  uint64_t count() const;
  // One sentence for each address and reason, at most kKept: "127.0.0.1 was refused 3 times: secret
  // must be the run's, got another".
  std::vector<std::string> texts() const;

 private:
  static constexpr size_t kKept = 64;

  mutable std::mutex mutex_;
  uint64_t count_ = 0;
  std::map<std::pair<std::string, std::string>, uint64_t> times_;
};

class Doorkeeper {
 public:
  static constexpr size_t kMaxUnproven = 64;
  static constexpr Milliseconds kProofTime{3000};

  struct Guest {
    Socket socket;
    Claim claim;
    Endpoint from;
  };

  // `claim` is what guests are told of this side.
  Doorkeeper(Socket listener, AuthOptions options, const Claim& claim);
  ~Doorkeeper();

  Endpoint endpoint() const { return listener_.local(); }
  // Readable when step() has something to do; a descriptor for epoll and poll.
  int fd() const { return poll_.fd(); }
  // When step() is to be called even if it is not; nothing: never.
  std::optional<Deadline> next() const;
  // All that can be done without waiting. Returns those that were let in.
  std::vector<Guest> step();
  // For who has nothing else to do: the next guest, or nothing past the deadline.
  std::optional<Guest> admit(const Deadline& deadline);

  Refusals& refusals() { return refusals_; }
  // Whether there was ever no descriptor for somebody who came; any thread may ask.
  bool starved() const { return starved_; }

 private:
  struct Unproven;

  void take_new();
  void refuse(int fd, std::string_view why);
  void listen(bool on);
  // Reads what is there; true when the peer has been let in or refused.
  void go_on(int fd, std::vector<Guest>& in);
  void drop_oldest();

  AuthOptions options_;
  Claim claim_;
  Socket listener_, poll_;
  std::map<int, std::unique_ptr<Unproven>> unproven_;  // by descriptor
  std::vector<Guest> waiting_;                         // let in and not yet taken by admit()
  std::optional<Deadline> resume_;  // while there are no descriptors for new connections
  std::atomic<bool> starved_ = false;
  Refusals refusals_;
};

}  // namespace cairn::dist
