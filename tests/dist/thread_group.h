// A group whose ranks are threads of one process: the oracle that real backends are compared with.
// Invariant: the last rank to come does the work for all, in order of rank, while the others wait.
#pragma once

#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cairn/dist/host_group.h"
#include "cairn/tensor/factory.h"

namespace cairn::test {

using dist::Call;
using dist::CallKind;

class ThreadGroup final : public dist::HostGroup {
 public:
  // What the ranks of a group share.
  struct Meeting {
    explicit Meeting(int size) : calls(static_cast<size_t>(size)), left(calls.size()) {}
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<const Call*> calls;  // of those that wait
    size_t arrived = 0;
    uint64_t round = 0;
    std::string failure;  // of the round that just ended, or for ever
    bool broken = false;
    uint64_t broken_round = 0;                  // the first one that cannot be done
    std::vector<std::optional<uint64_t>> left;  // collectives done before it left
    std::map<std::string, std::shared_ptr<Meeting>> subgroups;
  };

  ThreadGroup(dist::GroupOptions options, std::shared_ptr<Meeting> meeting)
      : HostGroup(std::move(options)), meeting_(std::move(meeting)) {}
  ~ThreadGroup() override {
    stop();
    const std::lock_guard lock(meeting_->mutex);
    meeting_->left[static_cast<size_t>(rank())] = sequence();
    meeting_->changed.notify_all();
  }

  std::string_view backend() const override { return "threads"; }

  std::shared_ptr<ProcessGroup> subgroup(const std::vector<int>& ranks,
                                         const std::string& name) override {
    const auto me = std::find(ranks.begin(), ranks.end(), rank());
    if (me == ranks.end()) return nullptr;
    const std::lock_guard lock(meeting_->mutex);
    auto& meeting = meeting_->subgroups[name];
    if (!meeting) meeting = std::make_shared<Meeting>(static_cast<int>(ranks.size()));
    dist::GroupOptions sub = options();
    sub.rank = static_cast<int>(me - ranks.begin());
    sub.size = static_cast<int>(ranks.size());
    sub.name = cat(sub.name, "/", name);
    return std::make_shared<ThreadGroup>(std::move(sub), meeting);
  }

 private:
  void run(const Call& call) override {
    Meeting& m = *meeting_;
    std::unique_lock lock(m.mutex);
    if (m.broken) throw CommError(cat(describe(call), ": ", m.failure));
    m.calls[static_cast<size_t>(rank())] = &call;
    const uint64_t round = m.round;
    if (++m.arrived == m.calls.size()) {
      m.failure = do_all(m.calls);
      m.broken = !m.failure.empty();
      m.broken_round = round;
      m.arrived = 0;
      ++m.round;
      m.changed.notify_all();
    }
    while (m.round == round && !m.broken) {
      for (size_t r = 0; r < m.left.size(); ++r)
        if (m.left[r])
          fail_now(m, cat("rank ", r, " finished after ", *m.left[r], " collectives, rank ", rank(),
                          " waits in ", describe(call)));
      if (m.broken) break;
      if (m.changed.wait_until(lock, call.deadline.at()) == std::cv_status::timeout &&
          m.round == round) {
        fail_now(m, cat("no answer within ", call.timeout.count(), " ms"));
        throw dist::TimeoutError(cat(describe(call), ": ", m.failure));
      }
    }
    if (m.broken && round >= m.broken_round) throw CommError(cat(describe(call), ": ", m.failure));
  }
  void failed(const Call* call, const std::exception& error) noexcept override {
    const std::lock_guard lock(meeting_->mutex);
    const std::string who = call == nullptr ? cat("rank ", rank(), " failed: ") : "";
    if (!meeting_->broken) fail_now(*meeting_, who + error.what());
  }
  static void fail_now(Meeting& m, std::string text) {
    m.failure = std::move(text);
    m.broken = true;
    m.broken_round = m.round;
    m.changed.notify_all();
  }

  static std::byte* part(const Tensor& t, int64_t i, int64_t numel) {
    return static_cast<std::byte*>(t.raw_data()) + i * numel * item_size(t.dtype());
  }

  // parts of all ranks -> one buffer.
  static std::vector<std::byte> reduced(const std::vector<const Call*>& calls, int64_t i) {
    const Call& first = *calls[0];
    std::vector<kernels::Part> parts;
    for (const Call* c : calls)
      parts.push_back({part(c->input, i, first.is.numel), first.is.dtype});
    std::vector<std::byte> out(static_cast<size_t>(first.is.numel * item_size(first.is.dtype)));
    const bool avg = first.is.op == kernels::ReduceOp::avg;
    if (first.is.numel > 0)
      kernels::combine(kCPU, out.data(), first.is.dtype, parts, first.is.numel, first.is.op,
                       avg ? 1.0 / static_cast<double>(calls.size()) : 1.0);
    return out;
  }

