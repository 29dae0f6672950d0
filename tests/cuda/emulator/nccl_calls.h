// What ranks ask an emulated communicator for, and the bytes that come of it.
#pragma once

#include <nccl.h>

#include <cstddef>
#include <vector>

namespace cairn::emulator {

enum class NcclKind { all_reduce, reduce, reduce_scatter, all_gather, broadcast, send, recv };

struct NcclCall {
  NcclKind kind;
  const void* from = nullptr;
  void* to = nullptr;
  size_t count = 0;  // as NCCL's functions count
  ncclDataType_t type = ncclFloat32;
  ncclRedOp_t op = ncclSum;
  int peer = 0;           // or the root
  bool captured = false;  // into a graph
};

bool is_collective(const NcclCall& call);
size_t bytes_of(const NcclCall& call);  // of `count` elements
// Whether the ranks ask for the same.
bool same_call(const NcclCall& a, const NcclCall& b);
// A collective, by the calls of all ranks.
void run_collective(const std::vector<const NcclCall*>& calls);

}  // namespace cairn::emulator
