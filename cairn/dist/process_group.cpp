// ProcessGroup: arguments checked, numbered and made contiguous, before a backend sees them.
#include "cairn/dist/process_group.h"

#include <algorithm>
#include <utility>

#include "cairn/tensor/raw.h"

namespace cairn::dist {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16,
                             DType::i32, DType::i64, DType::u8};

// FNV-1a over the sizes.
uint64_t hash_of(const Shape& shape) {
  uint64_t hash = 14695981039346656037u;
  const auto mix = [&](uint64_t value) {
    for (int byte = 0; byte < 8; ++byte)
      hash = (hash ^ ((value >> (8 * byte)) & 0xff)) * 1099511628211u;
  };
  mix(shape.size());
  for (int64_t size : shape) mix(static_cast<uint64_t>(size));
  return hash;
}

// A result that was asked for in another layout than the backend writes.
struct CopiedBack : WorkState {
  CopiedBack(Work inner_work, Tensor to_tensor, Tensor from_tensor)
      : inner(std::move(inner_work)), to(std::move(to_tensor)), from(std::move(from_tensor)) {}

  bool is_completed() override { return inner.is_completed(); }
  void wait() override {
    inner.wait();
    const std::lock_guard lock(mutex);
    if (!std::exchange(copied, true)) raw::copy_(to, from);
  }

  Work inner;
  Tensor to, from;
  std::mutex mutex;
  bool copied = false;
};

}  // namespace

std::string GroupOptions::describe(const Call& call) const {
  CallShape is = call.is;
  if (is.root >= 0) is.root = name_of(is.root);
  return dist::describe(is, call.shape, call.peer >= 0 ? name_of(call.peer) : -1);
}

ProcessGroup::ProcessGroup(GroupOptions options) : options_(std::move(options)) {
  const GroupOptions& o = options_;
  check(o.size >= 1, "process group: size must be at least 1, got ", o.size);
  check(o.rank >= 0 && o.rank < o.size, "process group: rank must be 0 to ", o.size - 1, ", got ",
        o.rank);
  check(o.timeout > Milliseconds(0), "process group: timeout must be above 0 ms, got ",
        o.timeout.count());
  check(o.rank_names.empty() || o.rank_names.size() == static_cast<size_t>(o.size),
        "process group: rank_names must be as many as its ", o.size, " ranks, got ",
        o.rank_names.size());
  check(!o.name.empty(), "process group: name must have at least one character, got none");
  check(o.size == 1 || o.store != nullptr, "process group: store must be given for ", o.size,
        " ranks, got none");
  sent_.resize(static_cast<size_t>(o.size));
  received_.resize(static_cast<size_t>(o.size));
}

Call ProcessGroup::make(CallKind kind, const Tensor& like, const CallOptions& options) const {
  const std::string_view op = name_of(kind);
  Call call;
  call.is.kind = kind;
  call.timeout = options.timeout.value_or(options_.timeout);
  check(call.timeout > Milliseconds(0), op, ": timeout must be above 0 ms, got ",
        call.timeout.count());
  if (kind == CallKind::barrier) return call;
  check(like.defined(), op, ": tensor must be defined, got an undefined one");
  check(std::find(std::begin(kDTypes), std::end(kDTypes), like.dtype()) != std::end(kDTypes), op,
        ": dtype must be f32, f64, bf16, f16, i32, i64 or u8, got ", like.dtype());
  check(like.device() == device(), op, ": tensor must be on ", device(), " for the backend ",
        backend(), ", got ", like.device());
  call.shape = like.shape();
  call.is.dtype = like.dtype();
  call.is.numel = like.numel();
  call.is.shape_hash = hash_of(like.shape());
  return call;
}

