// Optimizer steps and clipping on the emulated GPU against the CPU's.
#include "cairn/kernels/optim.h"

#include <vector>

#include "cairn/tensor/capture.h"
#include "tests/cuda/both.h"

using namespace cairn;
using namespace cairn::both;
using namespace cairn::kernels;

namespace {

// Parameters, gradients and states of one arena on one device.
struct Arena {
  Tensor param, grad, state[3];

  Arena(int64_t numel, DType dtype) {
    const DType states = dtype == DType::f64 ? DType::f64 : DType::f32;
    param = noise({numel}, dtype, 1);
    grad = noise({numel}, dtype, 2);
    for (uint64_t i = 0; i < 3; ++i) state[i] = noise({numel}, states, 3 + i, 0.5, 0.5);
  }
  explicit Arena(const Arena& other, Device device) {
    param = raw::to(other.param, other.param.dtype(), device);
    grad = raw::to(other.grad, other.grad.dtype(), device);
    for (int i = 0; i < 3; ++i) state[i] = raw::to(other.state[i], other.state[i].dtype(), device);
  }
  // Elements [begin, end).
  OptimRun run(int64_t begin, int64_t end) const {
    const auto at = [begin](const Tensor& t) {
      return static_cast<std::byte*>(t.raw_data()) + begin * item_size(t.dtype());
    };
    return {at(param), at(grad), {at(state[0]), at(state[1]), at(state[2])}, end - begin};
  }
};

// Empty, single, unaligned and long stretches.
const std::vector<int64_t> kCuts = {0, 5000, 5000, 5001, 5018, 9114, 9117, 9999, 30000};
std::vector<OptimRun> runs_of(const Arena& arena) {
  std::vector<OptimRun> runs;
  for (size_t i = 0; i + 1 < kCuts.size(); ++i) runs.push_back(arena.run(kCuts[i], kCuts[i + 1]));
  return runs;
}

void check_equal(const Arena& got, const Arena& wanted, double tolerance) {
  CHECK(difference(got.param, wanted.param) <= tolerance);
  for (int i = 0; i < 3; ++i) {
    INFO("state " << i);
    CHECK(difference(got.state[i], wanted.state[i]) <= roundings(wanted.state[i].dtype(), 8));
  }
  CHECK(same_bits(got.grad, wanted.grad));
}

std::vector<SgdStep> sgd_steps() {
  return {{.lr = 0.1},
          {.lr = 0.1, .momentum = 0.9, .dampening = 0.25, .weight_decay = 0.01},
          {.lr = 0.1, .momentum = 0.9, .nesterov = true, .maximize = true},
          {.lr = 0.1, .momentum = 0.9, .weight_decay = 0.01, .first = true}};
}
std::vector<AdamStep> adam_steps() {
  return {
      {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .t = 3},
      {.lr = 1e-2, .beta1 = 0.0, .beta2 = 0.99, .eps = 1e-6, .weight_decay = 0.1, .maximize = true},
      {.lr = 1e-2,
       .beta1 = 0.9,
       .beta2 = 0.999,
       .eps = 1e-8,
       .weight_decay = 0.1,
       .decoupled = true,
       .amsgrad = true,
       .t = 1000}};
}

constexpr DType kFloating[] = {DType::f64, DType::f32, DType::bf16, DType::f16};

}  // namespace

TEST_CASE("cuda: optimizer steps are the CPU's") {
  for (DType dtype : kFloating) {
    const Arena start(kCuts.back(), dtype);
    const auto compare = [&](const auto& slot, const auto& step) {
      const Arena cpu(start, kCPU), gpu(start, kGpu);
      for (int i = 0; i < 2; ++i) {
        slot(kCPU, dtype, runs_of(cpu), step);
        slot(kGpu, dtype, runs_of(gpu), step);
      }
      check_equal(gpu, cpu, roundings(dtype, 8));
    };
    for (const SgdStep& step : sgd_steps()) {
      INFO(name_of(dtype) << " momentum " << step.momentum << " first " << step.first);
      compare(sgd_step, step);
    }
    for (const AdamStep& step : adam_steps()) {
      INFO(name_of(dtype) << " beta1 " << step.beta1 << " amsgrad " << step.amsgrad);
      compare(adam_step, step);
    }
  }
  sgd_step(kGpu, DType::f32, OptimRuns{}, SgdStep{});
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: a step over many stretches is the step over all, bit for bit") {
  for (DType dtype : kFloating) {
    INFO(name_of(dtype));
    const Arena start(20000, dtype);
    const Arena whole(start, kGpu), split(start, kGpu);
    std::vector<OptimRun> runs;  // more than fit in one launch, most of them unaligned
    for (int64_t at = 0, size = 1; at < 20000; at += size, size = size % 223 + 2)
      runs.push_back(split.run(at, std::min<int64_t>(at + size, 20000)));
    REQUIRE(runs.size() > 150);
    const std::vector<OptimRun> one{whole.run(0, 20000)};
    for (bool backwards : {false, true}) {
      const Backwards order(backwards);
      for (const AdamStep& step : adam_steps()) {
        adam_step(kGpu, dtype, one, step);
        adam_step(kGpu, dtype, runs, step);
      }
      for (const SgdStep& step : sgd_steps()) {
        sgd_step(kGpu, dtype, one, step);
        sgd_step(kGpu, dtype, runs, step);
      }
      CHECK(same_bits(split.param, whole.param));
      for (int i = 0; i < 3; ++i) CHECK(same_bits(split.state[i], whole.state[i]));
    }
  }
}

