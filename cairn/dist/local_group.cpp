// LocalGroup.
#include "cairn/dist/local_group.h"

#include <utility>

#include "cairn/dist/host_group.h"
#include "cairn/dist/owner.h"
#include "cairn/tensor/raw.h"

namespace cairn::dist {
namespace {

class LocalGroup : public HostGroup {
 public:
  explicit LocalGroup(GroupOptions options) : HostGroup(std::move(options)) {
    check(size() == 1, "local: size must be 1, got ", size());
  }
  ~LocalGroup() override { stop(); }

  std::string_view backend() const override { return "local"; }

  std::shared_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks,
                                         const std::string& name) override {
    return make_owned<LocalGroup>(*sub_options(ranks, name));
  }

 private:
  // Whatever the reduction, that of one tensor is itself.
  void run(const Call& call) override {
    if (call.input.defined() && call.output.defined() && !call.input.same_as(call.output))
      raw::copy_(raw::view(call.output, call.input.shape()), call.input);
  }
  void failed(const Call*, const std::exception&) noexcept override {}
};

}  // namespace

std::shared_ptr<ProcessGroup> local_group(GroupOptions options) {
  return make_owned<LocalGroup>(std::move(options));
}

}  // namespace cairn::dist
