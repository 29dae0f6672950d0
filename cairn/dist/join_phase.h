// JoinPhase: which ranks have come to a store that waits for all of them.
// Invariant: it ends once, for all ranks alike: complete, or failed with one text.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cairn/dist/socket.h"

namespace cairn::dist {

class JoinPhase {
 public:
  struct Member {
    uint64_t owner = 0;  // the connection
    uint32_t request = 0;
    int rank = 0, world_size = 0;
    Endpoint from;
    Milliseconds timeout{};
    Deadline deadline{Milliseconds(0)};
  };
  // Who is to be told: an empty text says that all have joined.
  struct Answer {
    uint64_t owner;
    uint32_t request;
    std::string text;
  };

  // 0: the first rank that joins tells the world's size.
  explicit JoinPhase(int world_size, int rank) : world_size_(world_size), said_by_(rank) {}

  std::vector<Answer> join(Member member);
  // Its connection ended; the rank may join again.
  void leave(uint64_t owner);
  // Fails for all at the first deadline; `hint` is the end of what they are told.
  std::vector<Answer> expired(std::string_view hint = "");
  std::optional<Deadline> next() const;

 private:
  // Empty: it is in.
  std::string refusal(const Member& member) const;
  std::vector<Answer> answer_all(const std::string& text);
  std::string missing() const;

  int world_size_, said_by_;
  bool complete_ = false;
  std::string failed_;
  std::map<int, Member> members_;  // by rank
};

}  // namespace cairn::dist
