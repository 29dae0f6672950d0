// Optimizer steps and clipping on the CPU: one pass over memory, blocks in parallel.
// Invariant: stretches are cut into blocks at fixed places, and vectors and single lanes run the
// same code, so an element's result does not depend on threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/optim.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "cairn/kernels/cpu/lanes-inl.h"
#include "cairn/kernels/optim.h"
#include "cairn/tensor/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

// body(tag, position) for positions [lo, hi): whole vectors, then single lanes.
template <class Acc, class Body>
HWY_INLINE void over(int64_t lo, int64_t hi, const Body& body) {
  const hn::ScalableTag<Acc> d;
  const OneLane<Acc> one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = lo;
  for (; i + lanes <= hi; i += lanes) body(d, i);
  for (; i < hi; ++i) body(one, i);
}

// The gradient as the step wants it: sign and L2 decay.
template <class D, class T, class Acc = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> gradient(D d, const T* g, hn::Vec<D> p, bool maximize, Acc decay) {
  auto v = load(d, g);
  if (maximize) v = hn::Neg(v);
  return decay != 0 ? hn::MulAdd(hn::Set(d, decay), p, v) : v;
}

template <class T>
void sgd(const OptimRun& run, int64_t lo, int64_t hi, const SgdStep& step) {
  using Acc = Accumulate<T>;
  T* const params = static_cast<T*>(run.param);
  const T* const grads = static_cast<const T*>(run.grad);
  Acc* const buffer = static_cast<Acc*>(run.state[0]);
  const Acc decay = static_cast<Acc>(step.weight_decay);
  const Acc momentum = static_cast<Acc>(step.momentum);
  const Acc fresh = static_cast<Acc>(1 - step.dampening);
  const Acc minus_lr = static_cast<Acc>(-step.lr);
  over<Acc>(lo, hi, [&](auto d, int64_t i) HWY_ATTR {
    const auto p = load(d, params + i);
    auto g = gradient(d, grads + i, p, step.maximize, decay);
    if (momentum != 0) {
      auto b = g;
      if (!step.first)
        b = hn::MulAdd(hn::Set(d, momentum), load(d, buffer + i), hn::Mul(hn::Set(d, fresh), g));
      store(d, b, buffer + i);
      g = step.nesterov ? hn::MulAdd(hn::Set(d, momentum), b, g) : b;
    }
    store(d, hn::MulAdd(hn::Set(d, minus_lr), g, p), params + i);
  });
}

template <class T>
void adam(const OptimRun& run, int64_t lo, int64_t hi, const AdamStep& step) {
  using Acc = Accumulate<T>;
  T* const params = static_cast<T*>(run.param);
  const T* const grads = static_cast<const T*>(run.grad);
  Acc* const mean = static_cast<Acc*>(run.state[0]);
  Acc* const square = static_cast<Acc*>(run.state[1]);
  Acc* const largest = static_cast<Acc*>(run.state[2]);
  const double t = static_cast<double>(step.t);
  const Acc minus_step = static_cast<Acc>(-step.lr / (1 - std::pow(step.beta1, t)));
  const Acc bias2 = static_cast<Acc>(std::sqrt(1 - std::pow(step.beta2, t)));
  const Acc eps = static_cast<Acc>(step.eps);
  const Acc shrink = static_cast<Acc>(step.decoupled ? 1 - step.lr * step.weight_decay : 1);
  const Acc decay = static_cast<Acc>(step.decoupled ? 0 : step.weight_decay);
  const Acc beta2 = static_cast<Acc>(step.beta2);
  const Acc share2 = static_cast<Acc>(1 - step.beta2);
  // m goes from its old value towards g; from the nearer end, so that beta1 = 0 gives g exactly.
  const bool from_old = 1 - step.beta1 < 0.5;
  const Acc share1 = static_cast<Acc>(from_old ? 1 - step.beta1 : -step.beta1);
  over<Acc>(lo, hi, [&](auto d, int64_t i) HWY_ATTR {
    const auto p = hn::Mul(load(d, params + i), hn::Set(d, shrink));
    const auto g = gradient(d, grads + i, p, step.maximize, decay);
    auto m = load(d, mean + i);
    m = hn::MulAdd(hn::Set(d, share1), hn::Sub(g, m), from_old ? m : g);
    store(d, m, mean + i);
    auto v = hn::Mul(load(d, square + i), hn::Set(d, beta2));
    v = hn::MulAdd(hn::Mul(hn::Set(d, share2), g), g, v);
    store(d, v, square + i);
    if (step.amsgrad) {
      v = hn::Max(load(d, largest + i), v);
      store(d, v, largest + i);
    }
    const auto denominator = hn::Add(hn::Div(hn::Sqrt(v), hn::Set(d, bias2)), hn::Set(d, eps));
    store(d, hn::Add(p, hn::Div(hn::Mul(hn::Set(d, minus_step), m), denominator)), params + i);
  });
}

