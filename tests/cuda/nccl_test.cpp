// The group over NCCL with one rank: every collective, capture, errors and time-outs.
#include <chrono>
#include <thread>

#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "tests/cuda/nccl_ranks.h"
#include "tests/cuda/on_device.h"

using namespace cairn;
using namespace cairn::dist;
using namespace cairn::on_device;
using Catch::Matchers::Contains;
using test::WithFakeNccl;

namespace {

Tensor numbers(const Shape& shape, DType dtype = DType::f32) {
  int64_t numel = 1;
  for (int64_t size : shape) numel *= size;
  return raw::to(raw::view(arange(1, 1 + static_cast<double>(numel), 1), shape), dtype, kGpu);
}

// What the group throws, as soon as it does.
std::string broken(ProcessGroup& group, const Tensor& t) {
  for (int i = 0; i < 500; ++i) {
    try {
      group.all_reduce(t);
    } catch (const CommError& error) {
      return error.what();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return "";
}

// The watchdog aborts a broken communicator at once, and on its own.
bool aborted_once() {
  for (int i = 0; i < 5000 && emulator::nccl_log().aborted == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return emulator::nccl_log().aborted == 1;
}

}  // namespace

TEST_CASE("cuda: a group over NCCL gives tensors of every dtype back") {
  const WithFakeNccl fake;
  const auto group = nccl_group({}, kGpu);
  CHECK(group->backend() == "nccl");
  CHECK(group->device() == kGpu);
  for (DType dtype :
       {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8}) {
    INFO(name_of(dtype));
    const Tensor t = numbers({3, 4}, dtype);
    const Tensor before = raw::clone(t);
    group->all_reduce(t);
    group->reduce(t, 0, ReduceOp::max);
    group->broadcast(t, 0);
    CHECK(same_bits(t, before));
    for (const bool joined : {false, true}) {
      const Shape whole = joined ? Shape{3, 4} : Shape{1, 3, 4};
      const Tensor out = zeros(whole, {dtype, kGpu});
      group->all_gather(out, t);
      CHECK(same_bits(raw::view(out, {3, 4}), t));
      const Tensor gathered = zeros(whole, {dtype, kGpu});
      group->gather(gathered, t, 0);
      CHECK(same_bits(raw::view(gathered, {3, 4}), t));
      const Tensor part = zeros({3, 4}, {dtype, kGpu});
      group->reduce_scatter(part, out);
      CHECK(same_bits(part, t));
      const Tensor scattered = zeros({3, 4}, {dtype, kGpu});
      group->scatter(scattered, out, 0);
      CHECK(same_bits(scattered, t));
    }
    const Tensor swapped = zeros({3, 4}, {dtype, kGpu});
    group->all_to_all(swapped, t);
    CHECK(same_bits(swapped, t));
  }
}

TEST_CASE(
    "cuda: a collective over NCCL comes after what the stream was given and before the rest") {
  const WithFakeNccl fake;
  const auto group = nccl_group({}, kGpu);
  const Tensor t = zeros({1000}, {DType::f32, kGpu});
  const Tensor out = zeros({1000}, {DType::f32, kGpu});
  const int64_t waits = cairn::cuda::waits();
  raw::fill_(t, 3);
  const Work work = group->all_gather(out, t, {.async_op = true});
  CHECK(!work.is_completed());  // nothing runs before somebody waits for the device
  work.wait();                  // orders the streams, and no more
  const Tensor copy = raw::clone(out);
  CHECK(cairn::cuda::waits() == waits);
  CHECK(raw::select(copy, 0, 999).item() == 3);
  CHECK(work.is_completed());
}

TEST_CASE("cuda: collectives over NCCL are part of a captured graph") {
  const WithFakeNccl fake;
  const auto group = nccl_group({}, kGpu);
  const Tensor in = zeros({8}, {DType::f32, kGpu});
  const Tensor out = zeros({8}, {DType::f32, kGpu});
  const Tensor last = zeros({8}, {DType::f32, kGpu});
  Capture capture(kGpu);
  const Work first = group->all_gather(out, in, {.async_op = true});
  first.wait();
  raw::copy_(last, out);
  CHECK_THROWS_WITH(group->barrier(), Contains("a captured step must not"));
  CapturedGraph graph = capture.finish();
  CHECK(emulator::nccl_log().ran == 0);
  for (int i = 1; i < 4; ++i) {
    raw::fill_(in, i);
    graph.launch();
    CHECK(raw::select(last, 0, 7).item() == i);
  }
  CHECK(emulator::nccl_log().ran == 3);
}

TEST_CASE("cuda: a captured collective that nobody waits for is refused") {
  const WithFakeNccl fake;
  const auto group = nccl_group({}, kGpu);
  const Tensor t = zeros({8}, {DType::f32, kGpu});
  Capture capture(kGpu);
  group->all_reduce(t, ReduceOp::sum, {{.async_op = true}});
  CHECK_THROWS_WITH(capture.finish(), Contains("Unjoined"));
}

TEST_CASE("cuda: a lost communicator is an error of every call, and aborted once") {
  const WithFakeNccl fake;
  const Tensor t = zeros({8}, {DType::f32, kGpu});
  {
    const auto group = nccl_group({}, kGpu);
    const Work work = group->all_reduce(t, ReduceOp::sum, {{.async_op = true}});
    emulator::set_nccl_state(ncclRemoteError);
    CHECK_THAT(broken(*group, t),
               Contains("rank 0 of 1 lost the communicator") && Contains("as the test wanted"));
    CHECK_THROWS_AS(work.wait(), CommError);
    CHECK(work.is_completed());
    CHECK(aborted_once());
  }
  CHECK(emulator::nccl_log().aborted == 1);
  CHECK(emulator::nccl_log().live == 0);
}

TEST_CASE("cuda: a collective that does not end on the GPU is a time-out with the last ones") {
  const WithFakeNccl fake;
  const Tensor t = zeros({8}, {DType::f32, kGpu});
  cairn::cuda::synchronize(kGpu);
  const auto group = nccl_group({.timeout = Milliseconds(200)}, kGpu);
  cairn::cuda::synchronize(kGpu);
  group->all_reduce(t, ReduceOp::sum, {{.async_op = true}});
  // Its time counts from its beginning on the device, which is the second piece of work there.
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  group->all_reduce(t, ReduceOp::sum, {{.async_op = true}});
  emulator::advance(2);
  CHECK_THAT(broken(*group, t),
             Contains("all_reduce #0 (sum) of f32 [8]: rank 0 of 1 must be done within 200 ms") &&
                 Contains("all_reduce #1 (sum) of f32 [8]: waits since"));
  CHECK(aborted_once());
}

TEST_CASE("cuda: a closed group over NCCL frees its communicator") {
  const WithFakeNccl fake;
  {
    const auto group = nccl_group({}, kGpu);
    const Tensor t = numbers({4});
    group->all_reduce(t);
    group->barrier();
    const auto sub = group->subgroup({0}, "part");
    CHECK(sub->name() == "world/part");
    sub->all_reduce(t);
    CHECK(emulator::nccl_log().live == 2);
    cairn::cuda::synchronize(kGpu);
  }
  CHECK(emulator::nccl_log().live == 0);
  CHECK(emulator::nccl_log().aborted == 0);
}

TEST_CASE("cuda: NCCL takes tensors of its own GPU alone") {
  const WithFakeNccl fake;
  const auto group = nccl_group({}, kGpu);
  CHECK_THROWS_WITH(group->all_reduce(zeros({2}, {DType::f32})), Contains("must be on cuda"));
  CHECK_THROWS_WITH(nccl_group({}, kCPU), "nccl: device must be a GPU, got cpu");
}
