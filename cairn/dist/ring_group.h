// The group of ranks that reach each other over TCP.
#pragma once

#include <memory>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

// Connects to all other ranks, which must call it too; see Mesh. Sums are taken in order of rank,
// whatever the size of the tensor and wherever an element lies in it.
std::shared_ptr<ProcessGroup> ring_group(GroupOptions options);

}  // namespace cairn::dist
