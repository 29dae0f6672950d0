// Ranks that are threads, each with an emulated GPU, over the emulated NCCL.
#pragma once

#include <memory>
#include <utility>

#include "cairn/dist/cuda/nccl_api.h"
#include "cairn/dist/nccl.h"
#include "cairn/tensor/cuda.h"
#include "tests/cuda/emulator/fake_nccl.h"
#include "tests/dist/contract.h"

namespace cairn::test {

// The emulated library for a scope.
struct WithFakeNccl {
  WithFakeNccl() {
    dist::cuda::set_nccl_api(&emulator::fake_nccl());
    emulator::reset_nccl();
  }
  ~WithFakeNccl() { dist::cuda::set_nccl_api(nullptr); }
  WithFakeNccl(const WithFakeNccl&) = delete;
  WithFakeNccl& operator=(const WithFakeNccl&) = delete;
};

inline Device gpu(int index) { return Device(DeviceType::cuda, index); }

// A rank's group on the GPU of its number.
inline std::shared_ptr<dist::ProcessGroup> nccl_rank(dist::GroupOptions options) {
  const Device device = gpu(options.rank);
  return dist::nccl_group(std::move(options), device);
}

}  // namespace cairn::test
