// Giving work to an emulated stream; for the emulated libraries.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <mutex>

namespace cairn::emulator {

// Runs `work` in the stream's turn, or at every launch of the graph that is being captured.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);
// The same for work that other devices take part in: it returns whether it is done, and is asked
// again, with the stream's turn still its own, as long as it is not.
cudaError_t enqueue_waiting(cudaStream_t stream, std::function<bool()> work);

// The emulated devices' lock; work runs under it.
std::unique_lock<std::recursive_mutex> lock_devices();
// Lets a device's streams work, `first` (which may be null) before the others, until `enough()` or
// until nothing there can go on. For work that waits for another device, which goes on by itself
// where it is a real one.
void go_on(int device, cudaStream_t first, const std::function<bool()>& enough);
// After a change that may let waiting work go on.
void devices_changed();
int device_of(cudaStream_t stream);

}  // namespace cairn::emulator
