// The group over NCCL with several ranks: the contract, streams, graphs, subgroups, and ranks that
// do not come.
#include "tests/cuda/nccl_ranks.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "cairn/tensor/capture.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

namespace cairn::test {
namespace {

using namespace dist;
using Catch::Matchers::Contains;
using Clock = std::chrono::steady_clock;

// A group of the host's tensors that works on copies on the GPU, so that the contract can ask it.
class OnGpu final : public ProcessGroup {
 public:
  explicit OnGpu(std::shared_ptr<ProcessGroup> inner)
      : ProcessGroup(inner->options()), inner_(std::move(inner)) {}
  ~OnGpu() override { cairn::cuda::synchronize(inner_->device()); }

  std::string_view backend() const override { return inner_->backend(); }
  std::shared_ptr<ProcessGroup> subgroup(const std::vector<int>&, const std::string&) override {
    return nullptr;
  }
  void abort(const std::string& why) noexcept override { inner_->abort(why); }

 private:
  struct Back : WorkState {
    bool is_completed() override { return copied || work.is_completed(); }
    void wait() override {
      work.wait();
      if (!copied && host.defined()) raw::copy_(host, there);
      copied = true;
      work.wait();
    }
    Work work;
    Tensor host, there;
    bool copied = false;
  };

  Work submit(Call call, bool) override {
    const auto there = [&](const Tensor& t) {
      return t.defined() ? raw::to(t, t.dtype(), inner_->device()) : Tensor();
    };
    const bool in_place = call.output.defined() && call.output.same_as(call.input);
    const Tensor in = there(call.input);
    const Tensor out = in_place ? in : there(call.output);
    const auto back = std::make_shared<Back>();
    back->host = call.output;
    back->there = out;
    back->work = ask(call, in, out, {.async_op = true, .timeout = call.timeout});
    return Work(back);
  }

  Work ask(const Call& call, const Tensor& in, const Tensor& out, const CallOptions& how) {
    const ReduceOp op = call.is.op;
    switch (call.is.kind) {
      case CallKind::all_reduce:
        return inner_->all_reduce(out, op, {how});
      case CallKind::reduce:
        return inner_->reduce(out, call.is.root, op, how);
      case CallKind::reduce_scatter:
        return inner_->reduce_scatter(out, in, op, how);
      case CallKind::all_gather:
        return inner_->all_gather(out, in, how);
      case CallKind::broadcast:
        return inner_->broadcast(out, call.is.root, how);
      case CallKind::scatter:
        return inner_->scatter(out, in, call.is.root, how);
      case CallKind::gather:
        return inner_->gather(out, in, call.is.root, how);
      case CallKind::all_to_all:
        return inner_->all_to_all(out, in, how);
      case CallKind::send:
        return inner_->send(in, call.peer, how);
      case CallKind::recv:
        return inner_->recv(out, call.peer, how);
      case CallKind::barrier:
        return inner_->barrier(how);
    }
    return {};
  }

