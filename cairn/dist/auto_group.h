// The group that finds out by itself how its ranks reach each other best.
#pragma once

#include <memory>
#include <vector>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

// One rank: local. Ranks that can all share memory (one host, user and network namespace; each
// proves it by reaching another's local socket): shm. Ranks of which no two can: ring. Else two
// levels, "auto".
std::shared_ptr<ProcessGroup> auto_group(GroupOptions options);

// The same where it is known who shares memory: the ranks with equal numbers in `hosts`, which is
// by rank. The same on all ranks.
std::shared_ptr<ProcessGroup> group_over_hosts(GroupOptions options, std::vector<int> hosts);

}  // namespace cairn::dist
