// TwoLevelGroup: groups inside the hosts, one between their leaders, and one of all.
// Invariant: before anything else of a collective is done, all ranks have compared it over the
// group of all; so the groups below agree too.
#include "cairn/dist/two_level_group.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cairn/dist/auto_group.h"
#include "cairn/dist/host_group.h"
#include "cairn/dist/owner.h"
#include "cairn/dist/ring_group.h"
#include "cairn/dist/shm_group.h"
#include "cairn/tensor/raw.h"

namespace cairn::dist {
namespace {

// What ranks compare.
struct Notice {
  CallNotice call;
  uint64_t zeros_hash = 0;
};

class TwoLevelGroup : public HostGroup {
 public:
  TwoLevelGroup(GroupOptions options, std::vector<int> hosts);
  ~TwoLevelGroup() override { stop(); }

  std::string_view backend() const override { return "auto"; }

  Tensor shared_tensor(int64_t numel, DType dtype) override {
    check_process();
    return inside_ ? inside_->shared_tensor(numel, dtype)
                   : ProcessGroup::shared_tensor(numel, dtype);
  }

  std::shared_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks,
                                         const std::string& name) override {
    const auto sub = sub_options(ranks, name);
    if (!sub) return nullptr;
    std::vector<int> hosts;
    for (int r : ranks) hosts.push_back(hosts_[static_cast<size_t>(r)]);
    return group_over_hosts(*sub, std::move(hosts));
  }

 private:
  void run(const Call& call) override;
  // The others may wait in any of the groups; but not where all of them hear of a mismatch, which
  // must reach them whole.
  void failed(const Call* call, const std::exception& error) noexcept override {
    if (mismatched_) return;
    for (const auto& group : {inside_, leaders_, all_})
      if (group) group->give_up(call, error);
  }

  void walk(const Call& call);
  // Whether all ranks know the same zeros. Throws where their calls differ.
  bool compare(const Call& call);
  void all_reduce(const Call& call, bool same_zeros);
  void broadcast(const Call& call);
  void through_all(const Call& call);

  // The ranks that have a place at `level`, and what to make their group of.
  std::shared_ptr<HostGroup> part(const std::vector<int>& ranks, const std::string& name,
                                  std::shared_ptr<ProcessGroup> (*make)(GroupOptions)) const {
    auto sub = sub_options(ranks, name);
    if (!sub) return nullptr;
    for (const int r : ranks) sub->rank_names.push_back(options().name_of(r));
    return std::dynamic_pointer_cast<HostGroup>(make(*sub));
  }
  template <class Options = CallOptions>
  static Options in_time(const Call& call) {
    Options options;
    options.timeout = std::max(Milliseconds(1), call.deadline.remaining());
    return options;
  }