  std::shared_ptr<ProcessGroup> inner_;
};

std::shared_ptr<ProcessGroup> host_view(GroupOptions options) {
  return std::make_shared<OnGpu>(nccl_rank(std::move(options)));
}

Tensor filled(ProcessGroup& group, int64_t numel, double value) {
  return full({numel}, value, {DType::f32, group.device()});
}
double value_of(const Tensor& t, int64_t at = 0) { return raw::select(t, 0, at).item(); }

// Threads that wait for each other.
struct Signal {
  void set() { on = true; }
  void wait() const {
    for (int i = 0; i < 60000 && !on; ++i) std::this_thread::sleep_for(Milliseconds(1));
    check(on, "signal: it must come within a minute");
  }
  std::atomic<bool> on = false;
};

template <class Fn>
std::string error_of(Fn&& fn) {
  try {
    fn();
  } catch (const CommError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("cuda: nccl ranks: the collectives' contract") {
  const WithFakeNccl fake;
  for (const int size : {2, 3}) {
    INFO(size << " ranks");
    check_reductions(host_view, size);
    check_moves(host_view, size);
    check_same_bits(host_view, size);
    check_zeros(host_view, size);
    check_async(host_view, size);
  }
  CHECK(emulator::nccl_log().live == 0);
  CHECK(emulator::nccl_log().aborted == 0);
}

TEST_CASE("cuda: nccl ranks: a call waits for its peers on the device, not on the host") {
  const WithFakeNccl fake;
  Signal asked, read;
  run_ranks(nccl_rank, 2, [&](ProcessGroup& group) {
    const Tensor t = filled(group, 1000, 0);
    raw::fill_(t, group.rank() + 1);
    if (group.rank() == 1) asked.wait();
    group.all_reduce(t);
    const Tensor twice = zeros({1000}, {DType::f32, group.device()});
    raw::copy_(twice, t);
    if (group.rank() == 0) {
      asked.set();
      check(value_of(twice, 999) == 3, "the sum must be 3, got ", value_of(twice, 999));
      read.set();
    } else {
      read.wait();  // on the host, while the other one waits for this one's device
      check(value_of(twice, 999) == 3, "the sum must be 3, got ", value_of(twice, 999));
    }
  });
}

TEST_CASE("cuda: nccl ranks: collectives in graphs, launched again and again") {
  const WithFakeNccl fake;
  for (const int size : {2, 3})
    run_ranks(nccl_rank, size, [&](ProcessGroup& group) {
      const TensorOptions options{DType::f32, group.device()};
      const Tensor in = zeros({4}, options), sum = zeros({4}, options);
      const Tensor all = zeros({size, 4}, options), swapped = zeros({size, 4}, options);
      group.barrier();
      CapturedGraph graph;
      {
        Capture capture(group.device());
        raw::copy_(sum, in);
        const Work reducing = group.all_reduce(sum, ReduceOp::sum, {{.async_op = true}});
        group.all_gather(all, in);
        reducing.wait();
        group.all_to_all(swapped, all);
        graph = capture.finish();
      }
      for (int k = 0; k < 30; ++k) {
        raw::fill_(in, group.rank() + 10 * k);
        graph.launch();
        // A call outside of the graph, between launches, now and then.
        if (k % 7 == 3) group.all_reduce(sum, ReduceOp::avg);
        if (k % 10 != 9) continue;
        const double expected = size * (size - 1) / 2.0 + 10.0 * k * size;
        check(value_of(sum) == expected, "launch ", k, ": the sum must be ", expected, ", got ",
              value_of(sum));
        for (int r = 0; r < size; ++r) {
          const Tensor got = raw::select(all, 0, r), mine = raw::select(swapped, 0, r);
          check(value_of(got) == r + 10 * k, "launch ", k, ": part ", r, " must be of rank ", r);
          check(value_of(mine) == group.rank() + 10 * k, "launch ", k, ": part ", r,
                " of the exchange must be this rank's number");
        }
      }
      cairn::cuda::synchronize(group.device());
    });
  CHECK(emulator::nccl_log().live == 0);
  CHECK(emulator::nccl_log().aborted == 0);
}

TEST_CASE("cuda: nccl ranks: subgroups") {
  const WithFakeNccl fake;
  run_ranks(nccl_rank, 3, [&](ProcessGroup& group) {
    const auto outer = group.subgroup({2, 0}, "outer");
    check((outer == nullptr) == (group.rank() == 1), "only members get a group");
    const Tensor t = filled(group, 3, group.rank());
    if (outer) {
      check(outer->device() == group.device() && outer->rank() == (group.rank() == 2 ? 0 : 1),
            "the ranks' order must be the list's");
      outer->broadcast(t, 0);
      check(value_of(t) == 2, "broadcast in a subgroup: must be 2, got ", value_of(t));
    }
    group.all_reduce(t);
    check(value_of(t) == 5, "after it the sum must be 5, got ", value_of(t));
  });
}

namespace {

// What each of three ranks hears when the last one does not take part in the others' sum.
std::vector<std::string> errors_without(const RankBody& last) {
  return errors_of_ranks(
      nccl_rank, 3,
      [&](ProcessGroup& group) {
        const Tensor t = filled(group, 8, 1);
        group.barrier();
        if (group.rank() == 2) return last(group);
        group.all_reduce(t);
        cairn::cuda::synchronize(group.device());  // ends, with whatever it left
        group.barrier();
      },
      std::chrono::seconds(60));
}

}  // namespace

TEST_CASE("cuda: nccl ranks: a rank that does not come is a time-out that names it") {
  const WithFakeNccl fake;
  Signal over;
  std::atomic<int> waiting = 2;
  const auto start = Clock::now();
  const auto errors = errors_of_ranks(
      nccl_rank, 3,
      [&](ProcessGroup& group) {
        const Tensor t = filled(group, 8, 1);
        group.barrier();
        // Those that wait leave word of their call, and take it back.
        if (group.rank() == 0) std::this_thread::sleep_for(Milliseconds(2600));
        group.all_reduce(t);
        group.barrier();
        if (group.rank() == 2) return over.wait();
        group.all_reduce(t, ReduceOp::sum, {{.timeout = Milliseconds(600)}});
        cairn::cuda::synchronize(group.device());
        if (--waiting == 0) over.set();
        group.barrier();
      },
      std::chrono::seconds(60));
  for (int r = 0; r < 2; ++r)
    CHECK_THAT(errors[static_cast<size_t>(r)],
               Contains("all_reduce #3 (sum) of f32 [8]: rank ") &&
                   Contains("waited 600 ms for rank") && Contains("2, got nothing") &&
                   !Contains("rank 2 is in") && Contains("barrier #0: done"));
  CHECK(errors[2].empty());
  CHECK(Clock::now() - start < std::chrono::seconds(30));
  CHECK(emulator::nccl_log().live == 0);
}

TEST_CASE("cuda: nccl ranks: why a rank does not come is heard long before the time is over") {
  const WithFakeNccl fake;
  const auto start = Clock::now();
  const auto with_root = [](ProcessGroup& group) {
    group.broadcast(filled(group, 8, 1), 2);
    cairn::cuda::synchronize(group.device());
    group.barrier();
  };
  const auto shorter = [](ProcessGroup& group) {
    group.all_reduce(filled(group, 7, 1));
    cairn::cuda::synchronize(group.device());
    group.barrier();
  };
  const auto leaving = [](ProcessGroup&) {};
  const auto failing = [](ProcessGroup&) { fail("bad image 7"); };
  const struct {
    RankBody last;
    std::vector<std::string> words;
  } cases[] = {
      {with_root,
       {"rank 0: all_reduce #1 (sum) of f32 [8]", "rank 2: broadcast #1 of f32 [8] with root 2"}},
      {shorter,
       {"rank 0: all_reduce #1 (sum) of f32 [8]", "rank 2: all_reduce #1 (sum) of f32 [7]"}},
      {leaving, {"rank 2 finished after 1 collectives", "waits in all_reduce #1 (sum) of f32 [8]"}},
      {failing, {"rank 2 failed with an exception after 1 collectives"}}};
  for (const auto& c : cases) {
    const auto errors = errors_without(c.last);
    for (size_t r = 0; r < 2; ++r)
      for (const std::string& word : c.words) CHECK_THAT(errors[r], Contains(word));
    if (c.words.front().find("all_reduce") != std::string::npos)
      for (const std::string& word : c.words) CHECK_THAT(errors[2], Contains(word));
  }
  CHECK(Clock::now() - start < std::chrono::seconds(40));
  CHECK(emulator::nccl_log().live == 0);
}

TEST_CASE("cuda: nccl ranks: a graph whose peer does not come ends in time, and while it lives") {
  const WithFakeNccl fake;
  Signal over;
  const auto errors = errors_of_ranks(nccl_rank, 2, [&](ProcessGroup& group) {
    const Tensor t = filled(group, 8, 1);
    group.barrier();
    if (group.rank() == 1) return over.wait();
    CapturedGraph graph;
    {
      Capture capture(group.device());
      group.all_reduce(t);
      graph = capture.finish();
    }
    group.watch("launch of a test", Milliseconds(300), [&] { graph.launch(); });
    cairn::cuda::synchronize(group.device());
    const std::string error = error_of([&] { group.all_reduce(t); });
    over.set();
    fail(error);
  });
  CHECK_THAT(errors[0], Contains("launch of a test: rank 0 of 2 must be done within 300 ms"));
  CHECK(errors[1].empty());
  CHECK(emulator::nccl_log().live == 0);
}

TEST_CASE("cuda: nccl ranks: a rank that gives up ends what waits on its device at once") {
  const WithFakeNccl fake;
  Signal given_up;
  const auto start = Clock::now();
  const auto errors = errors_of_ranks(
      nccl_rank, 2,
      [&](ProcessGroup& group) {
        const Tensor t = filled(group, 8, 1);
        group.barrier();
        if (group.rank() == 0) {
          const Work work = group.all_reduce(t, ReduceOp::sum, {{.async_op = true}});
          group.abort("its step failed");
          cairn::cuda::synchronize(group.device());
          given_up.set();
          check(work.is_completed(), "what failed must be completed");
          work.wait();
          return;
        }
        given_up.wait();
        group.all_reduce(t);
        cairn::cuda::synchronize(group.device());
        group.barrier();
      },
      std::chrono::seconds(60));
  CHECK(errors[0] == "group 'world': rank 0 of 2 gave it up: its step failed");
  CHECK_THAT(errors[1],
             Contains("rank 1 of 2 lost the communicator: group 'world': rank 0 of 2 gave "
                      "it up: its step failed"));
  CHECK(Clock::now() - start < std::chrono::seconds(30));
  CHECK(emulator::nccl_log().live == 0);
}

TEST_CASE("cuda: nccl ranks: two ranks need two GPUs") {
  const WithFakeNccl fake;
  const auto errors =
      errors_of_ranks([](GroupOptions options) { return nccl_group(std::move(options), gpu(1)); },
                      2, [](ProcessGroup&) {});
  for (const std::string& error : errors)
    CHECK(error ==
          "nccl: every rank must have a GPU of its own, got the same one for ranks 0 and 1");
}

}  // namespace cairn::test
