// NCCL's functions.
#pragma once

#include <nccl.h>

#include <string>

namespace cairn::dist::cuda {

struct NcclApi {
  decltype(&ncclGetErrorString) error_string;
  decltype(&ncclGetLastError) last_error;
  decltype(&ncclGetUniqueId) unique_id;
  decltype(&ncclCommInitRankConfig) init;
  decltype(&ncclCommGetAsyncError) async_error;
  decltype(&ncclCommFinalize) finalize;
  decltype(&ncclCommDestroy) destroy;
  decltype(&ncclCommAbort) comm_abort;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclReduce) reduce;
  decltype(&ncclReduceScatter) reduce_scatter;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclBroadcast) broadcast;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) recv;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
};

// Null where the library or a function is missing; then why_no_nccl() is a sentence.
const NcclApi* nccl_api();
std::string why_no_nccl();
// What groups made from now on use instead of the installed library; null: that one. For tests.
void set_nccl_api(const NcclApi* api);

}  // namespace cairn::dist::cuda