  const std::vector<int> hosts_;
  std::vector<int> leader_ranks_;  // the first rank of each host, ascending
  std::vector<int> own_host_;      // the ranks that share this one's memory, ascending
  std::shared_ptr<HostGroup> all_, inside_, leaders_;  // null where this rank has none
  bool mismatched_ = false;
};

TwoLevelGroup::TwoLevelGroup(GroupOptions options, std::vector<int> hosts)
    : HostGroup(std::move(options)), hosts_(std::move(hosts)) {
  std::vector<int> everyone;
  for (int r = 0; r < size(); ++r) {
    const int host = hosts_[static_cast<size_t>(r)];
    everyone.push_back(r);
    if (std::find(hosts_.begin(), hosts_.begin() + r, host) == hosts_.begin() + r)
      leader_ranks_.push_back(r);
    if (host == hosts_[static_cast<size_t>(rank())]) own_host_.push_back(r);
  }
  all_ = part(everyone, "(all)", ring_group);
  if (own_host_.size() > 1)
    inside_ = part(own_host_, cat("(host of rank ", own_host_[0], ")"), shm_group);
  leaders_ = part(leader_ranks_, "(leaders)", ring_group);
}

// The groups below name ranks as this one does, but number their calls for themselves, so the error
// says what it is about.
void TwoLevelGroup::run(const Call& call) {
  try {
    walk(call);
  } catch (const TimeoutError& error) {
    throw TimeoutError(cat("rank ", rank(), ": ", describe(call), ": ", error.what()));
  } catch (const CommError& error) {
    const std::string_view text = error.what();
    const std::string prefix = describe(call);
    throw CommError(text.starts_with(prefix) ? std::string(text) : cat(prefix, ": ", text));
  }
}

void TwoLevelGroup::walk(const Call& call) {
  const CallKind kind = call.is.kind;
  if (!is_collective(kind)) return through_all(call);
  const bool same_zeros = compare(call);
  if (kind == CallKind::all_reduce) return all_reduce(call, same_zeros);
  if (kind == CallKind::broadcast) return broadcast(call);
  if (kind != CallKind::barrier) through_all(call);
}

bool TwoLevelGroup::compare(const Call& call) {
  const Notice own{CallNotice(call), kernels::hash_of(call.zeros)};
  const Tensor mine = empty({sizeof own}, {DType::u8});
  std::memcpy(mine.raw_data(), &own, sizeof own);
  const Tensor all = empty({size(), sizeof own}, {DType::u8});
  all_->all_gather(all, mine, in_time(call));
  std::vector<CallNotice> calls(static_cast<size_t>(size()));
  bool same_zeros = true;
  for (int r = 0; r < size(); ++r) {
    Notice notice;
    std::memcpy(static_cast<void*>(&notice), all.data<uint8_t>() + r * sizeof notice,
                sizeof notice);
    calls[static_cast<size_t>(r)] = notice.call;
    same_zeros = same_zeros && notice.zeros_hash == own.zeros_hash;
  }
  if (const auto text = mismatch(call, calls, name())) {
    mismatched_ = true;
    throw CommError(*text);
  }
  return same_zeros;
}

void TwoLevelGroup::all_reduce(const Call& call, bool same_zeros) {
  const Tensor& t = call.output;
  const bool average = call.is.op == ReduceOp::avg;
  const ReduceOp op = average ? ReduceOp::sum : call.is.op;
  // Of 16-bit floats nothing is rounded before the end; the smallest and largest never are.
  const bool widened = is_half(t.dtype()) && (op == ReduceOp::sum || op == ReduceOp::prod);
  const Tensor wide = widened ? raw::to(t, DType::f32) : t;
  auto options = in_time<ReduceOptions>(call);
  if (same_zeros && !call.zeros.empty()) options.zeros = &call.zeros;
  if (inside_) inside_->all_reduce(wide, op, options);
  if (leaders_) {
    options.timeout = in_time(call).timeout;
    leaders_->all_reduce(wide, op, options);
    if (average) {
      const kernels::Part part{wide.raw_data(), wide.dtype()};
      kernels::combine(kCPU, wide.raw_data(), wide.dtype(), std::span(&part, 1), wide.numel(),
                       ReduceOp::sum, 1.0 / size());
    }
  }
  if (inside_) inside_->broadcast(wide, 0, in_time(call));
  if (widened) raw::copy_(t, wide);
}

// Inside the root's host first, so that its leader has it.
void TwoLevelGroup::broadcast(const Call& call) {
  const auto place = [](const std::vector<int>& ranks, auto&& is) {
    return static_cast<int>(std::find_if(ranks.begin(), ranks.end(), is) - ranks.begin());
  };
  const auto host_of = [&](int r) { return hosts_[static_cast<size_t>(r)]; };
  const Tensor& t = call.output;
  const bool here = host_of(rank()) == host_of(call.is.root);
  if (inside_ && here)
    inside_->broadcast(t, place(own_host_, [&](int r) { return r == call.is.root; }),
                       in_time(call));
  if (leaders_)
    leaders_->broadcast(
        t, place(leader_ranks_, [&](int r) { return host_of(r) == host_of(call.is.root); }),
        in_time(call));
  if (inside_ && !here) inside_->broadcast(t, 0, in_time(call));
}

void TwoLevelGroup::through_all(const Call& call) {
  const CallOptions options = in_time(call);
  const CallShape& is = call.is;
  switch (is.kind) {
    case CallKind::reduce:
      all_->reduce(call.output, is.root, is.op, options);
      return;
    case CallKind::reduce_scatter:
      all_->reduce_scatter(call.output, call.input, is.op, options);
      return;
    case CallKind::all_gather:
      all_->all_gather(call.output, call.input, options);
      return;
    case CallKind::scatter:
      all_->scatter(call.output, call.input, is.root, options);
      return;
    case CallKind::gather:
      all_->gather(call.output, call.input, is.root, options);
      return;
    case CallKind::all_to_all:
      all_->all_to_all(call.output, call.input, options);
      return;
    case CallKind::send:
      all_->send(call.input, call.peer, options);
      return;
    case CallKind::recv:
      all_->recv(call.output, call.peer, options);
      return;
    case CallKind::all_reduce:
    case CallKind::broadcast:
    case CallKind::barrier:
      fail("auto: ", is.kind, " must go through two levels");
  }
}

}  // namespace

std::shared_ptr<ProcessGroup> two_level_group(GroupOptions options, std::vector<int> hosts) {
  return make_owned<TwoLevelGroup>(std::move(options), std::move(hosts));
}

}  // namespace cairn::dist
