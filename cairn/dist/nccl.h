// The process group of GPUs, over NVIDIA's NCCL.
#pragma once

#include <memory>
#include <string>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

// Collectives of tensors on `device`, each rank with a GPU of its own. Calls go to a stream of the
// group, ordered after what this thread's stream was given so far; Work::wait() orders what comes
// later behind them and does not block the host, but for a barrier. Calls keep NCCL's rules: 16-bit
// floats are rounded at every step of a sum, and min and max pass over NaNs. What ranks ask for
// must be the same: where different calls wait for each other, all hear of it after a second or
// two, but NCCL itself may also take them for one. Ranks that share several groups ask for the
// calls of all of them in the same order: the streams of a GPU wait for each other. A watchdog
// thread turns errors of the communicator and calls that run longer than their timeout into
// exceptions of the following calls, which name the rank that is waited for, and aborts the
// communicator, which ends what waits on the GPU; the other ranks hear of it through the store.
// Calls can be captured, on all ranks or none; such a graph must be gone before the group is, and
// its launches are watched where ProcessGroup::watch() is told of them. Throws Error where
// nccl_missing() says why, or where two ranks share a GPU.
std::shared_ptr<ProcessGroup> nccl_group(GroupOptions options, Device device);

// Why there is no NCCL, as a sentence; empty where there is.
std::string nccl_missing();

namespace detail {
// What dist/cuda gives.
struct NcclBackend {
  std::shared_ptr<ProcessGroup> (*make)(GroupOptions options, Device device);
  std::string (*missing)();
};
void set_nccl_backend(const NcclBackend* backend);
}  // namespace detail

}  // namespace cairn::dist
