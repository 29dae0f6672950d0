// Loading NCCL.
#include "cairn/dist/cuda/nccl_api.h"

#include "cairn/tensor/cuda/library.h"
#include "cairn/tensor/error.h"

namespace cairn::dist::cuda {
namespace {

struct Installed {
  Installed() {
    cairn::cuda::Library library("NCCL", cat("libnccl.so.", NCCL_MAJOR));
    library.find_as(&api.error_string, "ncclGetErrorString");
    library.find_as(&api.last_error, "ncclGetLastError");
    library.find_as(&api.unique_id, "ncclGetUniqueId");
    library.find_as(&api.init, "ncclCommInitRankConfig");
    library.find_as(&api.async_error, "ncclCommGetAsyncError");
    library.find_as(&api.finalize, "ncclCommFinalize");
    library.find_as(&api.destroy, "ncclCommDestroy");
    library.find_as(&api.comm_abort, "ncclCommAbort");
    library.find_as(&api.all_reduce, "ncclAllReduce");
    library.find_as(&api.reduce, "ncclReduce");
    library.find_as(&api.reduce_scatter, "ncclReduceScatter");
    library.find_as(&api.all_gather, "ncclAllGather");
    library.find_as(&api.broadcast, "ncclBroadcast");
    library.find_as(&api.send, "ncclSend");
    library.find_as(&api.recv, "ncclRecv");
    library.find_as(&api.group_start, "ncclGroupStart");
    library.find_as(&api.group_end, "ncclGroupEnd");
    if (!library.complete()) why = cat("nccl: ", library.why());
  }
  NcclApi api{};
  std::string why;
};

const Installed& installed() {
  static const Installed installed;
  return installed;
}

const NcclApi* replaced = nullptr;

}  // namespace

const NcclApi* nccl_api() {
  if (replaced != nullptr) return replaced;
  return installed().why.empty() ? &installed().api : nullptr;
}

std::string why_no_nccl() { return replaced != nullptr ? "" : installed().why; }

void set_nccl_api(const NcclApi* api) { replaced = api; }

}  // namespace cairn::dist::cuda
