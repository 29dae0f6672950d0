// init_process_group(): from what a cluster's launcher tells to the group of all ranks.
// Invariant: it returns on all ranks or fails on all of them, within the time-out.
#pragma once

#include <memory>
#include <string>

#include "cairn/dist/environment.h"
#include "cairn/dist/process_group.h"

namespace cairn::dist {

struct InitOptions {
  // "auto" (what is fastest between these processes, see auto_group), "local" (of one process),
  // "ring", "shm"
  std::string backend = "auto";
  // Of meeting the others, and of every call of the group.
  Milliseconds timeout = kDefaultTimeout;
  // An address, host name or network interface of rank 0's host where its store listens. Empty:
  // loopback where all ranks are on one host, else the master address.
  std::string bind = {};
  // This process's numeric address as others of the run reach it. Empty: the one that it uses
  // towards rank 0.
  std::string address = {};
};

// Rank 0 holds the store; when it lets go of the group it waits, as long as the time-out at most
// (1 s where a group has failed or an exception is on its way), for the other ranks to let go of
// theirs, since they may still want to leave or read word there. Error for wrong options; CommError
// where the ranks do not meet: `tcp_store: all ranks must join within 60 s, got 3/4 joined, missing
// [2]`.
std::shared_ptr<ProcessGroup> init_process_group(const ClusterEnvironment& environment,
                                                 const InitOptions& options = {});

// The ranks of a group that has failed meet again, by its store. `number` must be the same on all
// ranks and another one each time. CommError where they do not meet. Of the options those of the
// backend and the time-out are looked at.
std::shared_ptr<ProcessGroup> rejoin(const ProcessGroup& failed, int number,
                                     const InitOptions& options = {});

}  // namespace cairn::dist