namespace {

void check_reduction(Call& call, ReduceOp op) {
  check(op != ReduceOp::avg || is_floating(call.is.dtype), name_of(call.is.kind),
        ": avg must be of a floating dtype, got ", call.is.dtype);
  call.is.op = op;
}

void check_root(Call& call, int root, int size) {
  check(root >= 0 && root < size, name_of(call.is.kind), ": root must be 0 to ", size - 1, ", got ",
        root);
  call.is.root = root;
}

// `whole` must hold `size` times `part`, with or without a dimension of its own for that.
void check_whole(CallKind kind, const char* what, const Tensor& whole, const Tensor& part,
                 int size) {
  check(whole.defined(), name_of(kind), ": ", what, " must be defined, got an undefined one");
  check(whole.dtype() == part.dtype() && whole.device() == part.device(), name_of(kind), ": ", what,
        " must be ", part.dtype(), " on ", part.device(), ", got ", whole.dtype(), " on ",
        whole.device());
  Shape joined = part.shape();
  if (joined.empty())
    joined.push_back(size);
  else
    joined[0] *= size;
  if (whole.shape() == joined) return;
  check(part.shape().size() < static_cast<size_t>(kMaxRank), name_of(kind), ": ", what,
        " must have shape ", joined, ", got ", whole.shape());
  Shape stacked{size};
  for (int64_t s : part.shape()) stacked.push_back(s);
  check(whole.shape() == stacked, name_of(kind), ": ", what, " must have shape ", stacked, " or ",
        joined, ", got ", whole.shape());
}

}  // namespace

