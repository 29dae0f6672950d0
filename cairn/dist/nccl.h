// The process group of GPUs, over NVIDIA's NCCL.
#pragma once

#include <memory>
#include <string>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

// Collectives of tensors on `device`, each rank with a GPU of its own. Calls go to a stream of the
// group, ordered after what this thread's stream was given so far; Work::wait() orders what comes
// later behind them and does not block the host, but for a barrier. They can be captured. 16-bit
// floats are summed by NCCL's rules: rounded at every step.
// A watchdog thread turns errors of the communicator and calls that run longer than their timeout
// into exceptions of the following calls, after the communicator was aborted, which ends what waits
// on the GPU. Throws Error where nccl_missing() says why, or where two ranks share a GPU.
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
