// NcclComm: a communicator that never blocks the host longer than a deadline says.
// Invariant: it is closed or ended once, and after that no call reaches NCCL.
#pragma once

#include <string>

#include "cairn/dist/call.h"
#include "cairn/dist/cuda/nccl_api.h"
#include "cairn/tensor/cuda/api.h"

namespace cairn::dist::cuda {

// A failed call of NCCL: `call: NCCL call must succeed, got …`.
std::string nccl_failure(const NcclApi& api, const char* call, ncclResult_t result,
                         ncclComm_t comm);

class NcclComm {
 public:
  // On the current device. Every rank calls it with the id that one of them made; throws
  // TimeoutError past the deadline, CommError where NCCL fails.
  NcclComm(const NcclApi& api, const ncclUniqueId& id, int rank, int size,
           const Deadline& deadline);
  ~NcclComm() { end(); }
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  // Issues the call to the stream. `scratch` is one element of i32 for a barrier.
  void issue(const Call& call, void* scratch, cudaStream_t stream);
  // What the communicator says of itself: empty, or a sentence of what went wrong.
  std::string failure() const;
  // Lets the other ranks finish what they share with this one, then frees the communicator; aborts
  // it where that fails or lasts too long.
  void close(const Deadline& deadline) noexcept;
  // ncclCommAbort: ends what runs and waits on the GPU.
  void end() noexcept;

 private:
  void enqueue(const Call& call, void* scratch, cudaStream_t stream);
  void exchange(const Call& call, cudaStream_t stream);
  void check(const char* call, ncclResult_t result) const;
  // Calls return while NCCL still connects; this waits for the end of that.
  void settle(const char* call, const Deadline& deadline) const;

  const NcclApi& api_;
  int rank_, size_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace cairn::dist::cuda
