// The state of each device that this process uses: its stream, its waits, its pending error.
// Invariant: all work of this process on a device goes through current_stream() unless a
// StreamScope says otherwise, so work is done in the order in which it was asked for.
#pragma once

#include <cstdint>
#include <string_view>

#include "cairn/tensor/cuda/api.h"
#include "cairn/tensor/shape.h"

namespace cairn::cuda {

// Throws unless the device is there.
void check_device(Device device, const char* op);

// Where this thread's work on the device goes: the device's own stream, or a StreamScope's.
cudaStream_t current_stream(Device device);

class StreamScope {
 public:
  StreamScope(Device device, cudaStream_t stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  Device device_;
  cudaStream_t before_;
};

// Every wait of the host goes through one of these; they count, and throw a kernel's pending error.
void wait_for(Device device, cudaStream_t stream);
void wait_for(Device device, cudaEvent_t event);
void wait_for_device(Device device);
int64_t wait_count();

// --- errors that kernels find --------------------------------------------------------------------
// A kernel cannot throw. It writes what it found here, and the next wait throws it.
// Invariant: the first finding since the last wait stays; later ones are dropped.
struct Finding {
  int state = 0;         // 0: none, 1: being written, 2: complete
  int text = 0;          // what text_id() gave
  int64_t position = 0;  // of the value in its tensor, row-major
  int64_t value = 0;
  int64_t size = 0;  // the value had to be in [0, size)
  Shape shape;       // the tensor's
};
// The device's record, in host memory that kernels can write to.
Finding* finding_of(Device device);
// A number for "op: what" of `op: what must be in [0, size), got value at position P`.
int text_id(std::string_view op, std::string_view what);
// Throws what a kernel of the device found; the device must be idle.
void throw_finding(Device device);

struct DeviceLimits {
  int multiprocessors = 0;
  int max_threads_per_multiprocessor = 0;
  int64_t shared_memory_per_block = 0;  // bytes, after asking for more than 48 KiB
  int64_t l2_cache = 0;                 // bytes
};
const DeviceLimits& limits_of(Device device);

}  // namespace cairn::cuda
