// matmul and linear over the emulated cuBLASLt: every way an operand can lie, plans, epilogues.
#include "cairn/kernels/matmul.h"

#include <cmath>
#include <vector>

#include "cairn/autograd/ops/matmul.h"
#include "cairn/kernels/cuda/blas.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/cuda/device_allocator.h"
#include "cairn/tensor/cuda/library.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"
#include "tests/cuda/emulator/fakes.h"
#include "tests/cuda/values.h"

using namespace cairn;
using test::difference;
using test::random;
using Act = kernels::Activation;
using kernels::Dst;

namespace {

const Device kGpu(DeviceType::cuda, 0);

// The same values in other memory: 0 rows, 1 columns, 2 rows with gaps, 3 every second element.
Tensor laid_out(const Tensor& t, int how, DType dtype) {
  Shape shape = t.shape();
  const size_t rows = shape.size() - 2, cols = rows + 1;
  Tensor there;
  if (how == 1) {
    std::swap(shape[rows], shape[cols]);
    there = raw::transpose(empty(shape, {dtype, kGpu}), -1, -2);
  } else {
    const int64_t size = shape[cols];
    if (how == 2) shape[cols] += 3;
    if (how == 3) shape[cols] *= 2;
    there = raw::slice(empty(shape, {dtype, kGpu}), -1, 0, how == 3 ? 2 * size : size,
                       how == 3 ? 2 : 1);
  }
  raw::copy_(there, raw::to(t, dtype, kGpu));
  return there;
}

Tensor product(const Tensor& a, const Tensor& b) {
  Shape shape = a.shape();
  shape[shape.size() - 1] = b.size(-1);
  const Tensor c = empty(shape, {DType::f64});
  kernels::matmul(kCPU, Dst{c, false}, a, b);
  return c;
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

TEST_CASE("cuda: products of operands in rows, in columns, with gaps and strided") {
  const Tensor a = random({5, 7}, 1), b = random({7, 3}, 2), start = random({5, 3}, 3);
  const Tensor ab = product(a, b);
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (int lay_a : {0, 1, 2, 3})
      for (int lay_b : {0, 1, 2, 3})
        for (int lay_c : {0, 1, 2}) {
          INFO(name_of(dtype) << " " << lay_a << lay_b << lay_c);
          const Tensor c = laid_out(start, lay_c, dtype);
          const Tensor x = laid_out(a, lay_a, dtype), y = laid_out(b, lay_b, dtype);
          kernels::matmul(kGpu, Dst{c, false}, x, y);
          const double allowed = dtype == DType::f64 ? 1e-14 : dtype == DType::f32 ? 1e-6 : 0.06;
          CHECK(difference(c, ab) < allowed);
          kernels::matmul(kGpu, Dst{c, true}, x, y);
          Tensor twice = raw::clone(ab);
          kernels::matmul(kCPU, Dst{twice, true}, a, b);
          CHECK(difference(c, twice) < 2 * allowed);
        }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: halves are multiplied as they are there, and as f32 on a CPU") {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    CHECK(kernels::product_dtype(kGpu, dtype) == dtype);
    CHECK(kernels::product_dtype(kCPU, dtype) ==
          (dtype == DType::bf16 || dtype == DType::f16 ? DType::f32 : dtype));
  }
  // So no product of a layer converts anything.
  const Tensor x = zeros({4, 16}, {DType::bf16, kGpu}), w = zeros({8, 16}, {DType::bf16, kGpu});
  linear(x, w);
  cuda::synchronize(kGpu);
  const int64_t launches = emulator::launches();
  const Tensor y = linear(x, w);
  cuda::synchronize(kGpu);
  CHECK(emulator::launches() == launches + 1);
}

TEST_CASE("cuda: products with sizes of 0 and 1") {
  const Tensor c = raw::to(random({3, 4}, 1), DType::f32, kGpu);
  const Tensor none = empty({3, 0}, {DType::f32, kGpu}), less = empty({0, 4}, {DType::f32, kGpu});
  const Tensor before = raw::clone(c);
  kernels::matmul(kGpu, Dst{c, true}, none, less);
  CHECK(difference(c, before) == 0);
  kernels::matmul(kGpu, Dst{c, false}, none, less);
  CHECK(difference(c, zeros({3, 4})) == 0);
  for (const Shape& mnk : {Shape{1, 5, 4}, Shape{5, 1, 4}, Shape{5, 4, 1}, Shape{1, 1, 1},
                           Shape{1, 1, 6}, Shape{6, 1, 1}, Shape{1, 6, 1}})
    for (int lay : {0, 1, 2}) {
      INFO(mnk[0] << " " << mnk[1] << " " << mnk[2] << " " << lay);
      const Tensor a = random({mnk[0], mnk[2]}, 4), b = random({mnk[2], mnk[1]}, 5);
      const Tensor out = laid_out(random({mnk[0], mnk[1]}, 6), lay, DType::f64);
      kernels::matmul(kGpu, Dst{out, false}, laid_out(a, lay, DType::f64),
                      laid_out(b, 2 - lay, DType::f64));
      CHECK(difference(out, product(a, b)) < 1e-14);
    }
}

TEST_CASE("cuda: leading dimensions are batched, looped over and summed") {
  emulator::BlasLog& log = emulator::blas_log();
  const Tensor a = random({4, 3, 2, 5}, 1), b = random({4, 3, 5, 6}, 2);
  const Tensor there_a = raw::to(a, DType::f64, kGpu), there_b = raw::to(b, DType::f64, kGpu);
  const Tensor whole = product(a, b);

  emulator::BlasLog before = log;
  const Tensor c = empty({4, 3, 2, 6}, {DType::f64, kGpu});
  kernels::matmul(kGpu, Dst{c, false}, there_a, there_b);
  CHECK(difference(c, whole) < 1e-14);
  CHECK(log.products == before.products + 1);
  CHECK(log.batched == before.batched + 1);

  // The dimensions of c do not lie as a's: one call for each of the shorter.
  before = log;
  const Tensor turned = raw::transpose(empty({3, 4, 2, 6}, {DType::f64, kGpu}), 0, 1);
  kernels::matmul(kGpu, Dst{turned, false}, there_a, there_b);
  CHECK(difference(turned, whole) < 1e-14);
  CHECK(log.products == before.products + 3);

  // Summed over the second dimension, each sum on its own; added to what is there.
  const Tensor sums = raw::to(random({4, 1, 2, 6}, 3), DType::f64, kGpu);
  const Tensor expected = raw::to(sums, DType::f64, kCPU);
  kernels::matmul(kGpu, Dst{raw::expand(sums, {4, 3, 2, 6}), true}, there_a, there_b);
  kernels::matmul(kCPU, Dst{raw::expand(expected, {4, 3, 2, 6}), true}, a, b);
  CHECK(difference(sums, expected) < 1e-13);

  // A broadcast operand is no copy, whether it is summed over or not.
  const Tensor one = raw::expand(raw::slice(there_b, 1, 0, 1), {4, 3, 5, 6});
  kernels::matmul(kGpu, Dst{c, false}, there_a, one);
  CHECK(difference(c, product(a, raw::expand(raw::slice(b, 1, 0, 1), {4, 3, 5, 6}))) < 1e-14);
}

TEST_CASE("cuda: a sum over rows of several matrices is one product with a longer inner size") {
  emulator::BlasLog& log = emulator::blas_log();
  const Tensor x = random({6, 5, 4}, 1), dy = random({6, 5, 3}, 2);
  for (DType dtype : {DType::f64, DType::bf16}) {
    const Tensor a = raw::transpose(raw::to(dy, dtype, kGpu), 1, 2);  // [6, 3, 5], columns
    const Tensor b = raw::to(x, dtype, kGpu);
    const Tensor dw = empty({1, 3, 4}, {dtype, kGpu});
    const emulator::BlasLog before = log;
    log.longest_k = 0;
    kernels::matmul(kGpu, Dst{raw::expand(dw, {6, 3, 4}), false}, a, b);
    const Tensor expected = empty({1, 3, 4}, {DType::f64});
    kernels::matmul(kCPU, Dst{raw::expand(expected, {6, 3, 4}), false},
                    raw::to(raw::to(raw::transpose(dy, 1, 2), dtype), DType::f64),
                    raw::to(raw::to(x, dtype), DType::f64));
    CHECK(difference(dw, expected) < (dtype == DType::f64 ? 1e-13 : 0.02));
    CHECK(log.products == before.products + 1);
    CHECK(log.longest_k == 30);
  }
}

TEST_CASE("cuda: 16-bit products that are summed one by one are rounded once") {
  // 1 + 64 times 2^-10 rounds to 1 every time in bf16; the sum is 1.0625.
  const Tensor a = full({65, 1, 1}, 1.0 / 1024, {DType::bf16, kGpu});
  raw::fill_(raw::slice(a, 0, 0, 1), 1);
  const Tensor b = raw::expand(full({1, 1, 1}, 1, {DType::bf16, kGpu}), {65, 1, 1});
  for (bool add : {false, true}) {
    const Tensor c = full({1, 1, 1}, 1, {DType::bf16, kGpu});
    kernels::matmul(kGpu, Dst{raw::expand(c, {65, 1, 1}), add}, a, b);
    CHECK(c.item() == (add ? 2.0625 : 1.0625));
  }
}

TEST_CASE("cuda: linear layers fuse bias and activation, or do without") {
  emulator::BlasLog& log = emulator::blas_log();
  const Tensor x = random({9, 5}, 1), bias = random({8}, 3);
  for (int64_t outputs : {8, 7}) {
    const Tensor w = random({outputs, 5}, 2), b = raw::slice(bias, 0, 0, outputs);
    for (DType dtype : {DType::f64, DType::f32, DType::bf16})
      for (Act activation : {Act::none, Act::relu, Act::gelu})
        for (bool biased : {false, true})
          for (bool refused : {false, true}) {
            const bool keeps = activation == Act::gelu;
            emulator::refuse_epilogues(refused);
            kernels::cuda::set_blas_api(&emulator::fake_blas());  // forgets what it could do
            const TensorOptions like{dtype, kGpu};
            const Tensor y = empty({9, outputs}, like);
            const Tensor pre = keeps ? empty({9, outputs}, like) : Tensor();
            const Tensor cpu_y = empty({9, outputs}, {DType::f64});
            const Tensor cpu_pre = keeps ? empty({9, outputs}, {DType::f64}) : Tensor();
            const auto rounded = [&](const Tensor& t) {
              return raw::to(raw::to(t, dtype), DType::f64);
            };
            const emulator::BlasLog before = log;
            kernels::linear_fwd(
                kGpu, y, pre, nullptr, raw::to(x, dtype, kGpu), raw::to(w, dtype, kGpu),
                biased ? raw::to(raw::contiguous(b), dtype, kGpu) : Tensor(), activation);
            kernels::linear_fwd(kCPU, cpu_y, cpu_pre, nullptr, rounded(x), rounded(w),
                                biased ? raw::contiguous(rounded(b)) : Tensor(), activation);
            const double allowed = dtype == DType::f64 ? 1e-14 : dtype == DType::f32 ? 1e-6 : 0.02;
            CHECK(difference(y, cpu_y) < allowed);
            if (keeps) CHECK(difference(pre, cpu_pre) < allowed);
            const bool wants = biased || activation != Act::none;
            const bool fuses =
                wants && !refused && dtype != DType::f64 && !(keeps && outputs % 8 != 0);
            CHECK(log.with_epilogue - before.with_epilogue == (fuses ? 1 : 0));
            CHECK(log.products == before.products + 1);
          }
  }
  emulator::refuse_epilogues(false);
  kernels::cuda::set_blas_api(&emulator::fake_blas());
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: column sums and gradients before an activation") {
  for (int64_t rows : {0, 1, 63, 64, 700, 5000})
    for (int64_t cols : {1, 33}) {
      const Tensor dy = random({rows, cols}, 1), saved = random({rows, cols}, 2);
      for (DType dtype : {DType::f64, DType::f32, DType::bf16})
        for (bool add : {false, true}) {
          INFO(rows << "x" << cols << " " << name_of(dtype) << " add " << add);
          const double allowed = dtype == DType::f64 ? 1e-11 : dtype == DType::f32 ? 1e-4 : 0.7;
          const Tensor there = raw::to(dy, dtype, kGpu), there_saved = raw::to(saved, dtype, kGpu);
          const Tensor near = raw::to(there, DType::f64, kCPU);
          const Tensor near_saved = raw::to(there_saved, DType::f64, kCPU);
          const Tensor sums = full({cols}, 0.5, {dtype, kGpu});
          const Tensor expected = full({cols}, 0.5, {DType::f64});
          kernels::sum_rows(kGpu, Dst{sums, add}, there);
          kernels::sum_rows(kCPU, Dst{expected, add}, near);
          CHECK(difference(sums, expected) < allowed);
          for (Act activation : {Act::relu, Act::gelu}) {
            const Tensor dpre = empty({rows, cols}, {dtype, kGpu});
            const Tensor cpu_dpre = empty({rows, cols}, {DType::f64});
            kernels::linear_bwd_activation(kGpu, Dst{dpre, false}, Dst{sums, add}, there,
                                           there_saved, activation);
            kernels::linear_bwd_activation(kCPU, Dst{cpu_dpre, false}, Dst{expected, add}, near,
                                           near_saved, activation);
            CHECK(difference(dpre, cpu_dpre) < (dtype == DType::bf16 ? 0.02 : 1e-6));
            CHECK(difference(sums, expected) < 2 * allowed);
            const Tensor alone = empty({rows, cols}, {dtype, kGpu});
            kernels::linear_bwd_activation(kGpu, Dst{alone, false}, Dst{}, there, there_saved,
                                           activation);
            CHECK(difference(alone, dpre) == 0);
          }
        }
    }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: a plan is made once, and a call with a plan allocates nothing") {
  emulator::BlasLog& log = emulator::blas_log();
  const Tensor a = raw::to(random({20, 40}, 1), DType::f32, kGpu);
  const Tensor b = raw::to(random({40, 24}, 2), DType::f32, kGpu);
  const Tensor c = empty({20, 24}, {DType::f32, kGpu});
  kernels::matmul(kGpu, Dst{c, false}, a, b);
  const emulator::BlasLog before = log;
  Allocator* const allocator = backend_of(DeviceType::cuda, "test").allocator(kGpu);
  const MemoryStats memory = allocator->stats();
  for (int i = 0; i < 3; ++i) kernels::matmul(kGpu, Dst{c, false}, a, b);
  CHECK(log.heuristics == before.heuristics);
  CHECK(log.products == before.products + 3);
  CHECK(allocator->stats().allocations == memory.allocations);
  // Adding is another plan.
  kernels::matmul(kGpu, Dst{c, true}, a, b);
  CHECK(log.heuristics == before.heuristics + 1);
  CHECK(log.fast_tf32 == before.fast_tf32);
  cuda::settings().matmul_allow_tf32 = true;
  kernels::matmul(kGpu, Dst{c, false}, a, b);
  cuda::settings().matmul_allow_tf32 = false;
  CHECK(log.fast_tf32 == before.fast_tf32 + 1);
  const Tensor exact = product(raw::to(a, DType::f64, kCPU), raw::to(b, DType::f64, kCPU));
  CHECK(difference(c, exact) > 1e-5);
  CHECK(difference(c, exact) < 2e-2);
}

TEST_CASE("cuda: a captured product equals the eager one") {
  const Tensor a = raw::to(random({8, 16}, 1), DType::f32, kGpu);
  const Tensor b = raw::to(random({16, 8}, 2), DType::f32, kGpu);
  const Tensor c = zeros({8, 8}, {DType::f32, kGpu}), eager = zeros({8, 8}, {DType::f32, kGpu});
  kernels::matmul(kGpu, Dst{eager, false}, a, b);
  kernels::matmul(kGpu, Dst{eager, true}, a, b);
  Capture capture(kGpu);
  kernels::matmul(kGpu, Dst{c, false}, a, b);
  kernels::matmul(kGpu, Dst{c, true}, a, b);
  CapturedGraph graph = capture.finish();
  for (int i = 0; i < 2; ++i) graph.launch();
  CHECK(difference(c, eager) == 0);
}

TEST_CASE("cuda: a library or function that is missing is named") {
  cuda::Library none("cuBLASLt", "libcairn_is_not_there.so.1");
  CHECK_FALSE(none.complete());
  CHECK(none.find("cublasLtCreate") == nullptr);
  CHECK(none.why().find("cuBLASLt must be installed, but libcairn_is_not_there.so.1 was found "
                        "neither in CAIRN_CUDA_LIBRARY_PATH (") == 0);
  CHECK(none.why().find(") nor where the system looks") != std::string::npos);
  cuda::Library libc("The C library", "libc.so.6");
  CHECK(libc.find("malloc") != nullptr);
  CHECK(libc.complete());
  CHECK(libc.find("cairn_is_not_there") == nullptr);
  CHECK(libc.why() ==
        "The C library must have the function cairn_is_not_there, but libc.so.6 has it not");
}

namespace {

// What the installed library said of each description, when a fake stands where a device is asked.
kernels::cuda::BlasApi installed_blas;
int described = 0;

cublasStatus_t accept(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                      cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                      cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t* results,
                      int* count) {
  results[0] = {};
  results[0].state = CUBLAS_STATUS_SUCCESS;
  *count = 1;
  ++described;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t do_nothing(cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*,
                          cublasLtMatrixLayout_t, const void*, cublasLtMatrixLayout_t, const void*,
                          const void*, cublasLtMatrixLayout_t, void*, cublasLtMatrixLayout_t,
                          const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t) {
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

TEST_CASE("cuda: the installed cuBLASLt takes our descriptions") {
  std::string why;
  if (!kernels::cuda::load_blas(&installed_blas, &why)) {
    WARN("not tried against cuBLASLt: " << why);
    return;
  }
  kernels::cuda::BlasApi api = installed_blas;
  api.create = emulator::fake_blas().create;
  api.heuristic = accept;
  api.matmul = do_nothing;
  kernels::cuda::set_blas_api(&api);
  described = 0;
  const std::string error = error_of([] {
    for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
      const TensorOptions like{dtype, kGpu};
      const Tensor x = empty({6, 16}, like), w = empty({8, 16}, like), bias = empty({8}, like);
      const Tensor y = empty({6, 8}, like), pre = empty({6, 8}, like);
      for (Act activation : {Act::none, Act::relu, Act::gelu})
        kernels::linear_fwd(kGpu, y, activation == Act::gelu ? pre : Tensor(), nullptr, x, w, bias,
                            activation);
      const Tensor dw = empty({8, 16}, like), hidden = empty({6, 16}, like);
      kernels::linear_bwd_weight(kGpu, Dst{dw, true}, Dst{bias, false}, y, x);
      Tensor mask = empty({6, 16}, {DType::u8, kGpu});
      kernels::linear_fwd(kGpu, y, Tensor(), &mask, x, w, bias, Act::relu);
      for (Act activation : {Act::relu, Act::gelu})
        kernels::linear_bwd_input(kGpu, Dst{hidden, false}, Dst{empty({16}, like), false}, y, w,
                                  hidden, mask, activation);
      kernels::matmul(kGpu, Dst{empty({5, 6, 8}, like), true},
                      raw::expand(raw::unsqueeze(x, 0), {5, 6, 16}), empty({5, 16, 8}, like));
    }
  });
  kernels::cuda::set_blas_api(&emulator::fake_blas());
  CHECK(error == "");
  CHECK(described == 28);  // of which four are f64's: it has no epilogues
}
