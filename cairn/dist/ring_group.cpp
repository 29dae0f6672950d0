// RingGroup: plans its calls, lets the runner walk them, and makes sentences of what goes wrong.
#include "cairn/dist/ring_group.h"

#include <xxhash.h>

#include <algorithm>
#include <list>
#include <optional>
#include <utility>

#include "cairn/dist/diagnosis.h"
#include "cairn/dist/host_group.h"
#include "cairn/dist/owner.h"
#include "cairn/dist/ring_runner.h"

namespace cairn::dist {
namespace {

// Plans kept for calls to come.
constexpr size_t kPlans = 16;
// Zeros are left out where that saves a part of the bytes and the stretches that remain are long
// enough to travel well; they are agreed on first, which takes a message each way.
constexpr int64_t kLeastSaved = 64 << 10;
constexpr int64_t kShortRest = 1 << 10;

class RingGroup : public HostGroup {
 public:
  explicit RingGroup(GroupOptions with)
      : HostGroup(std::move(with)),
        diagnosis_(options()),
        mesh_(options()),
        runner_(mesh_, rank(), [this](int peer) { return diagnosis_.is_past(*current_, peer); }) {}
  ~RingGroup() override {
    stop();
    diagnosis_.left(executed());
    mesh_.leave();
  }

  std::string_view backend() const override { return "ring"; }
  std::shared_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks,
                                         const std::string& name) override {
    const auto sub = sub_options(ranks, name);
    return sub ? ring_group(*sub) : nullptr;
  }

 private:
  struct Planned {
    RingPlanOptions options;
    RingPlan plan;
  };

  void run(const Call& call) override;
  void failed(const Call* call, const std::exception& error) noexcept override {
    call != nullptr ? diagnosis_.failed(*call, error.what())
                    : diagnosis_.left(executed(), error.what());
    mesh_.cut();
  }
  void walk(const Call& call);
  const RingPlan& plan_for(const Call& call, int64_t numel);

  Diagnosis diagnosis_;
  Mesh mesh_;
  RingRunner runner_;
  const Call* current_ = nullptr;  // that run() is in
  std::list<Planned> plans_;       // the last used first
};

bool same(const RingPlanOptions& a, const RingPlanOptions& b) {
  return a.kind == b.kind && a.numel == b.numel && a.item_size == b.item_size && a.root == b.root &&
         a.peer == b.peer;
}

// Of all that ranks must agree on. What one sends the other receives, so these two are one call.
uint64_t fingerprint(const Call& call) {
  CallShape is = call.is;
  if (is.kind == CallKind::recv) is.kind = CallKind::send;
  return XXH3_64bits(&is, sizeof is);
}

// Elements of one rank's part.
int64_t part_numel(const Call& call, int size) {
  return call.is.kind == CallKind::all_to_all ? call.is.numel / size : call.is.numel;
}

Window window_of(const Tensor& t, const kernels::ZeroRanges& holes) {
  if (!t.defined()) return {};
  return Window(t.raw_data(), t.numel(), item_size(t.dtype()), holes);
}

// Whether leaving the zeros out is worth it. Depends on them alone, so that ranks that know the
// same come to the same.
bool worthwhile(const kernels::ZeroRanges& zeros, int64_t numel, int64_t item) {
  int64_t known = 0;
  for (const kernels::ZeroRange& range : zeros) known += range.end - range.begin;
  return known * item >= kLeastSaved && known >= numel / 16 &&
         (numel - known) * item >= static_cast<int64_t>(zeros.size()) * kShortRest;
}

const RingPlan& RingGroup::plan_for(const Call& call, int64_t numel) {
  const RingPlanOptions wanted{.kind = call.is.kind,
                               .rank = rank(),
                               .size = size(),
                               .numel = numel,
                               .item_size = item_size(call.is.dtype),
                               .root = call.is.root,
                               .peer = call.peer};
  auto at = std::find_if(plans_.begin(), plans_.end(),
                         [&](const Planned& planned) { return same(planned.options, wanted); });
  if (at == plans_.end()) {
    if (plans_.size() == kPlans) plans_.pop_back();
    plans_.push_front({wanted, plan(wanted)});
  } else {
    plans_.splice(plans_.begin(), plans_, at);
  }
  return plans_.front().plan;
}

void RingGroup::walk(const Call& call) {
  const uint64_t id = fingerprint(call);
  int64_t numel = part_numel(call, size());
  kernels::ZeroRanges holes;
  if (worthwhile(call.zeros, numel, item_size(call.is.dtype))) {
    if (runner_.agree(id, kernels::hash_of(call.zeros) | 1, call.deadline)) {
      holes = call.zeros;
      for (const kernels::ZeroRange& range : holes) numel -= range.end - range.begin;
    }
  }
  const bool averages = call.is.op == ReduceOp::avg;
  const RingMemory memory{.input = window_of(call.input, holes),
                          .output = window_of(call.output, holes),
                          .dtype = call.is.dtype,
                          .op = call.is.op,
                          .scale = averages ? 1.0 / size() : 1.0};
  runner_.walk(plan_for(call, numel), memory, id, call.deadline);
}

void RingGroup::run(const Call& call) {
  current_ = &call;
  try {
    walk(call);
  } catch (const PeerLost& lost) {
    // Whoever waits for this rank is to hear of it now, and to leave word too.
    diagnosis_.waits(call);
    mesh_.cut();
    throw CommError(diagnosis_.lost(call, lost.peer));
  } catch (const CallsDiffer&) {
    diagnosis_.waits(call);
    mesh_.cut();
    throw CommError(diagnosis_.mismatch(call));
  } catch (const FrameDamaged& damaged) {
    throw CommError(cat(options().describe(call), ": on the way from rank ",
                        options().name_of(damaged.peer), " to rank ", options().name_of(rank()),
                        ", ", damaged.what));
  } catch (const TooLate& late) {
    // The others come to their own deadlines, and name the same rank.
    throw TimeoutError(diagnosis_.silent(call, late.peers));
  }
}

}  // namespace

std::shared_ptr<ProcessGroup> ring_group(GroupOptions options) {
  return make_owned<RingGroup>(std::move(options));
}

}  // namespace cairn::dist
