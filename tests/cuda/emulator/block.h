// Running one block of a kernel.
#pragma once

#include <cuda_runtime.h>

#include <functional>

namespace cairn::emulator {

// Block `at` of a grid of `blocks`; `body` is the kernel as each thread calls it.
void run_block(const char* name, dim3 at, dim3 blocks, dim3 threads, size_t shared,
               const std::function<void()>& body);

}  // namespace cairn::emulator
