// Gradients of linear layers over the emulated cuBLASLt: what is part of a product, and what is
// done where the library has no such product.
#include <vector>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/matmul.h"
#include "cairn/kernels/cuda/blas.h"
#include "cairn/kernels/matmul.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
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

double allowed_in(DType dtype) {
  return dtype == DType::f64   ? 1e-13
         : dtype == DType::f32 ? 1e-5
         : dtype == DType::f16 ? 0.02
                               : 0.1;
}
Tensor there(const Tensor& t, DType dtype) { return raw::to(t, dtype, kGpu); }
// The values that `dtype` makes of these.
Tensor rounded(const Tensor& t, DType dtype) { return raw::to(raw::to(t, dtype), DType::f64); }
Tensor in_columns(const Tensor& t) {
  return raw::transpose(raw::contiguous(raw::transpose(t, 0, 1)), 0, 1);
}

// How often the library has used an epilogue since.
class Uses {
 public:
  int64_t of(cublasLtEpilogue_t epilogue) const {
    return count(emulator::blas_log(), epilogue) - count(before_, epilogue);
  }
  int64_t products() const { return emulator::blas_log().products - before_.products; }

 private:
  static int64_t count(const emulator::BlasLog& log, cublasLtEpilogue_t epilogue) {
    const auto at = log.epilogues.find(epilogue);
    return at == log.epilogues.end() ? 0 : at->second;
  }
  emulator::BlasLog before_ = emulator::blas_log();
};

// Epilogues that the library does not know while this lives.
class Refusal {
 public:
  explicit Refusal(const std::vector<cublasLtEpilogue_t>& epilogues) {
    for (const cublasLtEpilogue_t epilogue : epilogues) emulator::refuse_epilogue(epilogue);
    kernels::cuda::set_blas_api(&emulator::fake_blas());  // forgets what it could do
  }
  ~Refusal() {
    emulator::refuse_epilogues(false);
    kernels::cuda::set_blas_api(&emulator::fake_blas());
  }
};

}  // namespace

TEST_CASE("cuda: a bias's gradient is part of the weight's product") {
  const Tensor x = random({9, 6}, 1), start = random({8, 6}, 3), start_b = random({8}, 4);
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (int64_t out : {8, 3, 1})
      for (bool turned : {false, true})
        for (int add : {0, 1, 2, 3})
          for (bool refused : {false, true}) {
            INFO(name_of(dtype) << " " << out << " in columns " << turned << " add " << add
                                << " refused " << refused);
            const Refusal refusal(
                refused ? std::vector{CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB}
                        : std::vector<cublasLtEpilogue_t>{});
            const Tensor dy = random({9, out}, 2);
            const Tensor w = rounded(raw::slice(start, 0, 0, out), dtype);
            const Tensor b = rounded(raw::contiguous(raw::slice(start_b, 0, 0, out)), dtype);
            const Tensor dw = there(w, dtype), db = there(b, dtype);
            const Tensor place = turned ? in_columns(dw) : dw;
            const Uses uses;
            kernels::linear_bwd_weight(kGpu, Dst{place, (add & 1) != 0}, Dst{db, (add & 2) != 0},
                                       there(dy, dtype), there(x, dtype));
            kernels::linear_bwd_weight(kCPU, Dst{w, (add & 1) != 0}, Dst{b, (add & 2) != 0},
                                       rounded(dy, dtype), rounded(x, dtype));
            CHECK(difference(place, w) < allowed_in(dtype));
            CHECK(difference(db, b) < allowed_in(dtype));
            CHECK(uses.products() == 1);
            const bool fused = dtype != DType::f64 && out > 1 && !refused;
            CHECK(uses.of(CUBLASLT_EPILOGUE_BGRADB) == (fused && !turned));
            CHECK(uses.of(CUBLASLT_EPILOGUE_BGRADA) == (fused && turned));
          }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: a weight's gradient without a bias, and without rows") {
  const Tensor x = random({4, 6}, 1), dy = random({4, 8}, 2);
  const Tensor dw = empty({8, 6}, {DType::f32, kGpu}), wanted = empty({8, 6}, {DType::f64});
  const Uses uses;
  kernels::linear_bwd_weight(kGpu, Dst{dw, false}, Dst{}, there(dy, DType::f32),
                             there(x, DType::f32));
  kernels::linear_bwd_weight(kCPU, Dst{wanted, false}, Dst{}, rounded(dy, DType::f32),
                             rounded(x, DType::f32));
  CHECK(difference(dw, wanted) < 1e-5);
  CHECK(uses.of(CUBLASLT_EPILOGUE_DEFAULT) == 1);
  const Tensor db = full({8}, 3, {DType::f32, kGpu});
  const Tensor none = empty({0, 8}, {DType::f32, kGpu}), less = empty({0, 6}, {DType::f32, kGpu});
  kernels::linear_bwd_weight(kGpu, Dst{dw, false}, Dst{db, true}, none, less);
  CHECK(difference(dw, zeros({8, 6})) == 0);
  CHECK(difference(db, full({8}, 3, {DType::f64})) == 0);
  kernels::linear_bwd_weight(kGpu, Dst{dw, true}, Dst{db, false}, none, less);
  CHECK(difference(db, zeros({8})) == 0);
}

