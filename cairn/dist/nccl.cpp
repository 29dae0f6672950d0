// The way from a build with or without NCCL to its group.
#include "cairn/dist/nccl.h"

#include <utility>

namespace cairn::dist {
namespace {

constinit const detail::NcclBackend* nccl = nullptr;

}  // namespace

void detail::set_nccl_backend(const NcclBackend* backend) { nccl = backend; }

std::string nccl_missing() {
  return nccl == nullptr ? "nccl: NCCL must be part of the build, but this one is without"
                         : nccl->missing();
}

std::shared_ptr<ProcessGroup> nccl_group(GroupOptions options, Device device) {
  const std::string missing = nccl_missing();
  check(missing.empty(), missing);
  check(device.type == DeviceType::cuda, "nccl: device must be a GPU, got ", device);
  return nccl->make(std::move(options), device);
}

}  // namespace cairn::dist
