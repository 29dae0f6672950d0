// The group of one, and what every group does before its backend.
#include "cairn/dist/local_group.h"

#include "cairn/autograd/ops/elementwise.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;

TEST_CASE("dist: a group of one gives every tensor back") {
  const auto group = local_group();
  const Tensor t = arange(0, 6, 1, {DType::f32});
  group->all_reduce(t).wait();
  CHECK(t.data<float>()[5] == 5);
  const Tensor parts = zeros({1, 6}, {DType::f32});
  group->all_gather(parts, t, {.async_op = true}).wait();
  CHECK(parts.data<float>()[5] == 5);
  group->barrier().wait();
  CHECK(group->sequence() == 3);
  CHECK_THAT(group->flight_record(),
             Contains("all_reduce #0 (sum) of f32 [6]: done") && Contains("barrier #2: done"));
}

TEST_CASE("dist: strided results are written where the caller wants them") {
  const auto group = local_group();
  const Tensor wide = zeros({4, 6}, {DType::f32});
  const Tensor column = raw::slice(wide, 1, 2, 3);
  group->broadcast(column, 0).wait();
  const Tensor out = raw::transpose(zeros({3, 2}, {DType::f32}), 0, 1);
  group->all_gather(raw::unsqueeze(out, 0), raw::view(arange(0, 6, 1, {DType::f32}), {2, 3}));
  CHECK(raw::contiguous(out).data<float>()[1] == 1);
  CHECK(raw::contiguous(out).data<float>()[5] == 5);
}

TEST_CASE("dist: wrong arguments are one sentence") {
  const auto group = local_group();
  const Tensor ints = arange(0, 4, 1, {DType::i64});
  CHECK_THROWS_WITH(group->all_reduce(ints, ReduceOp::avg),
                    "all_reduce: avg must be of a floating dtype, got i64");
  CHECK_THROWS_WITH(group->broadcast(ints, 1), "broadcast: root must be 0 to 0, got 1");
  CHECK_THROWS_WITH(group->all_reduce(Tensor()),
                    "all_reduce: tensor must be defined, got an undefined one");
  CHECK_THROWS_WITH(group->all_gather(zeros({3}, {DType::i64}), ints),
                    Contains("output must have shape [1, 4] or [4], got [3]"));
  // Where there is no dimension left for the ranks, the joined shape is the only one.
  const Tensor deep = full({1, 1, 1, 1, 1, 1, 1, 2}, 3), same = zeros(deep.shape());
  group->all_gather(same, deep);
  CHECK(same.data<float>()[0] == 3);
  CHECK(same.data<float>()[1] == 3);
  CHECK_THROWS_WITH(group->send(ints, 0), Contains("must be another rank"));
  CHECK_THROWS_WITH(local_group({.size = 2, .store = nullptr}), Contains("store must be given"));
}

TEST_CASE("dist: the flight recorder keeps the last 64 collectives") {
  const auto group = local_group();
  const Tensor t = zeros({1}, {DType::f32});
  for (int i = 0; i < 100; ++i) group->all_reduce(t);
  const std::string table = group->flight_record();
  CHECK(std::count(table.begin(), table.end(), '\n') == 64);
  CHECK_THAT(table, Contains("all_reduce #36 ") && !Contains("all_reduce #35 "));
}

TEST_CASE("dist: a deadline without end is far away, not past") {
  const Deadline never(Milliseconds::max());
  CHECK(!never.expired());
  CHECK(never.remaining() > std::chrono::hours(24));
  CHECK(!Deadline(Milliseconds(10)).or_in(Milliseconds::max()).expired());
  const auto group = local_group({.timeout = Milliseconds::max()});
  group->barrier();
}
