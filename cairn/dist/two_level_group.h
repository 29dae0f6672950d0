// The group of ranks on several hosts, some of which share memory.
#pragma once

#include <memory>
#include <vector>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

// hosts[r] is equal for the ranks that share memory. all_reduce and broadcast go through shared
// memory inside the hosts and through a ring between their first ranks; whatever else through a
// ring of all. Sums are made inside the hosts first, in order of rank, then between them, in order
// of their first ranks; those of 16-bit floats in f32, rounded once.
std::shared_ptr<ProcessGroup> two_level_group(GroupOptions options, std::vector<int> hosts);

}  // namespace cairn::dist
