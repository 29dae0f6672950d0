// Losses on the emulated GPU against the CPU's: one block, several, and classes out of range.
#include "cairn/kernels/loss.h"

#include <string>
#include <vector>

#include "cairn/tensor/cuda.h"
#include "tests/cuda/both.h"

using namespace cairn;
using namespace cairn::both;
using namespace cairn::kernels;

namespace {

Tensor moved(const Tensor& t, Device device) {
  return t.defined() ? raw::to(raw::clone(t), t.dtype(), device) : t;
}

// Classes of [0, classes), every fifth ignored.
constexpr int64_t kIgnored = -100;
Tensor classes_for(const Shape& shape, int64_t classes) {
  const Tensor t = empty(shape, {DType::i64});
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<int64_t>()[i] = i % 5 == 4 ? kIgnored : i * 7919 % classes;
  return t;
}

constexpr LossReduction kReductions[] = {LossReduction::none, LossReduction::mean,
                                         LossReduction::sum};
Shape reduced(LossReduction reduction, const Shape& shape) {
  return reduction == LossReduction::none ? shape : Shape{};
}

double tolerance(DType dtype) {
  return dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 4e-6 : 1.2e-2;
}

std::string error_at_wait() {
  try {
    cuda::synchronize(kGpu);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// run(device) on both, compared.
template <class Run>
void compare(DType dtype, const Run& run) {
  const std::vector<Tensor> gpu = run(kGpu), cpu = run(kCPU);
  for (size_t i = 0; i < cpu.size(); ++i) {
    INFO("result " << i);
    CHECK(difference(gpu[i], cpu[i]) <= tolerance(dtype));
  }
}

struct Matrix {
  int64_t rows, classes;
};
// In one block, in several, rows of a block, rows that are no whole vectors.
const std::vector<Matrix> kMatrices = {{1, 1},    {128, 10}, {600, 33},
                                       {1, 1024}, {9, 1024}, {3, 601}};

}  // namespace

TEST_CASE("cuda: cross entropy is the CPU's") {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (const Matrix m : kMatrices)
      for (LossReduction reduction : kReductions)
        for (int kind = 0; kind < 4; ++kind) {
          const bool by_class = kind != 3, weighted = kind == 1 || kind == 3;
          const Backwards order(kind == 0);
          INFO(name_of(dtype) << ", " << m.rows << " x " << m.classes << " reduction "
                              << static_cast<int>(reduction) << " kind " << kind);
          const CrossEntropyParams params{kIgnored, kind >= 2 ? 0.1 : 0.0, reduction};
          const Shape shape{m.rows, m.classes};
          const Tensor logits = noise(shape, dtype, 1, 3);
          const Tensor target =
              by_class ? classes_for({m.rows}, m.classes) : noise(shape, dtype, 2, 0.5, 0.5);
          const Tensor weight = weighted ? noise({m.classes}, dtype, 3, 0.5, 1) : Tensor{};
          const Tensor dloss = noise(reduced(reduction, {m.rows}), dtype, 4);
          compare(dtype, [&](Device device) {
            const Tensor x = moved(logits, device), t = moved(target, device);
            const Tensor w = moved(weight, device);
            const Tensor loss = empty(reduced(reduction, {m.rows}), {dtype, device});
            const DType norm = dtype == DType::f64 ? DType::f64 : DType::f32;
            const Tensor norms = empty({m.rows, 2}, {norm, device});
            const Tensor denominator = empty({1}, {DType::f64, device});
            cross_entropy_fwd(device, loss, norms, denominator, x, t, w, params);
            const Tensor dx = moved(noise(shape, dtype, 5), device);
            const Tensor dt = by_class ? Tensor{} : moved(noise(shape, dtype, 6), device);
            cross_entropy_bwd(device, Dst{dx, weighted, nullptr}, Dst{dt, !weighted, nullptr},
                              moved(dloss, device), norms, denominator, x, t, w, params);
            std::vector<Tensor> out{norms, denominator, dx};
            // Sums of as many terms as there are rows.
            out.push_back(raw::to(loss, DType::f64));
            if (reduction == LossReduction::sum && m.rows > 1) out.pop_back();
            if (!by_class) out.push_back(dt);
            return out;
          });
        }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: a mean over no target is NaN, and a logit that is NaN shows") {
  const Tensor logits = noise({4, 6}, DType::f32, 1);
  raw::fill_(raw::slice(logits, 0, 2, 3), NAN);
  for (bool all_ignored : {true, false}) {
    const Tensor target = all_ignored ? full({4}, kIgnored, {DType::i64}) : arange(0, 4);
    compare(DType::f32, [&](Device device) {
      const Tensor loss = empty({}, {DType::f32, device}),
                   norms = empty({4, 2}, {DType::f32, device});
      const Tensor denominator = empty({1}, {DType::f64, device});
      cross_entropy_fwd(device, loss, norms, denominator, moved(logits, device),
                        moved(target, device), Tensor{},
                        CrossEntropyParams{kIgnored, 0, LossReduction::mean});
      CHECK(std::isnan(loss.item()));
      return std::vector<Tensor>{norms, denominator};
    });
  }
}

TEST_CASE("cuda: classes out of range are reported at the next wait and touch no memory") {
  Tensor target = arange(0, 40000);
  target = raw::clone(target);
  for (int64_t i = 0; i < target.numel(); ++i) target.data<int64_t>()[i] = i % 10;
  for (const auto& [at, value] :
       {std::pair{int64_t{3}, int64_t{1} << 40}, {int64_t{39999}, int64_t{-1}}}) {
    const Tensor wrong = raw::clone(target);
    wrong.data<int64_t>()[at] = value;
    const Tensor there = on_gpu(wrong);
    check_classes(kGpu, "cross_entropy", there, 10, kIgnored);
    const Tensor x = on_gpu(noise({40000, 10}, DType::f32, 1));
    const Tensor loss = empty({}, {DType::f32, kGpu});
    const Tensor norms = empty({40000, 2}, {DType::f32, kGpu});
    const Tensor denominator = empty({1}, {DType::f64, kGpu});
    const CrossEntropyParams params{kIgnored, 0.1, LossReduction::mean};
    cross_entropy_fwd(kGpu, loss, norms, denominator, x, there, Tensor{}, params);
    cross_entropy_bwd(kGpu, Dst{x, false, nullptr}, Dst{}, loss, norms, denominator, x, there,
                      Tensor{}, params);
    CHECK(error_at_wait() ==
          cat("cross_entropy: target must be in [0, 10), got ", value, " at position ", at));
  }
  const Tensor ignored = raw::clone(target);
  ignored.data<int64_t>()[7] = kIgnored;
  check_classes(kGpu, "nll_loss", on_gpu(ignored), 10, kIgnored);
  CHECK(error_at_wait().empty());
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: nll, squared error and binary cross entropy are the CPU's") {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (int64_t n : {int64_t{1}, int64_t{500}, int64_t{20000}})
      for (LossReduction reduction : kReductions) {
        const Backwards order(n == 500);
        INFO(name_of(dtype) << " n " << n << " reduction " << static_cast<int>(reduction));
        const Tensor a = noise({n}, dtype, 1, 3), b = noise({n}, dtype, 2, 0.5, 0.5);
        const Tensor w = noise({n}, dtype, 3, 0.5, 1), pos = noise({n}, dtype, 4, 1, 2);
        const Tensor dloss = noise(reduced(reduction, {n}), dtype, 5);
        // Totals relative to their size.
        const auto scaled = [&](const Tensor& loss) {
          const Tensor t = raw::clone(as_doubles(loss));
          if (reduction == LossReduction::sum) t.data<double>()[0] /= static_cast<double>(n);
          return t;
        };
        const auto out_like = [&](Device device) {
          return empty(reduced(reduction, {n}), {dtype, device});
        };
        compare(dtype, [&](Device device) {
          const Tensor loss = out_like(device), da = empty({n}, {dtype, device}),
                       db = empty({n}, {dtype, device});
          mse_loss_fwd(device, loss, moved(a, device), moved(b, device), reduction);
          mse_loss_bwd(device, da, db, moved(dloss, device), moved(a, device), moved(b, device),
                       reduction);
          return std::vector<Tensor>{scaled(loss), da, db};
        });
        for (bool weighted : {false, true})
          compare(dtype, [&](Device device) {
            const Tensor loss = out_like(device), dx = empty({n}, {dtype, device});
            const Tensor dt = weighted ? empty({n}, {dtype, device}) : Tensor{};
            const Tensor weight = weighted ? moved(w, device) : Tensor{};
            const Tensor positive = weighted ? moved(pos, device) : Tensor{};
            bce_with_logits_fwd(device, loss, moved(a, device), moved(b, device), weight, positive,
                                reduction);
            bce_with_logits_bwd(device, dx, dt, moved(dloss, device), moved(a, device),
                                moved(b, device), weight, positive, reduction);
            std::vector<Tensor> out{scaled(loss), dx};
            if (weighted) out.push_back(dt);
            return out;
          });
        const int64_t inner = n == 500 ? 5 : 1;
        const Tensor target = classes_for({n / inner, inner}, 7);
        const Tensor log_probs = noise({n / inner, 7, inner}, dtype, 6, 1, -2);
        const Tensor weight = n == 500 ? noise({7}, dtype, 7, 0.5, 1) : Tensor{};
        compare(dtype, [&](Device device) {
          const Tensor loss = empty(reduced(reduction, target.shape()), {dtype, device});
          const Tensor denominator = empty({1}, {DType::f64, device});
          nll_loss_fwd(device, loss, denominator, moved(log_probs, device), moved(target, device),
                       moved(weight, device), kIgnored, reduction);
          const Tensor dx = zeros(log_probs.shape(), {dtype, device});
          nll_loss_bwd(device, dx, moved(raw::view(dloss, loss.shape()), device), denominator,
                       moved(target, device), moved(weight, device), kIgnored, reduction);
          return std::vector<Tensor>{scaled(loss), denominator, dx};
        });
      }
  CHECK(emulator::guard_violations() == 0);
}
