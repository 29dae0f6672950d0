// CUDA devices as everybody sees them: what there is, its memory, its switches.
// Invariant: everything here may be asked in any build and on any machine; without CUDA there are
// no devices, and unavailable() says why.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "cairn/tensor/device.h"

namespace cairn::cuda {

// Whether this library was built with CUDA.
bool built();
// Usable devices; 0 without CUDA in the build, a driver or a card.
int device_count();
// Why device_count() is 0, as a clause ("this build has no CUDA"); empty where it is not.
std::string unavailable();

struct DeviceProperties {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0;     // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int64_t memory = 0;                   // bytes
  int64_t l2_cache = 0;                 // bytes
  int64_t shared_memory_per_block = 0;  // bytes, the most a kernel can ask for
};
// Throws Error for a device that is not there.
DeviceProperties properties(Device device);

// Versions as CUDA writes them, 13000 for 13.0: of the runtime this was built with, and the newest
// one that the driver can serve (0 without a driver).
int runtime_version();
int driver_version();

// Waits until the device has done all that was asked of it, by any thread. Errors of kernels (an
// index out of range, say) are thrown here, or wherever else the host waits.
void synchronize(Device device);
// How often the host has waited for a device, since the program started.
int64_t waits();

// The most bytes that tensors and caches of this process may take of the device; 0: no limit.
void set_memory_limit(Device device, int64_t bytes);
// Off: every block comes from the driver and goes back to it, as memory checkers want it.
void set_caching(bool on);

// Process-wide switches; names and defaults are PyTorch's.
struct Settings {
  std::atomic<bool> matmul_allow_tf32{false};  // f32 matrix products may round inputs to TF32
  std::atomic<bool> conv_allow_tf32{true};     // f32 convolutions may
  std::atomic<bool> benchmark{false};          // plans of cuDNN are timed instead of guessed
  std::atomic<bool> deterministic{false};      // only algorithms that repeat bit for bit
};
Settings& settings();

// What the CUDA code of this library fills in at start-up.
struct Functions {
  int (*device_count)();
  std::string (*unavailable)();
  DeviceProperties (*properties)(Device device);
  int (*runtime_version)();
  int (*driver_version)();
  void (*synchronize)(Device device);
  int64_t (*waits)();
  void (*set_memory_limit)(Device device, int64_t bytes);
  void (*set_caching)(bool on);
};
void set_functions(const Functions* functions);

}  // namespace cairn::cuda
