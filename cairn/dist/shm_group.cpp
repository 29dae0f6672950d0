// ShmGroup: collectives over a board of shared memory.
// Invariant: after a call's first step all ranks know that they are in the same call and choose the
// same way through it, so that their steps match.
#include "cairn/dist/shm_group.h"

#include <cstring>
#include <span>
#include <utility>

#include "cairn/dist/host_group.h"
#include "cairn/dist/owner.h"
#include "cairn/dist/shm_board.h"
#include "cairn/dist/shm_regions.h"
#include "cairn/dist/stretches.h"

namespace cairn::dist {
namespace {

using kernels::Part;

// Up to so many bytes a copy costs less than a second step.
constexpr int64_t kSmall = 16 << 10;
// Shards begin at multiples of so many elements, so that ranks write no cache line together.
constexpr int64_t kGrain = 256;
constexpr int kMostRanks = 1024;
// Mail is handed over in pieces, so that both ends copy at the same time.
constexpr int64_t kPiece = 16 << 10;

// Whether a rank gives one part for every rank.
bool gives_parts(CallKind kind) {
  return kind == CallKind::reduce_scatter || kind == CallKind::scatter ||
         kind == CallKind::all_to_all;
}
// Whether the root alone gives.
bool root_gives(CallKind kind) { return kind == CallKind::broadcast || kind == CallKind::scatter; }

void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (to != from && bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

// A chunk must hold something for every rank.
const GroupOptions& checked(const GroupOptions& options) {
  check(options.size <= kMostRanks, "shm: size must be at most ", kMostRanks, ", got ",
        options.size);
  return options;
}

class ShmGroup : public HostGroup {
 public:
  explicit ShmGroup(GroupOptions options)
      : HostGroup(std::move(options)),
        board_(checked(this->options()), Deadline(timeout())),
        regions_(std::make_shared<ShmRegions>()),
        calls_(static_cast<size_t>(size())),
        bases_(static_cast<size_t>(size())),
        parts_(static_cast<size_t>(size())),
        outs_(static_cast<size_t>(size())) {}

  ~ShmGroup() override {
    stop();
    board_.diagnosis().left(executed());
  }

  std::string_view backend() const override { return "shm"; }

  Tensor shared_tensor(int64_t numel, DType dtype) override {
    check_process();
    check(numel >= 0, "shared_tensor: numel must be at least 0, got ", numel);
    if (numel == 0) return ProcessGroup::shared_tensor(numel, dtype);
    return regions_->make(board_.links(), rank(), size(), numel, dtype, Deadline(timeout()));
  }

  std::shared_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks,
                                         const std::string& name) override {
    const auto sub = sub_options(ranks, name);
    return sub ? shm_group(*sub) : nullptr;
  }

 private:
  // What is under way: elements [begin, end) of each part, counted by the stretches; in the ranks'
  // tensors themselves or in their chunks.
  struct Window {
    int64_t begin, end;
    bool direct;
  };

  void run(const Call& call) override;
  void failed(const Call* call, const std::exception& error) noexcept override {
    call != nullptr ? board_.diagnosis().failed(*call, error.what())
                    : board_.diagnosis().left(executed(), error.what());
    board_.break_up(call);
  }

  // First steps.
  void announce(const Call& call);
  void compare(const Call& call);
  bool all_reach();
  void agree_on_zeros(const Call& call);
  // Ways through a call.
  void through_chunks(const Call& call);
  void through_shards(const Call& call);
  void in_place(const Call& call);
  // Their parts.
  void give(const Call& call, int64_t begin, int64_t end);
  void take(const Call& call, const Window& window);
  void take_reduced(const Call& call, const Window& window);
  const std::byte* given(const Call& call, const Window& window, int from, int part,
                         int64_t position, int64_t index) const;
  void combine(const Call& call, std::span<void* const> outs, int64_t count);
  std::pair<int64_t, int64_t> shard(int64_t count, int rank) const;
  // To and from one rank.
  void send(const Call& call);
  void recv(const Call& call);
  void put(const Call& call, const void* data, int64_t bytes);
  void fetch(const Call& call, void* data, int64_t bytes);

  std::byte* input(const Call& call, int64_t element) const {
    return static_cast<std::byte*>(call.input.raw_data()) + element * item_;
  }
  std::byte* output(const Call& call, int64_t element) const {
    return static_cast<std::byte*>(call.output.raw_data()) + element * item_;
  }

  ShmBoard board_;
  const std::shared_ptr<ShmRegions> regions_;
  // Of the running call.
  int64_t item_ = 1;  // bytes of an element
  int64_t numel_ =
      0;  // elements of a tensor, or of one of its parts where it has one for each rank
  Stretches stretches_;
  std::vector<CallNotice> calls_;
  std::vector<std::byte*> bases_;  // the ranks' inputs, where all can be reached
  std::vector<Part> parts_;
  std::vector<void*> outs_;
};

void ShmGroup::run(const Call& call) {
  const CallKind kind = call.is.kind;
  item_ = item_size(call.is.dtype);
  if (kind == CallKind::send) return send(call);
  if (kind == CallKind::recv) return recv(call);
  numel_ = kind == CallKind::all_to_all ? call.is.numel / size() : call.is.numel;
  stretches_.reset(numel_);
  const bool small = numel_ * item_ * (gives_parts(kind) ? size() : 1) <= kSmall;
  announce(call);
  if (small) give(call, 0, numel_);
  board_.meet(call);
  compare(call);
  board_.check_whole(call);
  if (numel_ == 0) return;
  if (small) return take(call, {0, numel_, false});
  if (kind == CallKind::all_reduce) agree_on_zeros(call);
  if (all_reach()) return in_place(call);
  if (kind == CallKind::all_reduce && size() > 2) return through_shards(call);
  through_chunks(call);
}

void ShmGroup::announce(const Call& call) {
  ShmNotice& notice = board_.next_notice();
  notice.call = CallNotice(call);
  notice.zeros_hash = kernels::hash_of(call.zeros);
  notice.region = 0;
  // The root of a scatter alone has an input, so the others may have let go of its region.
  if (numel_ == 0 || !call.input.defined() || call.is.kind == CallKind::scatter) return;
  const ShmRegions::Place place = regions_->find(call.input.raw_data(), call.input.nbytes());
  notice.region = place.region;
  notice.offset = place.offset;
}

void ShmGroup::compare(const Call& call) {
  for (int r = 0; r < size(); ++r) calls_[static_cast<size_t>(r)] = board_.notice(r).call;
  if (const auto text = mismatch(call, calls_, name())) throw CommError(*text);
}

// Whether every rank's input lies in the same region. Such a region is mapped on all of them.
bool ShmGroup::all_reach() {
  const uint64_t region = board_.notice(0).region;
  for (int r = 0; r < size(); ++r)
    if (region == 0 || board_.notice(r).region != region) return false;
  for (int r = 0; r < size(); ++r)
    bases_[static_cast<size_t>(r)] = regions_->part(region, r) + board_.notice(r).offset;
  return true;
}

void ShmGroup::agree_on_zeros(const Call& call) {
  if (call.zeros.empty()) return;
  for (int r = 0; r < size(); ++r)
    if (board_.notice(r).zeros_hash != board_.notice(rank()).zeros_hash) return;
  stretches_.reset(call.zeros, numel_);
}

// The last step: no tensor changes before all have read it, and written to it.
void ShmGroup::in_place(const Call& call) {
  if (call.is.kind != CallKind::all_reduce) {
    take(call, {0, numel_, true});
    return board_.step(call);
  }
  const auto [begin, end] = shard(stretches_.count(), rank());
  stretches_.walk(begin, end, [&](int64_t position, int64_t, int64_t count) {
    for (size_t r = 0; r < bases_.size(); ++r) {
      outs_[r] = bases_[r] + position * item_;
      parts_[r] = {outs_[r], call.is.dtype};
    }
    combine(call, outs_, count);
  });
  board_.step(call);
}

void ShmGroup::through_chunks(const Call& call) {
  const int64_t parts = gives_parts(call.is.kind) ? size() : 1;
  const int64_t chunk = ShmBoard::kChunk / (item_ * parts);
  for (int64_t begin = 0; begin < stretches_.count(); begin += chunk) {
    const int64_t end = std::min(begin + chunk, stretches_.count());
    give(call, begin, end);
    board_.step(call);
    take(call, {begin, end, false});
  }
}

// Each rank reduces its shard of a chunk, so that a rank reads what others wrote once, not size
// times.
void ShmGroup::through_shards(const Call& call) {
  const int64_t chunk = ShmBoard::kChunk / item_;
  for (int64_t begin = 0; begin < stretches_.count(); begin += chunk) {
    const int64_t count = std::min(chunk, stretches_.count() - begin);
    const auto [first, last] = shard(count, rank());
    std::byte* to = board_.next_chunk();
    const auto give_range = [&](int64_t from, int64_t until) {
      stretches_.walk(begin + from, begin + until, [&](int64_t position, int64_t index, int64_t n) {
        copy_bytes(to + (index - begin) * item_, input(call, position), n * item_);
      });
    };
    give_range(0, first);
    give_range(last, count);
    board_.step(call);
    to = board_.next_chunk();
    const Window window{begin, begin + count, false};
    stretches_.walk(begin + first, begin + last, [&](int64_t position, int64_t index, int64_t n) {
      for (int r = 0; r < size(); ++r)
        parts_[static_cast<size_t>(r)] = {given(call, window, r, 0, position, index),
                                          call.is.dtype};
      void* const outs[] = {output(call, position), to + (index - begin) * item_};
      combine(call, outs, n);
    });
    board_.step(call);
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      const auto [from, until] = shard(count, r);
      stretches_.walk(begin + from, begin + until, [&](int64_t position, int64_t index, int64_t n) {
        copy_bytes(output(call, position), board_.chunk(r) + (index - begin) * item_, n * item_);
      });
    }
  }
}

void ShmGroup::give(const Call& call, int64_t begin, int64_t end) {
  if (root_gives(call.is.kind) && call.is.root != rank()) return;
  if (call.is.kind == CallKind::barrier) return;
  std::byte* to = board_.next_chunk();
  const int parts = gives_parts(call.is.kind) ? size() : 1;
  for (int part = 0; part < parts; ++part) {
    stretches_.walk(begin, end, [&](int64_t position, int64_t, int64_t count) {
      copy_bytes(to, input(call, part * numel_ + position), count * item_);
      to += count * item_;
    });
  }
}

// Where what rank `from` gives to `part` lies: element `position`, counted as `index`.
const std::byte* ShmGroup::given(const Call& call, const Window& window, int from, int part,
                                 int64_t position, int64_t index) const {
  const int64_t element = part * numel_ + position;
  if (from == rank()) return input(call, element);
  if (window.direct) return bases_[static_cast<size_t>(from)] + element * item_;
  const int64_t before = part * (window.end - window.begin) + index - window.begin;
  return board_.chunk(from) + before * item_;
}

void ShmGroup::take(const Call& call, const Window& window) {
  const int64_t n = numel_, at = window.begin, bytes = (window.end - at) * item_;
  const bool is_root = call.is.root == rank();
  switch (call.is.kind) {
    case CallKind::all_reduce:
    case CallKind::reduce_scatter:
      return take_reduced(call, window);
    case CallKind::reduce:
      if (is_root) take_reduced(call, window);
      return;
    case CallKind::all_gather:
    case CallKind::gather:
      if (call.is.kind == CallKind::gather && !is_root) return;
      for (int r = 0; r < size(); ++r)
        copy_bytes(output(call, r * n + at), given(call, window, r, 0, at, at), bytes);
      return;
    case CallKind::broadcast:
      if (!is_root)
        copy_bytes(output(call, at), given(call, window, call.is.root, 0, at, at), bytes);
      return;
    case CallKind::scatter:
      return copy_bytes(output(call, at), given(call, window, call.is.root, rank(), at, at), bytes);
    case CallKind::all_to_all:
      for (int r = 0; r < size(); ++r)
        copy_bytes(output(call, r * n + at), given(call, window, r, rank(), at, at), bytes);
      return;
    case CallKind::send:
    case CallKind::recv:
    case CallKind::barrier:
      return;
  }
}

void ShmGroup::take_reduced(const Call& call, const Window& window) {
  const int part = gives_parts(call.is.kind) ? rank() : 0;
  stretches_.walk(window.begin, window.end, [&](int64_t position, int64_t index, int64_t count) {
    for (int r = 0; r < size(); ++r)
      parts_[static_cast<size_t>(r)] = {given(call, window, r, part, position, index),
                                        call.is.dtype};
    void* const out = output(call, position);
    combine(call, std::span(&out, 1), count);
  });
}

// In order of rank, whatever the way.
void ShmGroup::combine(const Call& call, std::span<void* const> outs, int64_t count) {
  const double scale = call.is.op == ReduceOp::avg ? 1.0 / size() : 1;
  kernels::combine_to_all(kCPU, outs, call.is.dtype, std::span<const Part>(parts_), count,
                          call.is.op, scale);
}

std::pair<int64_t, int64_t> ShmGroup::shard(int64_t count, int rank) const {
  const int64_t grains = (count + kGrain - 1) / kGrain;
  const auto bound = [&](int64_t r) { return std::min(count, grains * r / size() * kGrain); };
  return {bound(rank), bound(rank + 1)};
}

// A message is its notice, then its bytes.
void ShmGroup::send(const Call& call) {
  const CallNotice notice(call);
  put(call, &notice, sizeof notice);
  put(call, call.input.raw_data(), call.input.nbytes());
}

void ShmGroup::recv(const Call& call) {
  CallNotice notice;
  fetch(call, &notice, sizeof notice);
  CallShape expected = call.is;
  expected.kind = CallKind::send;
  if (!(notice.is == expected))
    throw CommError(cat(options().describe(call), ": the sender must give the same, got ",
                        describe(notice, options().name_of(rank()))));
  fetch(call, call.output.raw_data(), call.output.nbytes());
}

void ShmGroup::put(const Call& call, const void* data, int64_t bytes) {
  ShmMail& mail = board_.mail(rank(), call.peer);
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const uint32_t written = mail.written.value.load(std::memory_order_relaxed);
    const uint32_t read = mail.read.value.load(std::memory_order_acquire);
    const uint32_t room = ShmMail::kCapacity - (written - read), at = written % ShmMail::kCapacity;
    if (room == 0) {
      board_.wait_for_change(mail.read, read, call.peer, call);
      continue;
    }
    const int64_t count =
        std::min({bytes, int64_t{room}, kPiece, int64_t{ShmMail::kCapacity - at}});
    copy_bytes(mail.bytes + at, from, count);
    board_.raise(mail.written, static_cast<uint32_t>(count));
    from += count;
    bytes -= count;
  }
}

void ShmGroup::fetch(const Call& call, void* data, int64_t bytes) {
  ShmMail& mail = board_.mail(call.peer, rank());
  auto* to = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const uint32_t read = mail.read.value.load(std::memory_order_relaxed);
    const uint32_t written = mail.written.value.load(std::memory_order_acquire);
    const uint32_t at = read % ShmMail::kCapacity;
    if (written == read) {
      board_.wait_for_change(mail.written, written, call.peer, call);
      continue;
    }
    const int64_t count =
        std::min({bytes, int64_t{written - read}, int64_t{ShmMail::kCapacity - at}});
    copy_bytes(to, mail.bytes + at, count);
    board_.raise(mail.read, static_cast<uint32_t>(count));
    to += count;
    bytes -= count;
  }
}

}  // namespace

std::shared_ptr<ProcessGroup> shm_group(GroupOptions options) {
  return make_owned<ShmGroup>(std::move(options));
}

}  // namespace cairn::dist
