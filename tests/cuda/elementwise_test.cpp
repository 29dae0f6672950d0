// Elementwise loops, sums over broadcast dimensions, embedding, dropout and random draws on the
// emulated GPU, beyond what the op table asks.
#include <cmath>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/embedding.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/elementwise.h"
#include "cairn/kernels/embedding.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"

using namespace cairn;

namespace {

const Device kGpu(DeviceType::cuda, 0);
constexpr DType kFloating[] = {DType::f64, DType::f32, DType::bf16, DType::f16};

double largest_difference(const Tensor& a, const Tensor& b) {
  const Tensor x = raw::contiguous(raw::to(a, DType::f64, kCPU));
  const Tensor y = raw::contiguous(raw::to(b, DType::f64, kCPU));
  REQUIRE(x.shape() == y.shape());
  double most = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double d = std::abs(x.data<double>()[i] - y.data<double>()[i]);
    if (!(d <= most)) most = d;  // NaN stays
  }
  return most;
}
bool equal(const Tensor& a, const Tensor& b) { return largest_difference(a, b) == 0; }

// The distance from 1 to the next number.
double rounding(DType dtype) {
  if (dtype == DType::f64) return 0x1p-52;
  if (dtype == DType::f32) return 0x1p-23;
  return dtype == DType::bf16 ? 0x1p-7 : 0x1p-10;
}

Tensor there(const Tensor& t) { return raw::to(t, t.dtype(), kGpu); }

Tensor randn_of(const Shape& shape, DType dtype, uint64_t seed) {
  Generator generator(seed);
  return raw::to(randn(shape, {DType::f32}, generator), dtype);
}

}  // namespace

TEST_CASE("cuda: flat loops of every length and alignment") {
  NoGrad no_grad;
  for (DType dtype : kFloating) {
    const Tensor host = randn_of({6000}, dtype, 1);
    const Tensor other = randn_of({6000}, dtype, 2);
    const Tensor a = there(host), b = there(other);
    for (int64_t n : {1, 3, 8, 9, 255, 4096, 4099, 5999})
      for (int64_t begin : {0, 1}) {
        INFO(name_of(dtype) << " " << n << " from " << begin);
        const auto part = [&](const Tensor& t) { return raw::slice(t, 0, begin, begin + n); };
        CHECK(equal(add(part(a), part(b)), add(part(host), part(other))));
        CHECK(equal(relu(part(a)), relu(part(host))));
        CHECK(equal(gt(part(a), part(b)), gt(part(host), part(other))));
        // The output lies inside a larger tensor, whose rest must stay.
        const Tensor wide = there(full({6002}, 7, {dtype}));
        kernels::mul_fwd(kGpu, raw::slice(wide, 0, begin, begin + n), part(a), part(b));
        CHECK(equal(raw::slice(wide, 0, begin, begin + n), mul(part(host), part(other))));
        CHECK(equal(raw::slice(wide, 0, begin + n, 6002), full({6002 - begin - n}, 7, {dtype})));
        CHECK(equal(raw::slice(wide, 0, 0, begin), full({begin}, 7, {dtype})));
      }
  }
}

TEST_CASE("cuda: operands that broadcast, by vectors and one by one") {
  NoGrad no_grad;
  for (int64_t width : {16, 10}) {
    const Tensor image = raw::to(randn_of({3, 5, 4, width}, DType::f32, 3), DType::f32);
    for (const Tensor& small :
         {randn_of({width}, DType::f32, 4), randn_of({5, 1, 1}, DType::f32, 5),
          randn_of({3, 1, 4, 1}, DType::f32, 6), randn_of({}, DType::f32, 7)}) {
      INFO(width << " " << cat(small.shape()));
      CHECK(equal(sub(there(image), there(small)), sub(image, small)));
      CHECK(equal(sub(there(small), there(image)), sub(small, image)));
      const Tensor nhwc = raw::channels_last(image);
      CHECK(equal(mul(there(nhwc), there(small)), mul(nhwc, small)));
      CHECK(equal(mul(raw::transpose(there(image), 1, 3), there(randn_of({5}, DType::f32, 8))),
                  mul(raw::transpose(image, 1, 3), randn_of({5}, DType::f32, 8))));
    }
    CHECK(equal(mul(there(image), 0.1), mul(image, 0.1)));
  }
  // A number is used in the compute type: 0.1 is no bf16.
  const Tensor half = randn_of({100}, DType::bf16, 9);
  CHECK(equal(mul(there(half), 0.1), mul(half, 0.1)));
}

