// The device layer over the emulated runtime: copies, memory, waits, errors, capture.
#include <cuda_runtime_api.h>

#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/cuda/device_allocator.h"
#include "cairn/tensor/cuda/runtime.h"
#include "cairn/tensor/cuda/walk.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"

using namespace cairn;

namespace {

const Device kGpu(DeviceType::cuda, 0);

bool equal(const Tensor& a, const Tensor& b) {
  const Tensor x = raw::contiguous(raw::to(a, DType::f64, kCPU));
  const Tensor y = raw::contiguous(raw::to(b, DType::f64, kCPU));
  return x.shape() == y.shape() &&
         std::equal(x.data<double>(), x.data<double>() + x.numel(), y.data<double>());
}

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("cuda: divisors divide") {
  for (int64_t d : {1, 2, 3, 5, 7, 31, 32, 33, 641, 65535, 65537, 1 << 30, 0x7fffffff}) {
    const cuda::Divisor divisor(d);
    for (int64_t n : {int64_t{0}, int64_t{1}, d - 1, d, d + 1, 2 * d - 1, 12345678l, 0x7fffffffl})
      if (n >= 0 && n < (int64_t{1} << 31))
        CHECK(divisor.quotient(static_cast<uint32_t>(n)) == static_cast<uint32_t>(n / d));
  }
}

TEST_CASE("cuda: copies there, between layouts and dtypes, and back") {
  const Tensor host = arange(0, 2 * 3 * 4 * 5, 1, {DType::f32});
  const Tensor image = raw::view(host, {2, 3, 4, 5});
  for (DType dtype :
       {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32, DType::u8, DType::boolean}) {
    INFO(name_of(dtype));
    const Tensor there = raw::to(image, dtype, kGpu);
    CHECK(there.device() == kGpu);
    CHECK(equal(there, raw::to(image, dtype)));
    CHECK(equal(raw::channels_last(there), raw::to(image, dtype)));
    CHECK(equal(raw::contiguous(raw::transpose(there, 1, 3)),
                raw::transpose(raw::to(image, dtype), 1, 3)));
    CHECK(equal(raw::to(there, DType::bf16), raw::to(raw::to(image, dtype), DType::bf16)));
    CHECK(equal(raw::slice(there, 3, 1, 5, 2), raw::slice(raw::to(image, dtype), 3, 1, 5, 2)));
  }
  const Tensor wide = empty({3, 7}, {DType::f32, kGpu});
  raw::copy_(wide, raw::to(arange(0, 7), DType::f32, kGpu));
  CHECK(equal(raw::select(wide, 0, 2), arange(0, 7)));
  raw::fill_(raw::slice(wide, 1, 2, 4), 2.5);
  CHECK(raw::select(raw::select(wide, 0, 1), 0, 3).item() == 2.5);
  CHECK(equal(zeros({0, 4}, {DType::f32, kGpu}), zeros({0, 4})));
}

TEST_CASE("cuda: nothing waits until a value is asked for") {
  const int64_t before = cuda::waits();
  const int64_t runtime_before = emulator::runtime_waits();
  const Tensor a = raw::to(arange(0, 1000), DType::f32, kGpu);
  const Tensor b = raw::clone(a);
  raw::fill_(a, 3);
  CHECK(cuda::waits() == before);
  CHECK(emulator::runtime_waits() == runtime_before);
  CHECK(raw::select(b, 0, 999).item() == 999);
  CHECK(cuda::waits() == before + 1);
  CHECK(emulator::runtime_waits() == runtime_before + 1);
}

TEST_CASE("cuda: memory is reused, limited, and its lack is told") {
  Allocator* const allocator = backend_of(DeviceType::cuda, "test").allocator(kGpu);
  allocator->release_cached();
  const MemoryStats start = allocator->stats();
  const void* first = nullptr;
  {
    const Tensor t = empty({1 << 20}, {DType::f32, kGpu});
    first = t.raw_data();
    CHECK(allocator->stats().allocated == start.allocated + (4 << 20));
  }
  CHECK(allocator->stats().allocated == start.allocated);
  const int64_t asked = allocator->stats().system_allocations;
  {
    const Tensor t = empty({1 << 20}, {DType::f32, kGpu});
    CHECK(t.raw_data() == first);
    const Tensor a = empty({1 << 18}, {DType::f32, kGpu});
    const Tensor b = empty({100}, {DType::f32, kGpu});
    const Tensor c = empty({100}, {DType::f32, kGpu});
    CHECK(static_cast<std::byte*>(c.raw_data()) == static_cast<std::byte*>(b.raw_data()) + 512);
  }
  CHECK(allocator->stats().system_allocations <= asked + 2);
  allocator->release_cached();
  CHECK(allocator->stats().cached == start.cached);

  cuda::set_memory_limit(kGpu, 64 << 20);
  const Tensor held = empty({8 << 20}, {DType::f32, kGpu});  // 32 MiB
  const std::string text = error_of([] { empty({16 << 20}, {DType::f32, kGpu}); });
  cuda::set_memory_limit(kGpu, 0);
  CHECK(text.find("allocate: cuda:0 must have 64.0 MiB for one block, got ") == 0);
  CHECK(text.find(" free of 8192.0 MiB, ") != std::string::npos);
  CHECK(text.find("under a limit of 64.0 MiB") != std::string::npos);
  CHECK(equal(raw::to(tensor({1.f, 2.f}), DType::f32, kGpu), tensor({1.f, 2.f})));

  emulator::fail_next("cudaMalloc", cudaErrorIllegalAddress);
  CHECK(error_of([] {
          empty({64 << 20}, {DType::f32, kGpu});
        }) ==
        "cudaMalloc: CUDA call must succeed, got cudaErrorIllegalAddress (IllegalAddress) on "
        "cuda:0");
}

TEST_CASE("cuda: a captured stretch is replayed with its memory and nothing else") {
  const Tensor x = zeros({100}, {DType::f32, kGpu});
  const Tensor total = zeros({100}, {DType::f64, kGpu});
  Capture capture(kGpu);
  const Tensor wide = raw::to(x, DType::f64);
  raw::copy_(total, wide);
  { const Tensor gone = raw::clone(wide); }
  CapturedGraph graph = capture.finish();
  CHECK(graph.nodes() == 3);
  raw::fill_(x, 7);
  CHECK(raw::select(total, 0, 5).item() == 0);
  graph.launch();
  const Tensor other = full({100}, 1, {DType::f64, kGpu});  // must not land in the graph's memory
  CHECK(raw::select(total, 0, 5).item() == 7);
  raw::fill_(x, 8);
  graph.launch();
  CHECK(raw::select(total, 0, 99).item() == 8);
  CHECK(raw::select(other, 0, 99).item() == 1);
}

namespace {

// Copies of x, all but its first ten elements replaced by `add`; the last of them.
Tensor chain(const Tensor& x, double add) {
  Tensor t = raw::clone(x);
  for (int i = 0; i < 4; ++i) {
    const Tensor next = empty_like(t);
    raw::fill_(next, add);
    raw::copy_(raw::slice(next, 0, 0, 10), raw::slice(t, 0, 0, 10));
    t = next;
  }
  return t;
}

int64_t held_from_driver() {
  Allocator* const allocator = backend_of(DeviceType::cuda, "test").allocator(kGpu);
  allocator->release_cached();
  return allocator->stats().allocated + allocator->stats().cached;
}

}  // namespace

TEST_CASE("cuda: graphs that share a pool take the memory of the largest") {
  constexpr int64_t kMiB = 1 << 20;
  const Tensor x = full({kMiB}, 3, {DType::f32, kGpu});  // 4 MiB; a capture runs nothing
  // A graph holds a few bytes of everybody's: their segment is there, whatever ran before.
  const Tensor small = zeros({1}, {DType::f32, kGpu});
  const int64_t before = held_from_driver();
  const auto capture = [&](double add, const GraphPool& pool) {
    Capture capture(kGpu, default_generator(), pool);
    chain(x, add);
    return capture.finish();
  };
  {
    const CapturedGraph alone = capture(1, {});
    const int64_t one = held_from_driver() - before;
    CHECK(one >= 8 * kMiB);
    const CapturedGraph other = capture(2, {});
    CHECK(held_from_driver() - before == 2 * one);
    GraphPool pool = graph_pool_handle(kGpu);
    std::vector<CapturedGraph> shared;
    for (double add : {1, 2, 3, 4}) shared.push_back(capture(add, pool));
    CHECK(held_from_driver() - before == 3 * one);
    pool = {};
    CHECK(held_from_driver() - before == 3 * one);
  }
  CHECK(held_from_driver() == before);  // the last graph gives the pool back
}

TEST_CASE("cuda: what is held, and what is kept, survives other graphs of the pool") {
  const Tensor x = full({100}, 3, {DType::f32, kGpu});
  const GraphPool pool = graph_pool_handle(kGpu);
  Tensor results[2], kept[2];
  std::vector<CapturedGraph> graphs;
  for (int i : {0, 1}) {
    Capture capture(kGpu, default_generator(), pool);
    results[i] = chain(x, 10 + i);
    kept[i] = capture.keep(results[i]);
    graphs.push_back(capture.finish());
  }
  const auto last = [](const Tensor& t) { return raw::select(t, 0, 99).item(); };
  graphs[0].launch();
  graphs[1].launch();
  CHECK(last(results[0]) == 10);  // was held when the second was captured
  CHECK(last(results[1]) == 11);
  graphs[0].launch();
  CHECK(last(kept[0]) == 10);
  CHECK(last(kept[1]) == 11);
  // The second's result lies where the first computes: that is what keep is for.
  CHECK(last(results[1]) != 11);
  graphs.clear();
  CHECK(last(kept[1]) == 11);
  CHECK(emulator::guard_violations() == 0);

  Capture capture(kGpu);
  CHECK(error_of([&] { capture.keep(ones({1})); }) == "keep: result must be on cuda:0, got cpu");
}

TEST_CASE("cuda: graphs of one pool stay on one stream") {
  const Tensor x = full({100}, 3, {DType::f32, kGpu});
  const GraphPool pool = graph_pool_handle(kGpu);
  Capture capture(kGpu, default_generator(), pool);
  chain(x, 1);
  CapturedGraph graph = capture.finish();
  {
    const cuda::OwnedStream stream = cuda::make_stream();
    const cuda::StreamScope scope(kGpu, stream.get());
    CHECK(error_of([&] { graph.launch(); }) ==
          "launch: graphs that share a pool must stay on one stream, got another");
    CHECK(error_of([&] { Capture other(kGpu, default_generator(), pool); }) ==
          "capture: graphs that share a pool must stay on one stream, got another");
  }
  graph.launch();
  CHECK(error_of([] { graph_pool_handle(kCPU); }) ==
        "capture: device must be one that captures its work, got cpu");
}

TEST_CASE("cuda: what cannot be captured says so and leaves the device usable") {
  const Tensor x = ones({4}, {DType::f32, kGpu});
  {
    Capture capture(kGpu);
    CHECK(error_of([&] { raw::select(x, 0, 0).item(); }) ==
          "copy_: a captured step must not ask for a value, which waits for the device");
    CHECK(error_of([&] { raw::to(ones({4}), DType::f32, kGpu); }) ==
          "copy_: a captured step must not copy from the host");
    CHECK_THROWS_AS(Capture(kGpu), Error);
  }
  CHECK(raw::select(x, 0, 3).item() == 1);
  CHECK(error_of([] { Capture capture(kCPU); }) ==
        "capture: device must be one that captures its work, got cpu");
}

TEST_CASE("cuda: devices that are not there") {
  CHECK(cuda::device_count() == 3);
  CHECK(error_of([] {
          zeros({1}, {DType::f32, Device("cuda:3")});
        }).find("device must be one of the 3 CUDA devices that are there, got cuda:3") !=
        std::string::npos);
  CHECK(cuda::properties(kGpu).major == 9);
  CHECK(emulator::guard_violations() == 0);
}
