// The backend for ranks that share one host's memory: processes, or threads of one process.
#pragma once

#include <memory>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

// All ranks must be processes of one user on one host that can see each other's local sockets (one
// network namespace). Tensors of shared_tensor() are reduced where they lie; others go through
// chunks of shared memory. Sums are made in order of rank. A peer's end is noticed while waiting.
// Nothing is left behind, however the processes end.
std::shared_ptr<ProcessGroup> shm_group(GroupOptions options);

}  // namespace cairn::dist