TEST_CASE("cuda: a stretch in pieces is its pieces, bit for bit, as on the CPU") {
  struct Pieces {
    int64_t begin, piece, step, count;
  };
  // Aligned ones, longer than a block of the CPU's, and of odd lengths.
  const Pieces shapes[] = {{512, 512, 1536, 12}, {0, 9000, 10000, 2}, {3, 7, 11, 900}};
  for (Device device : {kCPU, kGpu})
    for (DType dtype : kFloating)
      for (const Pieces& p : shapes) {
        INFO(cat(device) << " " << name_of(dtype) << " pieces of " << p.piece);
        const Arena start(20000, dtype);
        const Arena whole(Arena(20000, dtype), device), split(Arena(20000, dtype), device);
        std::vector<OptimRun> runs{whole.run(p.begin, p.begin + p.piece * p.count)}, single;
        runs[0].piece = p.piece;
        runs[0].step = p.step;
        std::vector<GradRun> grads{
            {const_cast<void*>(runs[0].grad), runs[0].numel, p.piece, p.step}};
        std::vector<GradRun> single_grads;
        for (int64_t i = 0; i < p.count; ++i) {
          const int64_t at = p.begin + i * p.step;
          single.push_back(split.run(at, at + p.piece));
          single_grads.push_back({const_cast<void*>(single.back().grad), p.piece});
        }
        for (const AdamStep& step : adam_steps()) {
          adam_step(device, dtype, runs, step);
          adam_step(device, dtype, single, step);
        }
        for (const SgdStep& step : sgd_steps()) {
          sgd_step(device, dtype, runs, step);
          sgd_step(device, dtype, single, step);
        }
        CHECK(same_bits(split.param, whole.param));
        CHECK(!same_bits(split.param, start.param));
        for (int i = 0; i < 3; ++i) CHECK(same_bits(split.state[i], whole.state[i]));

        const Tensor scale = full({}, 8, {DType::f32, device});
        const Tensor found = zeros({}, {DType::f32, device});
        const Tensor total = full({}, 3, {DType::f64, device});
        for (const auto& some : {grads, single_grads}) {
          unscale(device, dtype, some, scale, found);
          clip_by_value(device, dtype, some, 0.1);
          clip_by_norm(device, dtype, some, total, 1);
        }
        CHECK(same_bits(split.grad, whole.grad));
        CHECK(!same_bits(split.grad, start.grad));
        CHECK(found.item() == 0);
      }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: gradient norms and clipping are the CPU's") {
  const auto runs_over = [](const Tensor& t) {
    std::vector<GradRun> runs;
    for (size_t i = 0; i + 1 < kCuts.size(); ++i)
      runs.push_back({static_cast<std::byte*>(t.raw_data()) + kCuts[i] * item_size(t.dtype()),
                      kCuts[i + 1] - kCuts[i]});
    for (int i = 0; i < 300; ++i)  // further launches
      runs.push_back({static_cast<std::byte*>(t.raw_data()) + 7 * i * item_size(t.dtype()), 7});
    return runs;
  };
  for (DType dtype : kFloating) {
    for (bool with_nan : {false, true}) {
      const Tensor cpu = noise({kCuts.back()}, dtype, 9);
      if (with_nan) raw::fill_(raw::slice(cpu, 0, 6000, 6001), NAN);
      const Tensor gpu = on_gpu(cpu);
      const int64_t blocks = norm_blocks(runs_over(cpu));
      for (double p : {1.0, 2.0, 3.0, static_cast<double>(INFINITY)}) {
        INFO(name_of(dtype) << " p " << p << " nan " << with_nan);
        const Tensor cpu_partial = empty({blocks}, {DType::f64});
        const Tensor gpu_partial = empty({blocks}, {DType::f64, kGpu});
        const Tensor cpu_total = empty({}, {DType::f64}), gpu_total = empty({}, {DType::f64, kGpu});
        norm_partial(kCPU, cpu_partial, dtype, runs_over(cpu), p);
        norm_partial(kGpu, gpu_partial, dtype, runs_over(gpu), p);
        CHECK(difference(gpu_partial, cpu_partial) < 1e-12);
        norm_total(kCPU, cpu_total, cpu_partial, p);
        norm_total(kGpu, gpu_total, gpu_partial, p);
        CHECK(difference(gpu_total, cpu_total) < 1e-12);
      }
    }
    for (double total : {0.5, 4.0, static_cast<double>(NAN)}) {
      INFO(name_of(dtype) << " total " << total);
      const Tensor cpu = noise({kCuts.back()}, dtype, 10), gpu = on_gpu(cpu);
      clip_by_norm(kCPU, dtype, runs_over(cpu), full({}, total, {DType::f64}), 1.0);
      clip_by_norm(kGpu, dtype, runs_over(gpu), full({}, total, {DType::f64, kGpu}), 1.0);
      CHECK(difference(gpu, cpu) == 0);
      raw::fill_(raw::slice(cpu, 0, 3, 4), NAN);
      raw::fill_(raw::slice(gpu, 0, 3, 4), NAN);
      clip_by_value(kCPU, dtype, runs_over(cpu), 0.25);
      clip_by_value(kGpu, dtype, runs_over(gpu), 0.25);
      CHECK(difference(gpu, cpu) == 0);
    }
  }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: a captured step reads its numbers when it runs") {
  for (DType dtype : {DType::f32, DType::f64}) {
    const Arena start(5000, dtype);
    const Arena captured(start, kGpu), eager(start, kGpu);
    const Tensor lr = full({}, 0.1, {DType::f64, kGpu}), skip = zeros({}, {DType::f32, kGpu});
    const Tensor momentum = full({}, 0.9, {DType::f64, kGpu});
    const Tensor steps = zeros({3}, {DType::f64, kGpu});
    AdamStep adam{.lr = 7,
                  .beta1 = 0.9,
                  .beta2 = 0.999,
                  .eps = 1e-8,
                  .weight_decay = 0.1,
                  .decoupled = true,
                  .t = 50};
    SgdStep sgd{.lr = 7, .momentum = 0.9};
    const auto both_steps = [&](const Arena& arena) {
      const std::vector<OptimRun> runs{arena.run(0, 5000)};
      adam_step(kGpu, dtype, runs, adam);
      sgd_step(kGpu, dtype, runs, sgd);
    };
    Capture capture(kGpu);
    adam.from = sgd.from = {lr.data<double>(), steps.data<double>() + 1, skip.data<float>(),
                            momentum.data<double>()};
    advance_steps(kGpu, steps, skip);
    both_steps(captured);
    CapturedGraph graph = capture.finish();
    adam.from = sgd.from = {};
    for (int64_t t : {1, 2, 3}) {
      adam.lr = sgd.lr = 0.1 / static_cast<double>(t);
      adam.t = t;
      sgd.first = t == 1;
      adam.beta1 = sgd.momentum = 1 - 0.1 * static_cast<double>(t);
      raw::fill_(lr, adam.lr);
      raw::fill_(momentum, sgd.momentum);
      graph.launch();
      both_steps(eager);
    }
    raw::fill_(skip, 1);
    graph.launch();
    INFO(name_of(dtype));
    CHECK(same_bits(captured.param, eager.param));
    for (int i = 0; i < 3; ++i) CHECK(same_bits(captured.state[i], eager.state[i]));
    CHECK(difference(steps, full({3}, 3, {DType::f64})) == 0);
  }
}