// Sums go in sixteen f64 chains whatever the register width: f32 squares are exact in f64, so every
// target gives the same for them.
template <class T>
double partial_norm(const T* g, int64_t n, double p) {
  constexpr int64_t kChains = 16;
  if (p == 2 || p == 1) {
    double sums[kChains] = {};
    const int64_t whole = n / kChains * kChains;
    const auto term = [p](T x) HWY_ATTR {
      const double v = static_cast<double>(static_cast<Accumulate<T>>(x));
      return p == 2 ? v * v : std::abs(v);
    };
    for (int64_t i = 0; i < whole; i += kChains)
      for (int64_t j = 0; j < kChains; ++j) sums[j] += term(g[i + j]);
    for (int64_t i = whole; i < n; ++i) sums[i - whole] += term(g[i]);
    double sum = 0;
    for (double s : sums) sum += s;
    return sum;
  }
  double result = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = std::abs(static_cast<double>(static_cast<Accumulate<T>>(g[i])));
    if (!std::isinf(p))
      result += std::pow(v, p);
    else if (v > result || std::isnan(v))
      result = std::isnan(result) ? result : v;
  }
  return result;
}

template <class T>
void scale(T* g, int64_t n, double factor) {
  using Acc = Accumulate<T>;
  over<Acc>(0, n, [&](auto d, int64_t i) HWY_ATTR {
    store(d, hn::Mul(load(d, g + i), hn::Set(d, static_cast<Acc>(factor))), g + i);
  });
}

template <class T>
bool all_finite(const T* g, int64_t n) {
  using Acc = Accumulate<T>;
  constexpr int64_t kChains = 16;
  Acc sums[kChains] = {};  // of x - x: 0 where x is finite, else NaN, which stays
  const int64_t whole = n / kChains * kChains;
  const auto term = [](T x) HWY_ATTR { return static_cast<Acc>(x) - static_cast<Acc>(x); };
  for (int64_t i = 0; i < whole; i += kChains)
    for (int64_t j = 0; j < kChains; ++j) sums[j] += term(g[i + j]);
  for (int64_t i = whole; i < n; ++i) sums[i - whole] += term(g[i]);
  Acc sum = 0;
  for (Acc s : sums) sum += s;
  return sum == 0;
}

template <class T>
void clamp(T* g, int64_t n, double bound) {
  using Acc = Accumulate<T>;
  over<Acc>(0, n, [&](auto d, int64_t i) HWY_ATTR {
    const auto high = hn::Set(d, static_cast<Acc>(bound));
    const auto low = hn::Set(d, static_cast<Acc>(-bound));
    auto v = load(d, g + i);
    v = hn::IfThenElse(hn::Gt(v, high), high, v);
    store(d, hn::IfThenElse(hn::Lt(v, low), low, v), g + i);
  });
}

#define CAIRN_BY_DTYPE(call)         \
  if (dtype == DType::f64) {         \
    using T = double;                \
    call;                            \
  } else if (dtype == DType::f32) {  \
    using T = float;                 \
    call;                            \
  } else if (dtype == DType::bf16) { \
    using T = bfloat16;              \
    call;                            \
  } else {                           \
    using T = float16;               \
    call;                            \
  }