namespace {

// x [9, 5] through a layer of `width` and an activation, then through one of 6, and back.
struct Block {
  Tensor x, w1, b1, w2, dy;
  Tensor y, pre, mask;  // of the first layer
  Tensor dpre, db;

  Block(int64_t width, Device device, DType dtype, DType rounds) {
    const auto values = [&](const Shape& shape, uint64_t seed) {
      return raw::to(rounded(random(shape, seed), rounds), dtype, device);
    };
    x = values({9, 5}, 1);
    w1 = values({width, 5}, 2);
    b1 = values({width}, 3);
    w2 = values({6, width}, 4);
    dy = values({9, 6}, 5);
    y = empty({9, width}, {dtype, device});
    dpre = empty({9, width}, {dtype, device});
    db = values({width}, 6);
  }

  void forward(Act activation) {
    const Device device = x.device();
    if (activation == Act::gelu) pre = empty(y.shape(), {y.dtype(), device});
    const int64_t bytes = kernels::relu_mask_bytes(device, y.dtype(), y.size(1));
    const bool keeps = activation == Act::relu && bytes > 0;
    if (keeps) mask = empty({9, bytes}, {DType::u8, device});
    kernels::linear_fwd(device, y, pre, keeps ? &mask : nullptr, x, w1, b1, activation);
  }
  void backward(Act activation, bool sums, bool add) {
    kernels::linear_bwd_input(x.device(), Dst{dpre, false}, sums ? Dst{db, add} : Dst{}, dy, w2,
                              activation == Act::relu ? y : pre, mask, activation);
  }
};

}  // namespace

