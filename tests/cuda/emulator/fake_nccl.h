// NCCL, emulated for ranks that are threads of one process, each with a device: what tests can see
// of it and set.
#pragma once

#include <atomic>

#include "cairn/dist/cuda/nccl_api.h"
#include "tests/cuda/emulator/fakes.h"

namespace cairn::emulator {

// Of all ranks together.
struct NcclLog {
  std::atomic<int64_t> calls = 0;    // that were issued
  std::atomic<int64_t> ran = 0;      // that were done, in their stream's turn
  std::atomic<int64_t> live = 0;     // communicators
  std::atomic<int64_t> aborted = 0;  // of those that ended
};
NcclLog& nccl_log();
const dist::cuda::NcclApi& fake_nccl();
// What communicators that all ranks have joined say of themselves from now on.
void set_nccl_state(ncclResult_t state);
// Zeros in the log, and communicators that are well.
void reset_nccl();

}  // namespace cairn::emulator
