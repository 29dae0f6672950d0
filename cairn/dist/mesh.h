// Mesh: the connections of one rank to all others of its group.
// Invariant: every connection has proven that it belongs to the run, the group and its rank before
// the constructor returns, and every one is watched in every wait, needed or not.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cairn/dist/link.h"
#include "cairn/dist/process_group.h"

namespace cairn::dist {

class Mesh {
 public:
  // Returns once all ranks are connected. CommError `ring: 3 of 4 ranks joined the group 'world'
  // within 60 s, missing [2]` past the timeout; Error where ranks disagree about the group's size
  // or two of them have the same number.
  explicit Mesh(const GroupOptions& options);

  int size() const { return static_cast<int>(links_.size()); }
  // Another rank's.
  Link& link(int rank) { return *links_[static_cast<size_t>(rank)]; }
  // How many ranks of the group run on this rank's machine, it included.
  int local_size() const { return local_size_; }

  // What to wait for on one connection.
  struct Wish {
    bool read = false, write = false;
  };
  // Waits until something can be moved, a connection ends, or the deadline has come. Returns a
  // rank whose connection ended though nobody waits for it, else -1.
  int wait(std::span<const Wish> wishes, Milliseconds at_most);
  // From now on it is no news that this one ended.
  void ignore(int rank) { ignored_[static_cast<size_t>(rank)] = true; }

  // Ends all connections; peers notice at once.
  void cut() noexcept;
  // Ends them after what was sent has arrived.
  void leave() noexcept;

 private:
  std::vector<std::unique_ptr<Link>> links_;  // by rank
  std::vector<char> ignored_;
  int local_size_ = 1;
};

}  // namespace cairn::dist