TEST_CASE("cuda: a gradient goes through a layer and the activation before it in one product") {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (Act activation : {Act::relu, Act::gelu})
      for (int64_t width : {8, 13, 136})
        for (int sums : {0, 1, 2}) {
          INFO(name_of(dtype) << " " << width << " sums " << sums);
          Block gpu(width, kGpu, dtype, dtype), cpu(width, kCPU, DType::f64, dtype);
          const bool relu = activation == Act::relu;
          const bool fused = dtype != DType::f64 && (relu || width % 8 == 0);
          const Uses forward;
          gpu.forward(activation);
          cpu.forward(activation);
          CHECK(forward.of(relu ? CUBLASLT_EPILOGUE_RELU_AUX_BIAS
                                : CUBLASLT_EPILOGUE_GELU_AUX_BIAS) == fused);
          CHECK(gpu.mask.defined() == (relu && fused));
          CHECK_FALSE(cpu.mask.defined());
          const Uses uses;
          gpu.backward(activation, sums > 0, sums == 2);
          cpu.backward(activation, sums > 0, sums == 2);
          CHECK(difference(gpu.y, cpu.y) < allowed_in(dtype));
          CHECK(difference(gpu.dpre, cpu.dpre) < allowed_in(dtype));
          CHECK(difference(gpu.db, cpu.db) < allowed_in(dtype));
          CHECK(uses.products() == 1);
          const cublasLtEpilogue_t plain = relu ? CUBLASLT_EPILOGUE_DRELU : CUBLASLT_EPILOGUE_DGELU;
          const cublasLtEpilogue_t summed =
              relu ? CUBLASLT_EPILOGUE_DRELU_BGRAD : CUBLASLT_EPILOGUE_DGELU_BGRAD;
          CHECK(uses.of(plain) == (fused && sums == 0));
          CHECK(uses.of(summed) == (fused && sums > 0));
        }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: a layer whose epilogue the library refuses is computed without") {
  const std::vector<std::vector<cublasLtEpilogue_t>> refusals = {
      {CUBLASLT_EPILOGUE_RELU_AUX_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS},
      {CUBLASLT_EPILOGUE_RELU_AUX_BIAS, CUBLASLT_EPILOGUE_RELU_BIAS,
       CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_GELU_BIAS},
      {CUBLASLT_EPILOGUE_DRELU_BGRAD, CUBLASLT_EPILOGUE_DGELU_BGRAD}};
  for (size_t i = 0; i < refusals.size(); ++i)
    for (Act activation : {Act::relu, Act::gelu}) {
      INFO(i << " relu " << (activation == Act::relu));
      const Refusal refusal(refusals[i]);
      Block gpu(16, kGpu, DType::f32, DType::f32), cpu(16, kCPU, DType::f64, DType::f32);
      const Uses uses;
      for (Block* block : {&gpu, &cpu}) {
        block->forward(activation);
        block->backward(activation, true, true);
      }
      CHECK(difference(gpu.y, cpu.y) < 1e-5);
      CHECK(difference(gpu.dpre, cpu.dpre) < 1e-5);
      CHECK(difference(gpu.db, cpu.db) < 1e-5);
      CHECK(uses.products() == 2);
      // The bits are the library's own: without them from its forward none go to its backward.
      CHECK(gpu.mask.defined() == (activation == Act::relu && i == 2));
      CHECK(uses.of(CUBLASLT_EPILOGUE_RELU_BIAS) == (activation == Act::relu && i == 0));
      CHECK(uses.of(CUBLASLT_EPILOGUE_DRELU_BGRAD) == 0);
      CHECK(uses.of(CUBLASLT_EPILOGUE_DGELU_BGRAD) == (activation == Act::gelu && i < 2));
    }
}

TEST_CASE("cuda: feed_forward takes six products, and nothing but them") {
  for (DType dtype : {DType::f32, DType::bf16})
    for (Activation activation : {Activation::relu, Activation::gelu_tanh}) {
      std::vector<Tensor> t;
      for (const Shape& shape : {Shape{2, 3, 16}, Shape{24, 16}, Shape{24}, Shape{8, 24}, Shape{8}})
        t.push_back(set_requires_grad(there(random(shape, t.size()), dtype)));
      const Tensor slope = there(random({2, 3, 8}, 9), dtype);
      const auto step = [&] {
        for (const Tensor& one : t) zero_grad(one);
        backward(feed_forward(t[0], t[1], t[2], t[3], t[4], {.activation = activation}), slope);
        cuda::synchronize(kGpu);
      };
      step();
      const Uses uses;
      const int64_t launches = emulator::launches();
      step();
      const bool relu = activation == Activation::relu;
      CHECK(uses.products() == 6);
      CHECK(emulator::launches() == launches + 6);
      for (const cublasLtEpilogue_t epilogue :
           {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_BGRADB,
            relu ? CUBLASLT_EPILOGUE_RELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
            relu ? CUBLASLT_EPILOGUE_DRELU_BGRAD : CUBLASLT_EPILOGUE_DGELU_BGRAD})
        CHECK(uses.of(epilogue) == 1);
      // Without a gradient nothing is kept for one.
      const NoGrad off;
      const Uses inference;
      feed_forward(t[0], t[1], t[2], t[3], t[4], {.activation = activation});
      CHECK(inference.of(relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_GELU_BIAS) == 1);
    }
}

TEST_CASE("cuda: captured gradients of a layer equal the eager ones") {
  for (Act activation : {Act::relu, Act::gelu}) {
    Block eager(16, kGpu, DType::f32, DType::f32), captured(16, kGpu, DType::f32, DType::f32);
    const auto run = [&](Block& block) {
      block.forward(activation);
      block.backward(activation, true, true);  // the sums go through scratch
    };
    run(eager);
    run(eager);
    Capture capture(kGpu);
    run(captured);
    CapturedGraph graph = capture.finish();
    for (int i = 0; i < 2; ++i) graph.launch();
    CHECK(difference(captured.dpre, eager.dpre) == 0);
    CHECK(difference(captured.db, eager.db) == 0);
  }
}
