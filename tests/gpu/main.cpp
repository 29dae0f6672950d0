// The tests that need a real CUDA device: `cairn_gpu_tests`, with Catch2's options.
// Invariant: without a device it prints one line that says why it skipped, and succeeds.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <cstdio>

#include "cairn/tensor/cuda.h"

int main(int argc, char** argv) {
  Catch::Session session;
  const int usage = session.applyCommandLine(argc, argv);
  if (usage != 0) return usage;
  if (cairn::cuda::device_count() == 0) {
    std::printf("gpu tests: skipped, %s\n", cairn::cuda::unavailable().c_str());
    return 0;
  }
  return session.run();
}