void sgd_block(DType dtype, const OptimRun& run, int64_t lo, int64_t hi, const SgdStep& step) {
  CAIRN_BY_DTYPE(sgd<T>(run, lo, hi, step))
}
void adam_block(DType dtype, const OptimRun& run, int64_t lo, int64_t hi, const AdamStep& step) {
  CAIRN_BY_DTYPE(adam<T>(run, lo, hi, step))
}
double norm_block(DType dtype, const void* g, int64_t lo, int64_t hi, double p) {
  CAIRN_BY_DTYPE(return partial_norm(static_cast<const T*>(g) + lo, hi - lo, p))
}
void scale_block(DType dtype, void* g, int64_t lo, int64_t hi, double factor) {
  CAIRN_BY_DTYPE(scale(static_cast<T*>(g) + lo, hi - lo, factor))
}
// Whether all elements were finite; the block stays in cache for the second pass.
bool unscale_block(DType dtype, void* g, int64_t lo, int64_t hi, double factor) {
  bool finite = true;
  CAIRN_BY_DTYPE(finite = all_finite(static_cast<const T*>(g) + lo, hi - lo))
  scale_block(dtype, g, lo, hi, factor);
  return finite;
}
void clamp_block(DType dtype, void* g, int64_t lo, int64_t hi, double bound) {
  CAIRN_BY_DTYPE(clamp(static_cast<T*>(g) + lo, hi - lo, bound))
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {
HWY_EXPORT(sgd_block);
HWY_EXPORT(adam_block);
HWY_EXPORT(norm_block);
HWY_EXPORT(scale_block);
HWY_EXPORT(unscale_block);
HWY_EXPORT(clamp_block);
namespace {

// Long enough to make handing it out cheap, short enough to balance small models.
constexpr int64_t kStepBlock = 8192;

// A stretch as blocks of at most `size` elements, none of which goes from one piece to the next.
struct Blocks {
  template <class Run>
  Blocks(const Run& run, int64_t size)
      : size(size), piece(run.piece > 0 ? run.piece : run.numel), step(run.step) {
    per_piece = (piece + size - 1) / size;
    count = run.piece > 0 ? run.numel / piece * per_piece : per_piece;
  }
  // Elements [lo, hi) of block b.
  int64_t lo(int64_t b) const { return b / per_piece * step + b % per_piece * size; }
  int64_t hi(int64_t b) const { return std::min(lo(b) + size, b / per_piece * step + piece); }

  int64_t size, piece, step, per_piece, count;
};

// body(run, lo, hi, number of the block) for all blocks of `size` elements, in parallel.
template <class Run, class Body>
void for_blocks(std::span<const Run> runs, int64_t size, const Body& body) {
  int64_t total = 0;
  for (const Run& run : runs) total += Blocks(run, size).count;
  parallel_for(0, total, 1, [&](int64_t first, int64_t last) {
    int64_t block = 0;  // number of the run's first block
    for (const Run& run : runs) {
      const Blocks blocks(run, size);
      const int64_t from = std::max(first, block), to = std::min(last, block + blocks.count);
      for (int64_t b = from; b < to; ++b) body(run, blocks.lo(b - block), blocks.hi(b - block), b);
      block += blocks.count;
      if (block >= last) break;
    }
  });
}

bool skips(const StepNumbers& from) { return from.skip != nullptr && *from.skip != 0; }

void cpu_sgd_step(DType dtype, OptimRuns runs, const SgdStep& given) {
  if (skips(given.from)) return;
  SgdStep step = given;
  if (given.from.lr != nullptr) step.lr = *given.from.lr;
  if (given.from.momentum != nullptr) step.momentum = *given.from.momentum;
  if (given.from.t != nullptr) step.first = *given.from.t == 1;
  for_blocks(runs, kStepBlock, [&](const OptimRun& run, int64_t lo, int64_t hi, int64_t) {
    HWY_DYNAMIC_DISPATCH(sgd_block)(dtype, run, lo, hi, step);
  });
}

void cpu_adam_step(DType dtype, OptimRuns runs, const AdamStep& given) {
  if (skips(given.from)) return;
  AdamStep step = given;
  if (given.from.lr != nullptr) step.lr = *given.from.lr;
  if (given.from.momentum != nullptr) step.beta1 = *given.from.momentum;
  if (given.from.t != nullptr) step.t = static_cast<int64_t>(*given.from.t);
  for_blocks(runs, kStepBlock, [&](const OptimRun& run, int64_t lo, int64_t hi, int64_t) {
    HWY_DYNAMIC_DISPATCH(adam_block)(dtype, run, lo, hi, step);
  });
}

void cpu_advance_steps(Out steps, In skip) {
  if (skip.defined() && *skip.data<float>() != 0) return;
  for (int64_t i = 0; i < steps.numel(); ++i) steps.data<double>()[i] += 1;
}

void cpu_norm_partial(Out partial, DType dtype, GradRuns runs, double p) {
  double* const out = partial.data<double>();
  for_blocks(runs, kNormBlock, [&](const GradRun& run, int64_t lo, int64_t hi, int64_t block) {
    out[block] = HWY_DYNAMIC_DISPATCH(norm_block)(dtype, run.data, lo, hi, p);
  });
}

void cpu_norm_total(Out total, In partial, double p) {
  const double* const in = partial.data<double>();
  double result = 0;
  for (int64_t i = 0; i < partial.numel(); ++i) {
    if (!std::isinf(p))
      result += in[i];
    else if (in[i] > result || std::isnan(in[i]))
      result = std::isnan(result) ? result : in[i];
  }
  if (p == 2)
    result = std::sqrt(result);
  else if (p != 1 && !std::isinf(p))
    result = std::pow(result, 1 / p);
  *total.data<double>() = result;
}

void cpu_clip_by_norm(DType dtype, GradRuns runs, In total, double max_norm) {
  const double factor = max_norm / (*total.data<double>() + 1e-6);
  if (factor >= 1) return;  // false for NaN, which spreads to all gradients
  for_blocks(runs, kStepBlock, [&](const GradRun& run, int64_t lo, int64_t hi, int64_t) {
    HWY_DYNAMIC_DISPATCH(scale_block)(dtype, run.data, lo, hi, factor);
  });
}

void cpu_clip_by_value(DType dtype, GradRuns runs, double bound) {
  for_blocks(runs, kStepBlock, [&](const GradRun& run, int64_t lo, int64_t hi, int64_t) {
    HWY_DYNAMIC_DISPATCH(clamp_block)(dtype, run.data, lo, hi, bound);
  });
}

void cpu_unscale(DType dtype, GradRuns runs, In scale, Out found_inf) {
  const double factor = 1 / static_cast<double>(*scale.data<float>());
  std::atomic<bool> finite{true};
  for_blocks(runs, kStepBlock, [&](const GradRun& run, int64_t lo, int64_t hi, int64_t) {
    if (!HWY_DYNAMIC_DISPATCH(unscale_block)(dtype, run.data, lo, hi, factor))
      finite.store(false, std::memory_order_relaxed);
  });
  if (!finite) *found_inf.data<float>() = 1;
}

void cpu_update_scale(Out scale, Out tracker, Out skipped, Out found_inf,
                      const ScaleUpdate& update) {
  float& factor = *scale.data<float>();
  int64_t& good = *tracker.data<int64_t>();
  if (*found_inf.data<float>() != 0) {
    factor = static_cast<float>(factor * update.backoff);
    good = 0;
    *skipped.data<int64_t>() += 1;
  } else if (++good >= update.interval) {
    const auto grown = static_cast<float>(factor * update.growth);
    if (std::isfinite(grown)) factor = grown;
    good = 0;
  }
  *found_inf.data<float>() = 0;
}

// Parameters, gradients and states: each element once.
int64_t bytes_of(DType dtype, OptimRuns runs) {
  const int64_t state_size = dtype == DType::f64 ? 8 : 4;
  int64_t bytes = 0;
  for (const OptimRun& run : runs) {
    const auto states = std::count_if(std::begin(run.state), std::end(run.state),
                                      [](const void* state) { return state != nullptr; });
    bytes += run.numel * (2 * item_size(dtype) + states * state_size);
  }
  return bytes;
}
void sgd_cost(profiler::Work& work, DType dtype, OptimRuns runs, const SgdStep&) {
  work.bytes += bytes_of(dtype, runs);
}
void adam_cost(profiler::Work& work, DType dtype, OptimRuns runs, const AdamStep&) {
  work.bytes += bytes_of(dtype, runs);
}

}  // namespace
}  // namespace cpu

Slot<void(DType, OptimRuns, const SgdStep&)> sgd_step{"sgd_step", cpu::cpu_sgd_step, cpu::sgd_cost};
Slot<void(DType, OptimRuns, const AdamStep&)> adam_step{"adam_step", cpu::cpu_adam_step,
                                                        cpu::adam_cost};
Slot<void(Out, In)> advance_steps{"advance_steps", cpu::cpu_advance_steps};
Slot<void(Out, DType, GradRuns, double)> norm_partial{"norm_partial", cpu::cpu_norm_partial};
Slot<void(Out, In, double)> norm_total{"norm_total", cpu::cpu_norm_total};
Slot<void(DType, GradRuns, In, double)> clip_by_norm{"clip_by_norm", cpu::cpu_clip_by_norm};
Slot<void(DType, GradRuns, double)> clip_by_value{"clip_by_value", cpu::cpu_clip_by_value};
Slot<void(DType, GradRuns, In, Out)> unscale{"unscale", cpu::cpu_unscale};
Slot<void(Out, Out, Out, Out, const ScaleUpdate&)> update_scale{"update_scale",
                                                                cpu::cpu_update_scale};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