  // Empty, or why it cannot be done.
  static std::string do_all(const std::vector<const Call*>& calls) {
    const Call& first = *calls[0];
    std::string list;
    bool equal = true;
    for (size_t r = 0; r < calls.size(); ++r) {
      equal &= calls[r]->is == first.is;
      list += cat(r > 0 ? "; " : "", "rank ", r, ": ", describe(*calls[r]));
    }
    if (!equal) return cat("ranks must ask for the same, got ", list);
    const int64_t n = first.is.numel;
    const auto size = static_cast<int64_t>(calls.size());
    const int64_t bytes = n * item_size(first.is.dtype);
    const auto copy = [&](const Tensor& to, int64_t i, const Tensor& from, int64_t j) {
      if (bytes > 0) std::memmove(part(to, i, n), part(from, j, n), static_cast<size_t>(bytes));
    };
    const auto root = static_cast<size_t>(std::max(first.is.root, 0));
    switch (first.is.kind) {
      case CallKind::all_reduce:
      case CallKind::reduce: {
        for (const Call* c : calls)
          if (!holds_zeros(*c)) return "zeros must hold zeros";
        const std::vector<std::byte> sum = reduced(calls, 0);
        for (size_t r = 0; r < calls.size(); ++r)
          if (bytes > 0 && (first.is.kind == CallKind::all_reduce || r == root))
            std::memcpy(calls[r]->output.raw_data(), sum.data(), sum.size());
        return {};
      }
      case CallKind::reduce_scatter: {
        std::vector<std::vector<std::byte>> sums;
        for (int64_t r = 0; r < size; ++r) sums.push_back(reduced(calls, r));
        for (size_t r = 0; r < calls.size(); ++r)
          if (bytes > 0) std::memcpy(calls[r]->output.raw_data(), sums[r].data(), sums[r].size());
        return {};
      }
      case CallKind::all_gather:
        for (const Call* to : calls)
          for (int64_t r = 0; r < size; ++r)
            copy(to->output, r, calls[static_cast<size_t>(r)]->input, 0);
        return {};
      case CallKind::broadcast:
        for (const Call* to : calls) copy(to->output, 0, calls[root]->input, 0);
        return {};
      case CallKind::scatter:
        for (int64_t r = 0; r < size; ++r)
          copy(calls[static_cast<size_t>(r)]->output, 0, calls[root]->input, r);
        return {};
      case CallKind::gather:
        for (int64_t r = 0; r < size; ++r)
          copy(calls[root]->output, r, calls[static_cast<size_t>(r)]->input, 0);
        return {};
      case CallKind::all_to_all:
        for (int64_t i = 0; i < size; ++i)
          for (int64_t j = 0; j < size; ++j)
            std::memcpy(part(calls[static_cast<size_t>(j)]->output, i, n / size),
                        part(calls[static_cast<size_t>(i)]->input, j, n / size),
                        static_cast<size_t>(bytes / size));
        return {};
      case CallKind::barrier:
        return {};
      default:
        return "threads offer no send and recv";
    }
  }
  // Whether what the rank says of its zeros is true.
  static bool holds_zeros(const Call& call) {
    const int64_t item = item_size(call.is.dtype);
    for (const kernels::ZeroRange& range : call.zeros)
      for (int64_t i = range.begin * item; i < range.end * item; ++i)
        if (static_cast<const std::byte*>(call.input.raw_data())[i] != std::byte{0}) return false;
    return true;
  }

  std::shared_ptr<Meeting> meeting_;
};

// One handle for each rank.
inline std::vector<std::shared_ptr<dist::ProcessGroup>> thread_groups(
    int size, dist::Milliseconds timeout = std::chrono::seconds(30)) {
  const auto meeting = std::make_shared<ThreadGroup::Meeting>(size);
  const auto store = dist::memory_store();
  std::vector<std::shared_ptr<dist::ProcessGroup>> groups;
  for (int r = 0; r < size; ++r)
    groups.push_back(std::make_shared<ThreadGroup>(
        dist::GroupOptions{.rank = r, .size = size, .store = store, .timeout = timeout}, meeting));
  return groups;
}

// Runs body(group) once for each rank, each on a thread of its own that lets go of the group when
// it ends. The exception that came first comes out, after all have ended.
template <class Body>
void on_ranks(int size, Body&& body, dist::Milliseconds timeout = std::chrono::seconds(30)) {
  auto groups = thread_groups(size, timeout);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (auto& handle : groups)
    threads.emplace_back([&] {
      const std::shared_ptr<dist::ProcessGroup> group = std::move(handle);
      try {
        body(group);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

// Catch's own macros are for one thread.
inline void check_on_rank(bool holds, const char* what, int line) {
  check(holds, "line ", line, ": must hold: ", what);
}
template <class Fn>
std::string error_of(Fn&& fn) {
  try {
    fn();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace cairn::test

#define RANK_CHECK(...) \
  cairn::test::check_on_rank(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __LINE__)
#define RANK_CHECK_ERROR(expression, text)                                                     \
  do {                                                                                         \
    const std::string got = cairn::test::error_of([&] { (void)(expression); });                \
    cairn::check(got.find(text) != std::string::npos, "line ", __LINE__, ": must say '", text, \
                 "', got '", got, "'");                                                        \
  } while (false)