TEST_CASE("cuda: gradients are unscaled and the scale follows, as on the CPU") {
  for (DType dtype : kFloating)
    for (double bad : {0.0, static_cast<double>(INFINITY), static_cast<double>(NAN)}) {
      INFO(name_of(dtype) << " with " << bad);
      Tensor results[2][5];
      for (int i : {0, 1}) {
        const Device device = i == 0 ? kCPU : kGpu;
        auto& [g, scale, found, tracker, skipped] = results[i];
        g = raw::to(noise({20001}, dtype, 1), dtype, device);
        if (bad != 0) raw::fill_(raw::slice(g, 0, 20000, 20001), bad);
        scale = full({}, 8, {DType::f32, device});
        found = zeros({}, {DType::f32, device});
        tracker = full({}, 1, {DType::i64, device});
        skipped = zeros({}, {DType::i64, device});
        const std::vector<GradRun> runs{
            {g.raw_data(), 9000},
            {nullptr, 0},
            {static_cast<std::byte*>(g.raw_data()) + 9000 * item_size(dtype), 11001}};
        unscale(device, dtype, runs, scale, found);
        CHECK((found.item() != 0) == (bad != 0));
        for (int step = 0; step < 3; ++step)
          update_scale(device, scale, tracker, skipped, found, ScaleUpdate{4, 0.5, 2});
      }
      for (int k = 0; k < 5; ++k) CHECK(difference(results[1][k], results[0][k]) == 0);
    }
  CHECK(emulator::guard_violations() == 0);
}
