// Launching a kernel of this project.
// Invariant: a launch goes to the thread's current stream of the device and is checked at once;
// what goes wrong inside the kernel shows at the next wait.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cairn/tensor/cuda/runtime.h"

namespace cairn::cuda {

struct Grid {
  dim3 blocks;
  dim3 threads = dim3(256);
  size_t shared = 0;  // bytes of dynamic shared memory
};

// Blocks of `threads` that cover n items, `each` items a thread; at most `most`, for kernels that
// stride over the rest.
inline Grid grid_for(int64_t n, int threads = 256, int each = 1, int64_t most = 1 << 30) {
  const int64_t per_block = static_cast<int64_t>(threads) * each;
  const int64_t blocks = std::min((n + per_block - 1) / per_block, most);
  return {dim3(static_cast<unsigned>(std::max<int64_t>(blocks, 1))),
          dim3(static_cast<unsigned>(threads))};
}

// `name` begins the error of a launch that fails.
template <class... Parameters>
void launch(Device device, const char* name, void (*kernel)(Parameters...), const Grid& grid,
            std::type_identity_t<Parameters>... arguments) {
  const DeviceGuard guard(device);
#ifdef CAIRN_EMULATED  // the tests run kernels on the host; as here, arguments are copied now
  check_call(emulator::submit(name, grid.blocks, grid.threads, grid.shared, current_stream(device),
                              [=] { kernel(arguments...); }),
             name);
#else
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared;
  config.stream = current_stream(device);
  void* pointers[] = {static_cast<void*>(&arguments)..., nullptr};
  check_call(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers), name);
#endif
}

}  // namespace cairn::cuda
