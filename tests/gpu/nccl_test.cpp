// A group over NCCL with one rank on a real device: what every collective does to a tensor, eager
// and captured. Invariant: the expected values are those of a group of one.
#include "cairn/dist/nccl.h"

#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/factory.h"
#include "tests/gpu/helpers.h"

using namespace cairn;
using namespace cairn::dist;
using namespace cairn::test;

namespace {

bool skipped() {
  if (nccl_missing().empty()) return false;
  WARN("skipped: " << nccl_missing());
  return true;
}

}  // namespace

TEST_CASE("gpu: a group over NCCL gives tensors of every dtype back") {
  if (skipped()) return;
  const auto group = nccl_group({}, kGpu);
  const std::vector<double> expected = {1, 2, 3, 4, 5, 6};
  for (DType dtype :
       {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8}) {
    INFO(name_of(dtype));
    const Tensor t = raw::to(arange(1, 7, 1), dtype, kGpu);
    group->all_reduce(t);
    group->all_reduce(t, ReduceOp::max);
    group->reduce(t, 0, ReduceOp::prod);
    group->broadcast(t, 0);
    CHECK(values_of(t) == expected);
    const Tensor out = zeros({6}, {dtype, kGpu}), part = zeros({6}, {dtype, kGpu});
    group->all_gather(out, t);
    group->reduce_scatter(part, out);
    CHECK(values_of(part) == expected);
    const Tensor swapped = zeros({1, 6}, {dtype, kGpu});
    group->all_to_all(swapped, raw::view(t, {1, 6}));
    CHECK(values_of(swapped) == expected);
  }
  group->barrier();
}

TEST_CASE("gpu: collectives over NCCL replay with a captured graph") {
  if (skipped()) return;
  const auto group = nccl_group({}, kGpu);
  const Tensor in = zeros({1000}, {DType::f32, kGpu}), out = zeros({1000}, {DType::f32, kGpu});
  group->all_gather(out, in);  // NCCL makes its connections outside of the capture
  cuda::synchronize(kGpu);
  Capture capture(kGpu);
  group->all_gather(out, in, {.async_op = true}).wait();
  CapturedGraph graph = capture.finish();
  for (int i = 1; i < 4; ++i) {
    raw::fill_(in, i);
    graph.launch();
    CHECK(values_of(out) == std::vector<double>(1000, i));
  }
}
