// Batch and layer normalisation on the emulated GPU against the CPU's, in one launch and in two.
#include <vector>

#include "cairn/tensor/capture.h"
#include "tests/cuda/batch_norm.h"

using namespace cairn;
using namespace cairn::both;
using namespace cairn::kernels;

namespace {

// One block for all rows, also with fewer channels than a slab and with odd ones; then row blocks,
// the last one short.
const std::vector<Shape2> kMatrices = {{2, 8},     {7, 3},     {300, 40},
                                       {2048, 16}, {2049, 16}, {5000, 5}};

// What gradients go to, on one device.
struct Gradients {
  Tensor dx, dresidual, dw, db;
};

// Gradients add to what is there in every second place.
Gradients backward(const BatchNorm& n, const Tensor& dy, bool residual, bool relu, bool training,
                   bool aliased) {
  const auto start = [&](const Tensor& like, uint64_t seed) {
    return raw::to(noise(like.shape(), like.dtype(), seed), like.dtype(), like.device());
  };
  Gradients g{start(n.x, 11), residual ? start(n.x, 12) : Tensor{}, start(n.w, 13), start(n.b, 14)};
  if (aliased) g.dresidual = g.dx;
  const Tensor y = residual ? n.y : Tensor{};
  ZeroPattern zeros{{{0, 4}}};
  batch_norm_bwd(n.x.device(), Dst{g.dx, aliased, nullptr},
                 Dst{g.dresidual, !aliased && residual, residual ? &zeros : nullptr},
                 Dst{g.dw, true, nullptr}, Dst{g.db, false, nullptr}, n.work, n.coef, dy, n.x, y,
                 n.w, n.b, n.mean, n.rstd, relu, training);
  return g;
}

void check_gradients(const BatchNorm& gpu, const BatchNorm& cpu, bool residual, bool relu) {
  const Tensor dy = noise(cpu.x.shape(), cpu.x.dtype(), 20);
  const double rows = static_cast<double>(cpu.x.size(0));
  const double tolerance = cpu.x.dtype() == DType::f64   ? 1e-11
                           : cpu.x.dtype() == DType::f32 ? 2e-5
                                                         : 1.2e-2;
  for (bool training : {true, false})
    for (bool aliased : {false, true}) {
      if (aliased && !residual) continue;
      INFO("training " << training << " aliased " << aliased);
      const Gradients a = backward(gpu, on_gpu(dy), residual, relu, training, aliased);
      const Gradients b = backward(cpu, dy, residual, relu, training, aliased);
      CHECK(difference(a.dx, b.dx) < tolerance);
      if (residual) CHECK(difference(a.dresidual, b.dresidual) < tolerance);
      CHECK(difference(a.dw, b.dw) < tolerance * std::sqrt(rows));
      CHECK(difference(a.db, b.db) < tolerance * std::sqrt(rows));
    }
}

}  // namespace

TEST_CASE("cuda: batch norm in training is the CPU's, for small maps and large") {
  for (const auto& [dtype, vectors] :
       {std::pair{DType::f64, DType::f64}, std::pair{DType::f32, DType::f32},
        std::pair{DType::bf16, DType::f32}, std::pair{DType::bf16, DType::bf16},
        std::pair{DType::f16, DType::f32}, std::pair{DType::f16, DType::f16}})
    for (const Shape2 shape : kMatrices)
      for (bool residual : {false, true})
        for (bool relu : {false, true}) {
          if (shape.rows > 300 && residual != relu) continue;
          const Backwards order(residual);
          INFO(name_of(dtype) << " with " << name_of(vectors) << ", " << shape.rows << " x "
                              << shape.channels << " residual " << residual << " relu " << relu);
          const BatchNorm cpu(shape, dtype, vectors, residual), gpu(cpu, kGpu);
          cpu.forward(relu);
          gpu.forward(relu);
          check_outputs(gpu, cpu);
          // From the same forward, so that relu cuts at the same places.
          for (const auto& [to, from] : {std::pair{gpu.y, cpu.y}, std::pair{gpu.mean, cpu.mean},
                                         std::pair{gpu.rstd, cpu.rstd}})
            raw::copy_(to, from);
          check_gradients(gpu, cpu, residual, relu);
        }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: batch norm in evaluation is the CPU's") {
  for (const Shape2 shape : kMatrices)
    for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
      INFO(name_of(dtype) << ", " << shape.rows << " x " << shape.channels);
      const BatchNorm cpu(shape, dtype, dtype, true), gpu(cpu, kGpu);
      cpu.evaluate(true);
      gpu.evaluate(true);
      check_outputs(gpu, cpu);
    }
}