TEST_CASE("cuda: a gradient is added to what is there, over strides") {
  const Tensor g = randn_of({4, 24}, DType::f32, 1), y = randn_of({4, 24}, DType::f32, 2);
  for (bool add : {false, true}) {
    const Tensor on_cpu = full({24, 4}, 2, {DType::f32});
    const Tensor on_gpu = there(on_cpu);
    kernels::ZeroPattern zeros{{{0, 4}}};
    kernels::relu_bwd(kCPU, kernels::Dst{raw::transpose(on_cpu, 0, 1), add}, g, y,
                      kernels::Attributes{});
    kernels::relu_bwd(kGpu, kernels::Dst{raw::transpose(on_gpu, 0, 1), add, &zeros}, there(g),
                      there(y), kernels::Attributes{});
    CHECK(equal(on_gpu, on_cpu));
    CHECK(zeros.empty());
  }
}

TEST_CASE("cuda: sums over broadcast dimensions") {
  struct Sum {
    Shape src, dst;
  };
  const Sum sums[] = {
      {{700, 40}, {40}},
      {{700, 10}, {10}},
      {{40, 700}, {40, 1}},
      {{5, 3, 2000}, {1}},
      {{6, 8, 5, 7}, {8, 1, 1}},
      {{6, 8, 5, 7}, {6, 1, 5, 1}},
      {{3, 4}, {3, 4}},
      {{2, 300, 3}, {1, 300, 1}},
      {{9000, 2}, {2}},
      {{1, 1}, {}},
      {{0, 4}, {4}},
      {{5, 1}, {1, 1}},
  };
  for (const Sum& sum : sums)
    for (DType to : {DType::f64, DType::f32, DType::bf16})
      for (DType from : {DType::f64, DType::f32, DType::f16, DType::i64, DType::boolean}) {
        INFO(cat(sum.src, " to ", sum.dst, " ", from, " to ", to));
        const Tensor src = raw::to(
            is_floating(from) ? randn_of(sum.src, from, 3) : full(sum.src, 1, {from}), from);
        for (bool add : {false, true}) {
          const Tensor on_cpu = full(sum.dst, 0.5, {to});
          const Tensor on_gpu = there(on_cpu);
          kernels::accumulate_to(kCPU, kernels::Dst{on_cpu, add}, src);
          kernels::accumulate_to(kGpu, kernels::Dst{on_gpu, add}, there(src));
          const double eps = to == DType::bf16 ? 0x1p-7 : 0x1p-18;
          const double scale = std::sqrt(static_cast<double>(src.numel()) + 1) * 4;
          CHECK(largest_difference(on_gpu, on_cpu) <= eps * scale);
        }
      }
  const Tensor image = raw::channels_last(randn_of({6, 16, 5, 7}, DType::f32, 1));
  const Tensor cpu_sum = empty({16, 1, 1}, {DType::f32});
  const Tensor gpu_sum = empty({16, 1, 1}, {DType::f32, kGpu});
  kernels::accumulate_to(kCPU, kernels::Dst{cpu_sum, false}, image);
  kernels::accumulate_to(kGpu, kernels::Dst{gpu_sum, false}, there(image));
  CHECK(largest_difference(gpu_sum, cpu_sum) < 1e-4);
}

TEST_CASE("cuda: an embedding's gradient is the CPU's bit for bit") {
  Generator generator(5);
  for (int64_t n : {1, 33, 1024, 1025, 5000})
    for (int64_t width : {8, 5}) {
      const int64_t rows = 37;
      // Row 3 has a third of all positions.
      const Tensor index = randint(0, rows, {n}, {DType::i64}, generator);
      for (int64_t i = 0; i < n; i += 3) index.data<int64_t>()[i] = 3;
      for (DType dtype : {DType::f64, DType::f32}) {
        INFO(n << " " << width << " " << name_of(dtype));
        const Tensor dout = randn_of({n, width}, dtype, 7);
        const Tensor on_cpu = full({rows, width}, 0.25, {dtype});
        const Tensor on_gpu = there(on_cpu);
        kernels::embedding_bwd(kCPU, on_cpu, dout, index, 5);
        kernels::embedding_bwd(kGpu, on_gpu, there(dout), there(index), 5);
        CHECK(equal(on_gpu, on_cpu));
        const Tensor y = empty({n, width}, {dtype, kGpu});
        const Tensor expected = empty({n, width}, {dtype});
        kernels::embedding_fwd(kCPU, expected, on_cpu, index);
        kernels::embedding_fwd(kGpu, y, on_gpu, there(index));
        CHECK(equal(y, expected));
      }
    }
}

