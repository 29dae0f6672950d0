// The device layer on a real device: copies, memory, waits, errors found by kernels, capture.
// Invariant: only public headers are used, so that what these tests see is what a program sees.
#include <algorithm>
#include <functional>
#include <thread>

#include "cairn/tensor/allocator.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/gpu/helpers.h"

using namespace cairn;
using namespace cairn::test;

TEST_CASE("gpu: the device says what it is") {
  const cuda::DeviceProperties p = cuda::properties(kGpu);
  CHECK(!p.name.empty());
  CHECK(p.major >= 7);
  CHECK(p.multiprocessors > 0);
  CHECK(p.memory > (int64_t{1} << 30));
  CHECK(cuda::unavailable().empty());
  CHECK(cuda::driver_version() >= cuda::runtime_version() / 1000 * 1000);
  CHECK_THROWS_AS(cuda::properties(Device(DeviceType::cuda, cuda::device_count())), Error);
}

TEST_CASE("gpu: copies there, between layouts and dtypes, and back") {
  const Tensor host = raw::view(arange(0, 6 * 7 * 8 * 9, 1, {DType::f32}), {6, 7, 8, 9});
  for (DType dtype :
       {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32, DType::u8, DType::boolean}) {
    INFO(name_of(dtype));
    const Tensor here = raw::to(raw::slice(host, 0, 0, dtype == DType::u8 ? 1 : 6), dtype);
    const Tensor there = raw::to(here, dtype, kGpu);
    CHECK(there.device() == kGpu);
    CHECK(values_of(there) == values_of(here));
    CHECK(values_of(raw::channels_last(there)) == values_of(here));
    CHECK(values_of(raw::contiguous(raw::transpose(there, 1, 3))) ==
          values_of(raw::transpose(here, 1, 3)));
    CHECK(values_of(raw::slice(there, 3, 1, 9, 2)) == values_of(raw::slice(here, 3, 1, 9, 2)));
    CHECK(values_of(raw::to(there, DType::bf16)) == values_of(raw::to(here, DType::bf16)));
  }
}

TEST_CASE("gpu: a large copy from pageable memory arrives whole") {
  const Tensor host = arange(0, 40 << 20, 1, {DType::i32});  // 160 MiB: more than any staging block
  const Tensor back = raw::to(raw::to(host, DType::i32, kGpu), DType::i32, kCPU);
  CHECK(
      std::equal(host.data<int32_t>(), host.data<int32_t>() + host.numel(), back.data<int32_t>()));
}

TEST_CASE("gpu: nothing waits until a value is asked for") {
  const Tensor host = arange(0, 1000, 1, {DType::f32});
  raw::to(host, DType::f32, kGpu);  // the first copy may set up what all later ones use
  const int64_t before = cuda::waits();
  const Tensor a = raw::to(host, DType::f32, kGpu);
  const Tensor b = raw::clone(a);
  raw::fill_(a, 3);
  CHECK(cuda::waits() == before);
  CHECK(raw::select(b, 0, 999).item() == 999);
  CHECK(cuda::waits() == before + 1);
}

TEST_CASE("gpu: freed memory is used again, and its lack is told") {
  { const Tensor t = empty({1 << 20}, {DType::f32, kGpu}); }
  const MemoryStats start = memory_stats(kGpu);
  for (int i = 0; i < 10; ++i) const Tensor t = empty({1 << 20}, {DType::f32, kGpu});
  const MemoryStats end = memory_stats(kGpu);
  CHECK(end.system_allocations == start.system_allocations);
  CHECK(end.allocated == start.allocated);

  const int64_t floats = cuda::properties(kGpu).memory / 4;
  const std::string text = error_of([&] { empty({2 * floats}, {DType::f32, kGpu}); });
  INFO(text);
  CHECK(text.find("allocate: cuda:0 must have ") == 0);
  CHECK(text.find(" free of ") != std::string::npos);
  CHECK(values_of(raw::to(tensor({1.f, 2.f}), DType::f32, kGpu)) == std::vector<double>{1, 2});
}

TEST_CASE("gpu: memory freed by one thread is safe to use in another") {
  const Tensor total = zeros({1 << 20}, {DType::f64, kGpu});
  std::vector<std::thread> threads;
  std::vector<double> seen(4);
  for (size_t i = 0; i < seen.size(); ++i)
    threads.emplace_back([&, i] {
      for (int k = 0; k < 50; ++k) {
        const Tensor t = full({1 << 18}, static_cast<double>(i), {DType::f32, kGpu});
        const Tensor u = raw::clone(t);
        if (k == 49) seen[i] = raw::select(u, 0, (1 << 18) - 1).item();
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(seen == std::vector<double>{0, 1, 2, 3});
}

TEST_CASE("gpu: a captured stretch is replayed with its memory and nothing else") {
  const Tensor x = zeros({1000}, {DType::f32, kGpu});
  const Tensor total = zeros({1000}, {DType::f64, kGpu});
  Capture capture(kGpu);
  const Tensor wide = raw::to(x, DType::f64);
  raw::copy_(total, wide);
  CapturedGraph graph = capture.finish();
  CHECK(graph.nodes() >= 2);
  raw::fill_(x, 7);
  CHECK(raw::select(total, 0, 5).item() == 0);
  graph.launch();
  const Tensor other = full({1000}, 1, {DType::f64, kGpu});  // must not land in the graph's memory
  CHECK(raw::select(total, 0, 5).item() == 7);
  raw::fill_(x, 8);
  graph.launch();
  CHECK(raw::select(total, 0, 999).item() == 8);
  CHECK(raw::select(other, 0, 999).item() == 1);
}

TEST_CASE("gpu: random draws go on from launch to launch as without a graph") {
  Generator eager(5), captured(5);
  const Tensor a = empty({3, 1001}, {DType::f32, kGpu}), b = empty({3, 1001}, {DType::f32, kGpu});
  std::vector<std::vector<double>> wanted, got;
  for (int i = 0; i < 3; ++i) {
    uniform_(a, 0, 1, eager);
    wanted.push_back(values_of(a));
  }
  Capture capture(kGpu, captured);
  uniform_(b, 0, 1, captured);
  CapturedGraph graph = capture.finish();
  for (int i = 0; i < 3; ++i) {
    graph.launch();
    got.push_back(values_of(b));
  }
  CHECK(got == wanted);
  CHECK(wanted[0] != wanted[1]);
}

TEST_CASE("gpu: what cannot be captured says so and leaves the device usable") {
  const Tensor x = ones({4}, {DType::f32, kGpu});
  {
    Capture capture(kGpu);
    CHECK(error_of([&] { raw::select(x, 0, 0).item(); }).find("copy_: a captured step must not") ==
          0);
    CHECK(error_of([&] {
            raw::to(ones({4}), DType::f32, kGpu);
          }).find("copy_: a captured step must not") == 0);
  }
  CHECK(raw::select(x, 0, 3).item() == 1);
}
