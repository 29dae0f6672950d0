// ShmLinks: how the ranks of one host find each other, hand memory over, and see that one has died.
// Invariant: nothing here has a name in a file system; every connection proves the run's secret and
// comes from a process of the same user.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cairn/dist/process_group.h"
#include "cairn/dist/shm_memory.h"

namespace cairn::dist {

// A name for a unix socket that nobody can guess, outside of all file systems.
std::string new_local_name();
// Listens there; CommError where that fails.
Socket listen_locally(const std::string& name);
// Whether somebody of this user, whom memory can be shared with, listens there now; the connection.
Socket connect_locally(const std::string& name);

class ShmLinks {
 public:
  // Meets all ranks of the group through its store. CommError that lists the missing ones past the
  // deadline.
  ShmLinks(const GroupOptions& options, const Deadline& deadline);

  // The same new memory on all ranks, which call this in the same order.
  SharedMemory share(int64_t bytes, const Deadline& deadline);
  // Whether the rank's process has ended, or the rank its group.
  bool ended(int rank) const;

 private:
  // Readable or hung up once that rank is gone: a pipe that it holds the other end of (which a
  // child of it may hold open), and its process.
  struct Life {
    Socket pipe, process;
  };

  void lead(const Deadline& deadline);
  void follow(const Deadline& deadline);
  void admit(Socket connection, const Deadline& deadline);
  void hand_over(int to, int64_t number, std::span<const int> descriptors,
                 const Deadline& deadline);
  std::string missing() const;
  std::string called(int rank) const { return cat("rank ", options_.name_of(rank)); }

  const int rank_, size_;
  const std::string what_;  // for errors
  const GroupOptions options_;
  std::timed_mutex sharing_;
  // From rank 0 to each of the others; on those to rank 0 alone.
  std::vector<Socket> connections_;
  std::vector<Life> lives_;
  Socket own_life_;
};

}  // namespace cairn::dist