TEST_CASE("cuda: a wrong index of an embedding is thrown at the next wait") {
  const Tensor weight = there(ones({4, 8}, {DType::f32}));
  const Tensor index = there(tensor({int64_t{0}, int64_t{4}, int64_t{1}}));
  const Tensor y = embedding(weight, index);
  std::string text;
  try {
    cuda::synchronize(kGpu);
  } catch (const Error& error) {
    text = error.what();
  }
  CHECK(text == "embedding: index must be in [0, 4), got 4 at position 1");
  const Tensor gradient = zeros({4, 8}, {DType::f32, kGpu});
  kernels::embedding_bwd(kGpu, gradient, ones({3, 8}, {DType::f32, kGpu}), index, -1);
  CHECK(raw::select(raw::select(gradient, 0, 1), 0, 0).item() == 1);
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: dropout drops what the CPU drops") {
  for (DType dtype : kFloating)
    for (int64_t n : {1, 7, 4096, 5001}) {
      const Tensor x = raw::slice(randn_of({n + 1}, dtype, 1), 0, n % 2, n % 2 + n);
      for (bool add : {false, true}) {
        INFO(name_of(dtype) << " " << n);
        const kernels::DropoutParams params{.seed = 3, .offset = 1000, .p = 0.4, .scale = 1.5};
        const Tensor on_cpu = full({n}, 0.5, {dtype});
        const Tensor on_gpu = there(on_cpu);
        kernels::dropout_apply(kCPU, kernels::Dst{on_cpu, add}, x, params);
        kernels::dropout_apply(kGpu, kernels::Dst{on_gpu, add}, there(x), params);
        // Some of the CPU's targets add in the rounding of the product; all is below 8 here.
        CHECK(largest_difference(on_gpu, on_cpu) <= (add ? 8 * rounding(dtype) : 0));
      }
    }
}

TEST_CASE("cuda: random draws are the CPU's") {
  Generator cpu(11), gpu(11);
  for (DType dtype : kFloating)
    for (const Shape& shape : {Shape{1}, Shape{4099}, Shape{7, 5, 3}}) {
      INFO(cat(dtype, " ", shape));
      CHECK(equal(rand(shape, {dtype, kGpu}, gpu), rand(shape, {dtype}, cpu)));
      const Tensor low = empty(shape, {dtype}), low_there = empty(shape, {dtype, kGpu});
      uniform_(low, -0.3, 0.7, cpu);
      uniform_(low_there, -0.3, 0.7, gpu);
      CHECK(equal(low_there, low));
      const double eps = dtype == DType::f64 ? 1e-14 : is_half(dtype) ? 0.02 : 4e-6;
      CHECK(largest_difference(randn(shape, {dtype, kGpu}, gpu), randn(shape, {dtype}, cpu)) <=
            eps);
    }
  // Elements are numbered in row-major order, wherever they lie.
  const Tensor scattered = raw::transpose(empty({5, 9, 6}, {DType::f32, kGpu}), 0, 2);
  const Tensor rest = raw::slice(scattered, 1, 1, 8, 2);
  uniform_(rest, 2, 3, gpu);
  const Tensor expected = empty({6, 4, 5}, {DType::f32});
  uniform_(expected, 2, 3, cpu);
  CHECK(equal(rest, expected));
  const Tensor unaligned = raw::slice(empty({101}, {DType::f32, kGpu}), 0, 1, 100);
  normal_(unaligned, 1, 2, gpu);
  const Tensor aligned = empty({99}, {DType::f32});
  normal_(aligned, 1, 2, cpu);
  CHECK(largest_difference(unaligned, aligned) < 1e-5);
  CHECK(gpu.offset() == cpu.offset());
}

TEST_CASE("cuda: a captured graph draws on from launch to launch") {
  NoGrad no_grad;
  Generator generator(2), eager(2);
  const Tensor x = ones({1000}, {DType::f32, kGpu});
  const Tensor y = zeros({1000}, {DType::f32, kGpu});
  const Tensor noise = zeros({7}, {DType::f64, kGpu});
  const auto step = [&](const Tensor& masked, const Tensor& drawn, Generator& g) {
    raw::copy_(masked, dropout(x, 0.5, true, g));
    uniform_(drawn, 0, 1, g);
  };
  Capture capture(kGpu, generator);
  step(y, noise, generator);
  CapturedGraph graph = capture.finish();
  Tensor before = raw::to(y, DType::f64, kCPU);
  for (int i = 0; i < 3; ++i) {
    const Tensor mask = zeros({1000}, {DType::f32, kGpu}), drawn = zeros({7}, {DType::f64, kGpu});
    graph.launch();
    step(mask, drawn, eager);
    CHECK(equal(y, mask));
    CHECK(equal(noise, drawn));
    CHECK(!equal(y, before));
    before = raw::to(y, DType::f64, kCPU);
  }
  CHECK(generator.offset() == eager.offset());
}

TEST_CASE("cuda: transposing copies go through tiles") {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::u8})
    for (const Shape& shape : {Shape{2, 40, 7, 9}, Shape{3, 33, 8, 4}, Shape{1, 3, 20, 20}}) {
      INFO(cat(dtype, " ", shape));
      const Tensor host = raw::to(randn_of(shape, DType::f32, 1), dtype);
      const Tensor nhwc = raw::channels_last(there(host));
      CHECK(nhwc.is_channels_last());
      CHECK(equal(nhwc, host));
      CHECK(equal(raw::contiguous(nhwc), host));
      CHECK(equal(raw::contiguous(raw::transpose(there(host), 0, 2)), raw::transpose(host, 0, 2)));
    }
  CHECK(emulator::guard_violations() == 0);
}
