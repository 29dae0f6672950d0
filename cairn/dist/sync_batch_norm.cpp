// The ranks of a group as replicas of batch normalisation.
#include "cairn/dist/sync_batch_norm.h"

#include <utility>

#include "cairn/tensor/factory.h"

namespace cairn::dist {
namespace {

class GroupReplicas final : public BatchReplicas {
 public:
  explicit GroupReplicas(std::shared_ptr<ProcessGroup> group) : group_(std::move(group)) {
    check(group_ != nullptr, "batch_replicas: group must be given, got null");
  }
  Tensor gather(const Tensor& row) const override {
    const Tensor all = empty({group_->size(), row.numel()}, {row.dtype(), row.device()});
    group_->all_gather(all, row);
    return all;
  }

 private:
  std::shared_ptr<ProcessGroup> group_;
};

}  // namespace

std::shared_ptr<const BatchReplicas> batch_replicas(std::shared_ptr<ProcessGroup> group) {
  return std::make_shared<GroupReplicas>(std::move(group));
}

}  // namespace cairn::dist
