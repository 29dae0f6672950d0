// The collectives' contract: what every rank hears where they do not agree, come late or leave.
#include <algorithm>
#include <chrono>
#include <thread>

#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/dist/contract.h"

namespace cairn::test {

using namespace dist;

namespace {

void expect_in_all(const std::vector<std::string>& errors, const std::vector<std::string>& parts) {
  for (size_t r = 0; r < errors.size(); ++r)
    for (const std::string& part : parts)
      check(errors[r].find(part) != std::string::npos, "the error of rank ", r, " must name '",
            part, "', got '", errors[r], "'");
}

}  // namespace

void check_mismatches(const MakeGroup& make, int size) {
  const std::string last = std::to_string(size - 1);
  const auto odd = [&](const RankBody& most, const RankBody& one) {
    return errors_of_ranks(
        make, size,
        [&](ProcessGroup& group) {
          group.barrier();
          (group.rank() == size - 1 ? one : most)(group);
          group.barrier();
        },
        std::chrono::seconds(20));
  };
  const Tensor four = zeros({4}, {DType::f32});
  const auto sum = [](const Tensor& like, ReduceOp op = ReduceOp::sum) {
    return [like, op](ProcessGroup& group) { group.all_reduce(raw::clone(like), op); };
  };
  const auto from = [&](int root) {
    return [&, root](ProcessGroup& group) { group.broadcast(raw::clone(four), root); };
  };
  const std::string usual = "rank 0: all_reduce #1 (sum) of f32 [4]";
  expect_in_all(odd(sum(four), from(0)),
                {usual, "rank " + last + ": broadcast #1 of f32 [4] with root 0"});
  expect_in_all(odd(sum(four), sum(zeros({5}))),
                {usual, "rank " + last + ": all_reduce #1 (sum) of f32 [5]"});
  expect_in_all(odd(sum(four), sum(zeros({2, 2}))), {usual, "f32 [2, 2]"});
  expect_in_all(odd(sum(four), sum(zeros({4}, {DType::bf16}))), {usual, "bf16 [4]"});
  expect_in_all(odd(sum(four), sum(four, ReduceOp::max)), {usual, "all_reduce #1 (max)"});
  expect_in_all(odd(from(0), from(size - 1)), {"with root 0", "with root " + last});
  expect_in_all(odd(sum(zeros({500000})), sum(zeros({500001}))), {"f32 [500000]", "f32 [500001]"});
}

void check_silence(const MakeGroup& make, int size) {
  // The last rank comes too late.
  const auto body = [&](ProcessGroup& group) {
    group.barrier();
    const Tensor t = full({3}, 1);
    if (group.rank() == size - 1) {
      std::this_thread::sleep_for(std::chrono::seconds(2));
      group.all_reduce(t);
      return;
    }
    const auto start = std::chrono::steady_clock::now();
    try {
      group.all_reduce(t, ReduceOp::sum, {{.timeout = Milliseconds(300)}});
      fail("silence: the all_reduce must not succeed");
    } catch (const TimeoutError& error) {
      const std::string text = error.what();
      for (const std::string& part :
           {cat("all_reduce #1 (sum) of f32 [3]"), cat("rank ", group.rank()),
            cat("rank ", size - 1), std::string("barrier #0: done")})
        check(text.find(part) != std::string::npos, "silence: the error must name '", part,
              "', got '", text, "'");
    }
    const auto took = std::chrono::steady_clock::now() - start;
    check(took >= Milliseconds(290) && took < Milliseconds(1800),
          "silence: it must take 300 ms and at most a second more, got ",
          std::chrono::duration_cast<Milliseconds>(took).count(), " ms");
    // Broken from now on.
    try {
      group.barrier();
    } catch (const TimeoutError&) {
      return;
    }
    fail("silence: a broken group must stay broken");
  };
  const std::vector<std::string> errors = errors_of_ranks(make, size, body);
  for (int r = 0; r + 1 < size; ++r)
    check(errors[static_cast<size_t>(r)].empty(), "rank ", r, ": ", errors[static_cast<size_t>(r)]);
  check(!errors.back().empty(), "silence: the late rank must get an error");
}

void check_early_end(const MakeGroup& make, int size) {
  // Leaving right behind the last collective hurts nobody who is still in it.
  for (int round = 0; round < 10; ++round)
    run_ranks(make, size, [&](ProcessGroup& group) {
      const Tensor t = full({200000}, group.rank());
      group.all_reduce(t);
      if (round % 2 == 0) group.broadcast(t, 0);
      const float sum = static_cast<float>(size * (size - 1) / 2);
      check(std::all_of(t.data<float>(), t.data<float>() + t.numel(),
                        [&](float x) { return x == sum; }),
            "the last collective must be whole");
    });
  // One call less than the others.
  const auto errors = errors_of_ranks(make, size, [&](ProcessGroup& group) {
    group.barrier();
    group.barrier();
    if (group.rank() == size - 1) return;
    group.all_reduce(full({4}, 1));
  });
  check(errors.back().empty(), "the rank that ends early has no error, got ", errors.back());
  for (int r = 0; r + 1 < size; ++r) {
    const std::string& text = errors[static_cast<size_t>(r)];
    const std::string should = cat("rank ", size - 1, " finished after 2 collectives");
    check(text.find(should) != std::string::npos && text.find("all_reduce #2") != std::string::npos,
          "rank ", r, " must say '", should, "', got '", text, "'");
  }
}

}  // namespace cairn::test
