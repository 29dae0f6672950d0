// NCCL, emulated for a group of one: what tests can see of it and set.
#pragma once

#include "cairn/dist/cuda/nccl_api.h"
#include "tests/cuda/emulator/fakes.h"

namespace cairn::emulator {

struct NcclLog {
  int64_t calls = 0;    // that were issued
  int64_t ran = 0;      // whose turn in their stream came
  int64_t live = 0;     // communicators
  int64_t aborted = 0;  // of those that ended
};
NcclLog& nccl_log();
const dist::cuda::NcclApi& fake_nccl();
// What communicators say of themselves from now on.
void set_nccl_state(ncclResult_t state);

}  // namespace cairn::emulator