TEST_CASE("cuda: batch norm keeps a small variance beside a large mean") {
  for (int64_t rows : {int64_t{512}, int64_t{4096}})
    for (double shift : {1e3, 1e5}) {
      INFO(rows << " rows, shift " << shift);
      const BatchNorm cpu({rows, 8}, DType::f32, DType::f32, false, shift), gpu(cpu, kGpu);
      const Tensor wide = raw::to(cpu.x, DType::f64);
      const BatchNorm exact({rows, 8}, DType::f64, DType::f64, false);
      raw::copy_(exact.x, wide);
      exact.forward(false);
      gpu.forward(false);
      CHECK(difference(gpu.mean, exact.mean) < 1e-9);
      CHECK(difference(gpu.rstd, exact.rstd) < 1e-6);
      // One value that makes all of the variance, where sums would be taken relative to it.
      raw::fill_(gpu.x, shift);
      raw::fill_(exact.x, shift);
      raw::fill_(raw::slice(gpu.x, 0, 0, 1), shift + 100);
      raw::fill_(raw::slice(exact.x, 0, 0, 1), shift + 100);
      exact.forward(false);
      gpu.forward(false);
      CHECK(difference(gpu.mean, exact.mean) < 1e-6);
      CHECK(difference(gpu.rstd, exact.rstd) < 1e-4);
    }
}

TEST_CASE("cuda: a captured batch norm is replayed with other values") {
  const BatchNorm gpu({3000, 16}, DType::f32, DType::f32, false);
  const BatchNorm there(gpu, kGpu), eager(gpu, kGpu);
  Capture capture(kGpu);
  there.forward(true);
  CapturedGraph graph = capture.finish();
  const Tensor other = on_gpu(noise({3000, 16}, DType::f32, 77, 2));
  raw::copy_(there.x, other);
  raw::copy_(eager.x, other);
  graph.launch();
  graph.launch();
  eager.forward(true);
  eager.forward(true);
  CHECK(same_bits(there.y, eager.y));
  CHECK(same_bits(there.running_var, eager.running_var));
}

TEST_CASE("cuda: layer norm is the CPU's, for rows of a warp and of a block") {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (const Shape2 shape : {Shape2{1, 1}, Shape2{3, 10}, Shape2{70, 33}, Shape2{130, 512},
                               Shape2{3, 1024}, Shape2{5, 1031}})
      for (bool affine : {false, true}) {
        const Backwards order(affine);
        INFO(name_of(dtype) << ", " << shape.rows << " x " << shape.channels << " affine "
                            << affine);
        const DType statistics = dtype == DType::f64 ? DType::f64 : DType::f32;
        const double tolerance = dtype == DType::f64 ? 1e-11 : dtype == DType::f32 ? 2e-5 : 1.2e-2;
        const Tensor x = noise({shape.rows, shape.channels}, dtype, 1, 1, is_half(dtype) ? 0 : 100);
        const Tensor dy = noise({shape.rows, shape.channels}, dtype, 2);
        const Tensor w = affine ? noise({shape.channels}, dtype, 3, 0.5, 1) : Tensor{};
        const Tensor b = affine ? noise({shape.channels}, dtype, 4) : Tensor{};
        struct Results {
          Tensor y, mean, rstd, dx, dw, db;
        };
        const auto run = [&](Device device) {
          const auto move = [device](const Tensor& t) {
            return t.defined() ? raw::to(t, t.dtype(), device) : t;
          };
          Results r{
              empty(x.shape(), {dtype, device}),         empty({shape.rows}, {statistics, device}),
              empty({shape.rows}, {statistics, device}), move(noise(x.shape(), dtype, 5)),
              move(noise({shape.channels}, dtype, 6)),   move(noise({shape.channels}, dtype, 7))};
          layer_norm_fwd(device, r.y, r.mean, r.rstd, move(x), move(w), move(b), 1e-5);
          const Tensor work =
              empty({2 * shape.channels * NormBlocks(shape.rows).count}, {statistics, device});
          layer_norm_bwd(device, Dst{r.dx, affine, nullptr}, Dst{r.dw, !affine, nullptr},
                         Dst{affine ? r.db : Tensor{}, false, nullptr}, work, move(dy), move(x),
                         move(w), r.mean, r.rstd);
          return r;
        };
        const Results gpu = run(kGpu), cpu = run(kCPU);
        CHECK(difference(gpu.mean, cpu.mean) < 1e-6);
        CHECK(difference(gpu.rstd, cpu.rstd) < 1e-4);
        CHECK(difference(gpu.y, cpu.y) < 10 * tolerance);
        CHECK(difference(gpu.dx, cpu.dx) < 10 * tolerance);
        CHECK(difference(gpu.dw, cpu.dw) < 10 * tolerance);
        CHECK(difference(gpu.db, cpu.db) < 10 * tolerance);
      }
  CHECK(emulator::guard_violations() == 0);
}
