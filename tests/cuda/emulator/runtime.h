// What the files of the emulated runtime share. All of it is to be used under the devices' lock.
#pragma once

#include <cuda_runtime_api.h>

#include <mutex>

#include "tests/cuda/emulator/queue.h"

namespace cairn::emulator {

using Lock = std::unique_lock<std::recursive_mutex>;

constexpr int kDevices = 3;

// Of the calling thread.
int current_device();
// Notes an error for cudaGetLastError.
cudaError_t result(cudaError_t error);
// What fail_next() asked for, once.
cudaError_t planned_failure(const char* call);

// The host waits: the stream, or all of the device, does what it was given. Other threads may take
// the lock where that takes another device's work, which is still to come.
void wait_for_stream(Lock& lock, cudaStream_t stream);
void wait_for_device(Lock& lock, int device);
void count_wait();
bool is_capturing(cudaStream_t stream);
// Nothing can be captured with what the stream was asked for.
void spoil_capture(cudaStream_t stream);

}  // namespace cairn::emulator