Work ProcessGroup::all_reduce(const Tensor& t, ReduceOp op, const ReduceOptions& options) {
  Call call = make(CallKind::all_reduce, t, options);
  check_reduction(call, op);
  call.input = call.output = t;
  if (options.zeros != nullptr && !options.zeros->empty()) {
    check(
        t.is_contiguous() && is_floating(t.dtype()) && (op == ReduceOp::sum || op == ReduceOp::avg),
        "all_reduce: zeros must come with a contiguous floating tensor and sum or avg, got ",
        t.dtype(), " ", t.shape(), " and ", op);
    check(options.zeros->front().begin >= 0 && options.zeros->back().end <= t.numel(),
          "all_reduce: zeros must lie within the tensor's ", t.numel(), " elements, got [",
          options.zeros->front().begin, ", ", options.zeros->back().end, ")");
    call.zeros = *options.zeros;
  }
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::reduce(const Tensor& t, int root, ReduceOp op, const CallOptions& options) {
  Call call = make(CallKind::reduce, t, options);
  check_reduction(call, op);
  check_root(call, root, size());
  call.input = call.output = t;
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::reduce_scatter(const Tensor& output, const Tensor& input, ReduceOp op,
                                  const CallOptions& options) {
  Call call = make(CallKind::reduce_scatter, output, options);
  check_reduction(call, op);
  check_whole(call.is.kind, "input", input, output, size());
  call.input = input;
  call.output = output;
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::all_gather(const Tensor& output, const Tensor& input,
                              const CallOptions& options) {
  Call call = make(CallKind::all_gather, input, options);
  check_whole(call.is.kind, "output", output, input, size());
  call.input = input;
  call.output = output;
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::broadcast(const Tensor& t, int root, const CallOptions& options) {
  Call call = make(CallKind::broadcast, t, options);
  check_root(call, root, size());
  call.input = call.output = t;
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::scatter(const Tensor& output, const Tensor& input, int root,
                           const CallOptions& options) {
  Call call = make(CallKind::scatter, output, options);
  check_root(call, root, size());
  if (rank() == root) {
    check_whole(call.is.kind, "input", input, output, size());
    call.input = input;
  }
  call.output = output;
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::gather(const Tensor& output, const Tensor& input, int root,
                          const CallOptions& options) {
  Call call = make(CallKind::gather, input, options);
  check_root(call, root, size());
  if (rank() == root) {
    check_whole(call.is.kind, "output", output, input, size());
    call.output = output;
  }
  call.input = input;
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::all_to_all(const Tensor& output, const Tensor& input,
                              const CallOptions& options) {
  Call call = make(CallKind::all_to_all, input, options);
  check(input.dim() >= 1 && input.size(0) % size() == 0,
        "all_to_all: input's first size must be a multiple of the ", size(), " ranks, got shape ",
        input.shape());
  check(output.defined() && output.shape() == input.shape() && output.dtype() == input.dtype() &&
            output.device() == input.device(),
        "all_to_all: output must have the input's shape, dtype and device");
  check(input.numel() == 0 || output.storage() != input.storage(),
        "all_to_all: output must have memory of its own, got the input's");
  call.input = input;
  call.output = output;
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::send(const Tensor& t, int to, const CallOptions& options) {
  Call call = make(CallKind::send, t, options);
  check(to >= 0 && to < size() && to != rank(), "send: the receiver must be another rank below ",
        size(), ", got ", to);
  call.peer = to;
  call.input = t;
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::recv(const Tensor& t, int from, const CallOptions& options) {
  Call call = make(CallKind::recv, t, options);
  check(from >= 0 && from < size() && from != rank(),
        "recv: the sender must be another rank below ", size(), ", got ", from);
  call.peer = from;
  call.output = t;
  return number_and_submit(std::move(call), options);
}

Work ProcessGroup::barrier(const CallOptions& options) {
  return number_and_submit(make(CallKind::barrier, {}, options), options);
}

Work ProcessGroup::number_and_submit(Call call, const CallOptions& options) {
  check_process();
  // Where the backend's layout is not the caller's, it works on copies.
  const bool in_place =
      call.input.defined() && call.output.defined() && call.input.same_as(call.output);
  const Tensor result = call.output;
  if (call.input.defined()) call.input = raw::contiguous(call.input);
  if (in_place)
    call.output = call.input;
  else if (result.defined() && !result.is_contiguous())
    call.output = empty(result.shape(), {result.dtype(), result.device()});
  const bool copied = result.defined() && !call.output.same_as(result);
  const Tensor made = call.output;

  Work work;
  {
    const std::lock_guard lock(order_);
    const auto peer = static_cast<size_t>(std::max(call.peer, 0));
    call.is.sequence = call.is.kind == CallKind::send   ? sent_[peer]++
                       : call.is.kind == CallKind::recv ? received_[peer]++
                                                        : next_++;
    call.deadline = Deadline(call.timeout);
    work = submit(std::move(call), options.async_op);
  }
  // Outside of the lock, so that others can ask for calls meanwhile.
  if (!options.async_op) {
    work.wait();
    if (copied) raw::copy_(result, made);
  } else if (copied) {
    work = Work(std::make_shared<CopiedBack>(std::move(work), result, made));
  }
  if (result.defined()) result.bump_version("collective");
  return work;
}

std::optional<GroupOptions> ProcessGroup::sub_options(const std::vector<int>& ranks,
                                                      const std::string& name) const {
  check_process();
  check(!ranks.empty() && !name.empty(), "subgroup: it must have ranks and a name, got ",
        ranks.size(), " ranks and '", name, "'");
  for (size_t i = 0; i < ranks.size(); ++i) {
    check(ranks[i] >= 0 && ranks[i] < size(), "subgroup: ranks must be 0 to ", size() - 1, ", got ",
          ranks[i]);
    check(std::find(ranks.begin(), ranks.begin() + static_cast<int64_t>(i), ranks[i]) ==
              ranks.begin() + static_cast<int64_t>(i),
          "subgroup: ranks must differ, got ", ranks[i], " twice");
  }
  const auto own = std::find(ranks.begin(), ranks.end(), rank());
  if (own == ranks.end()) return std::nullopt;
  GroupOptions sub = options_;
  sub.rank_names.clear();  // its user counts from 0
  sub.rank = static_cast<int>(own - ranks.begin());
  sub.size = static_cast<int>(ranks.size());
  sub.name = cat(options_.name, "/", name);
  return sub;
}

Tensor ProcessGroup::shared_tensor(int64_t numel, DType dtype) {
  check_process();
  return zeros({numel}, {dtype, device()});
}

void ProcessGroup::watch(const std::string&, Milliseconds, const std::function<void()>& launch) {
  launch();
}

}  // namespace cairn::dist
