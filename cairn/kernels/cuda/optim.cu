// Optimizer steps and clipping: one pass over memory, one launch for all stretches that fit.
// Invariant: an element's result depends on that element alone, and vectors and single elements run
// the same code; a partial norm depends on its block alone.
#include "cairn/kernels/optim.h"

#include <cmath>

#include "cairn/kernels/cuda/runs.cuh"

namespace cairn::kernels::cuda {

using namespace cairn::cuda;

namespace {

constexpr int kThreads = 256;

// The device that holds what a stretch points to: these slots get no tensor that would tell.
Device device_of(const void* p) {
  cudaPointerAttributes attributes;
  CAIRN_CUDA(cudaPointerGetAttributes, &attributes, p);
  return Device(DeviceType::cuda, attributes.device);
}

// The first stretch that has elements, or null.
template <class Run>
const Run* first_of(std::span<const Run> runs) {
  for (const Run& run : runs)
    if (run.numel > 0) return &run;
  return nullptr;
}

template <class T, int kCount>
__device__ __forceinline__ Vector<T, kCount> read(const void* base, int64_t i) {
  return *reinterpret_cast<const Vector<T, kCount>*>(static_cast<const T*>(base) + i);
}
template <class T, int kCount>
__device__ __forceinline__ void write(void* base, int64_t i, const Vector<T, kCount>& v) {
  *reinterpret_cast<Vector<T, kCount>*>(static_cast<T*>(base) + i) = v;
}

// body<kCount>(position) for all of [begin, end) of the stretch: kEach elements a thread where the
// memory is aligned, then the rest one by one.
template <int kEach, class Run, class Body>
__device__ __forceinline__ void over(const Run& run, const Part& part, bool aligned,
                                     const Body& body) {
  const auto piece = static_cast<uint32_t>(run.piece);
  const int64_t gap = run.step - run.piece;
  const auto position = [&](int64_t i) {
    return piece == 0 ? i : i + static_cast<uint32_t>(i) / piece * gap;
  };
  aligned = aligned && run.piece % kEach == 0 && run.step % kEach == 0;
  const int64_t whole = aligned ? part.begin + (part.end - part.begin) / kEach * kEach : part.begin;
  const int64_t thread = threadIdx.x;
  for (int64_t i = part.begin + thread * kEach; i < whole; i += int64_t{kThreads} * kEach)
    body.template operator()<kEach>(position(i));
  for (int64_t i = whole + thread; i < part.end; i += kThreads)
    body.template operator()<1>(position(i));
}

// --- steps ---------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ bool states_aligned(const OptimRun& run, int bytes) {
  bool aligned = aligned_to(run.param, bytes) && aligned_to(run.grad, bytes);
  for (const void* state : run.state) aligned = aligned && aligned_to(state, 16);
  return aligned;
}

// a b, which the compiler must not join with a later sum: vectors and single elements agree.
template <class Acc>
__device__ __forceinline__ Acc rounded_product(Acc a, Acc b) {
  if constexpr (std::is_same_v<Acc, double>)
    return __dmul_rn(a, b);
  else
    return __fmul_rn(a, b);
}

// The gradient as the step wants it: sign and L2 decay.
template <class Acc>
__device__ __forceinline__ Acc gradient(Acc g, Acc p, bool maximize, Acc decay) {
  if (maximize) g = -g;
  return decay != 0 ? std::fma(decay, p, g) : g;
}

__device__ __forceinline__ bool skips(const StepNumbers& from) {
  return from.skip != nullptr && *from.skip != 0;
}
template <class Step>
__device__ __forceinline__ double learning_rate(const Step& step) {
  return step.from.lr != nullptr ? *step.from.lr : step.lr;
}
__device__ __forceinline__ double momentum_of(const StepNumbers& from, double given) {
  return from.momentum != nullptr ? *from.momentum : given;
}

template <class T>
__global__ void sgd_kernel(const __grid_constant__ Runs<OptimRun> runs,
                           const __grid_constant__ SgdStep step) {
  using Acc = Compute<T>;
  constexpr int kEach = kVector<Acc>;
  const Part part = part_of_block(runs);
  const OptimRun& run = runs.run[part.run];
  const Acc decay = static_cast<Acc>(step.weight_decay);
  const Acc momentum = static_cast<Acc>(momentum_of(step.from, step.momentum));
  const Acc fresh = static_cast<Acc>(1 - step.dampening);
  if (skips(step.from)) return;
  const Acc minus_lr = static_cast<Acc>(-learning_rate(step));
  const bool first = step.from.t != nullptr ? *step.from.t == 1 : step.first;
  const auto body = [&]<int kCount>(int64_t i) {
    auto p = read<T, kCount>(run.param, i);
    const auto grad = read<T, kCount>(run.grad, i);
    Vector<Acc, kCount> b{};
    if (momentum != 0 && !first) b = read<Acc, kCount>(run.state[0], i);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const Acc old = widen(p.value[k]);
      Acc g = gradient<Acc>(widen(grad.value[k]), old, step.maximize, decay);
      if (momentum != 0) {
        b.value[k] = first ? g : std::fma(momentum, b.value[k], fresh * g);
        g = step.nesterov ? std::fma(momentum, b.value[k], g) : b.value[k];
      }
      p.value[k] = narrow<T>(std::fma(minus_lr, g, old));
    }
    if (momentum != 0) write(run.state[0], i, b);
    write(run.param, i, p);
  };
  over<kEach>(run, part, states_aligned<T>(run, kEach * sizeof(T)), body);
}

// What Adam's elements need of the step.
template <class Acc>
struct AdamNumbers {
  Acc minus_step, bias2, eps, shrink, decay, beta2, share2, share1;
  bool from_old;  // m goes from its old value towards g; else back from g, so that beta1 = 0 is
                  // exact
};

// Computed on the device even where the host knows all: the two round powers differently, and a
// captured step must give what the same step gives at once. Two warps take one power each.
template <class Acc>
__device__ const AdamNumbers<Acc>& adam_numbers(const AdamStep& step) {
  __shared__ AdamNumbers<Acc> n;
  const double t = step.from.t != nullptr ? *step.from.t : static_cast<double>(step.t);
  if (threadIdx.x == 0) {
    const double lr = learning_rate(step);
    const double beta1 = momentum_of(step.from, step.beta1);
    n.minus_step = static_cast<Acc>(-lr / (1 - std::pow(beta1, t)));
    n.eps = static_cast<Acc>(step.eps);
    n.shrink = static_cast<Acc>(step.decoupled ? 1 - lr * step.weight_decay : 1);
    n.decay = static_cast<Acc>(step.decoupled ? 0 : step.weight_decay);
    n.beta2 = static_cast<Acc>(step.beta2);
    n.share2 = static_cast<Acc>(1 - step.beta2);
    n.from_old = 1 - beta1 < 0.5;
    n.share1 = static_cast<Acc>(n.from_old ? 1 - beta1 : -beta1);
  }
  if (threadIdx.x == kWarp) n.bias2 = static_cast<Acc>(std::sqrt(1 - std::pow(step.beta2, t)));
  __syncthreads();
  return n;
}

template <class T>
__global__ void adam_kernel(const __grid_constant__ Runs<OptimRun> runs,
                            const __grid_constant__ AdamStep step) {
  using Acc = Compute<T>;
  constexpr int kEach = kVector<Acc>;
  const Part part = part_of_block(runs);
  const OptimRun& run = runs.run[part.run];
  if (skips(step.from)) return;  // the whole block
  const AdamNumbers<Acc> n = adam_numbers<Acc>(step);
  const auto body = [&]<int kCount>(int64_t i) {
    auto p = read<T, kCount>(run.param, i);
    const auto grad = read<T, kCount>(run.grad, i);
    auto mean = read<Acc, kCount>(run.state[0], i);
    auto square = read<Acc, kCount>(run.state[1], i);
    Vector<Acc, kCount> top{};
    if (step.amsgrad) top = read<Acc, kCount>(run.state[2], i);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const Acc old = rounded_product<Acc>(widen(p.value[k]), n.shrink);
      const Acc g = gradient<Acc>(widen(grad.value[k]), old, step.maximize, n.decay);
      Acc& m = mean.value[k];
      Acc& v = square.value[k];
      m = std::fma(n.share1, g - m, n.from_old ? m : g);
      v = std::fma(n.share2 * g, g, v * n.beta2);
      Acc u = v;
      if (step.amsgrad) {
        // NaN in either stays.
        if (top.value[k] > v || top.value[k] != top.value[k]) u = top.value[k];
        top.value[k] = u;
      }
      const Acc denominator = std::sqrt(u) / n.bias2 + n.eps;
      p.value[k] = narrow<T>(old + n.minus_step * m / denominator);
    }
    write(run.state[0], i, mean);
    write(run.state[1], i, square);
    if (step.amsgrad) write(run.state[2], i, top);
    write(run.param, i, p);
  };
  over<kEach>(run, part, states_aligned<T>(run, kEach * sizeof(T)), body);
}

void cuda_sgd_step(DType dtype, OptimRuns runs, const SgdStep& step) {
  const OptimRun* const first = first_of(runs);
  if (first == nullptr) return;
  const Device device = device_of(first->param);
  dispatch_floating(dtype, "sgd_step", [&]<class T>() {
    for_each_launch(runs, part_for(device, runs), [&](const Runs<OptimRun>& some) {
      launch(device, "sgd_step", sgd_kernel<T>, {some.blocks, kThreads}, some, step);
    });
  });
}

void cuda_adam_step(DType dtype, OptimRuns runs, const AdamStep& step) {
  const OptimRun* const first = first_of(runs);
  if (first == nullptr) return;
  const Device device = device_of(first->param);
  dispatch_floating(dtype, "adam_step", [&]<class T>() {
    for_each_launch(runs, part_for(device, runs), [&](const Runs<OptimRun>& some) {
      launch(device, "adam_step", adam_kernel<T>, {some.blocks, kThreads}, some, step);
    });
  });
}

__global__ void advance_kernel(double* steps, int64_t count, const float* skip) {
  if (skip != nullptr && *skip != 0) return;
  for (int64_t i = global_thread(); i < count; i += global_threads()) steps[i] += 1;
}

void cuda_advance_steps(Out steps, In skip) {
  if (steps.numel() == 0) return;
  launch(steps.device(), "advance_steps", advance_kernel, grid_for(steps.numel()),
         steps.data<double>(), steps.numel(), skip.defined() ? skip.data<float>() : nullptr);
}

// --- clipping ------------------------------------------------------------------------------------

enum class NormKind { one, two, largest, other };

NormKind kind_of(double p) {
  if (std::isinf(p)) return NormKind::largest;
  return p == 2 ? NormKind::two : p == 1 ? NormKind::one : NormKind::other;
}

template <NormKind kKind>
struct JoinNorms {
  __device__ __forceinline__ double operator()(double a, double b) const {
    if constexpr (kKind == NormKind::largest)
      return b > a || b != b ? b : a;  // NaN wins
    else
      return a + b;
  }
};

template <NormKind kKind>
__device__ __forceinline__ double norm_term(double v, double p) {
  if constexpr (kKind == NormKind::two)
    return v * v;
  else if constexpr (kKind == NormKind::other)
    return std::pow(std::abs(v), p);
  else
    return std::abs(v);
}

// A thread's elements are the same whether it reads them as vectors or one by one.
template <class T, NormKind kKind>
__global__ void norm_partial_kernel(const __grid_constant__ Runs<GradRun> runs, double* partial,
                                    double p) {
  constexpr int kEach = kVector<T>;
  const Part part = part_of_block(runs);
  const T* const data = static_cast<const T*>(runs.run[part.run].data);
  const bool aligned = aligned_to(data, 16);
  const JoinNorms<kKind> join;
  double sum = 0;
  const auto take = [&](T x) { sum = join(sum, norm_term<kKind>(double{widen(x)}, p)); };
#pragma unroll 2
  for (int64_t i = part.begin + int64_t{threadIdx.x} * kEach; i < part.end;
       i += int64_t{kThreads} * kEach) {
    if (aligned && i + kEach <= part.end) {
      const auto v = read<T, kEach>(data, i);
#pragma unroll
      for (int k = 0; k < kEach; ++k) take(v.value[k]);
    } else {
      for (int64_t j = i; j < i + kEach && j < part.end; ++j) take(data[j]);
    }
  }
  sum = block_reduce(sum, 0.0, join);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <NormKind kKind>
__global__ void norm_total_kernel(double* total, const double* partial, int64_t count, double p) {
  const JoinNorms<kKind> join;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum = join(sum, partial[i]);
  sum = block_reduce(sum, 0.0, join);
  if (threadIdx.x != 0) return;
  if constexpr (kKind == NormKind::two) sum = std::sqrt(sum);
  if constexpr (kKind == NormKind::other) sum = std::pow(sum, 1 / p);
  *total = sum;
}

template <class Body>
void with_kind(double p, Body&& body) {
  switch (kind_of(p)) {
    case NormKind::one:
      return body.template operator()<NormKind::one>();
    case NormKind::two:
      return body.template operator()<NormKind::two>();
    case NormKind::largest:
      return body.template operator()<NormKind::largest>();
    case NormKind::other:
      return body.template operator()<NormKind::other>();
  }
}

void cuda_norm_partial(Out partial, DType dtype, GradRuns runs, double p) {
  double* out = partial.data<double>();
  dispatch_floating(dtype, "norm_partial", [&]<class T>() {
    with_kind(p, [&]<NormKind kKind>() {
      for_each_launch(runs, kNormBlock, [&](const Runs<GradRun>& some) {
        launch(partial.device(), "norm_partial", norm_partial_kernel<T, kKind>,
               {some.blocks, kThreads}, some, out, p);
        out += some.blocks;
      });
    });
  });
}

void cuda_norm_total(Out total, In partial, double p) {
  with_kind(p, [&]<NormKind kKind>() {
    launch(total.device(), "norm_total", norm_total_kernel<kKind>, {1, 1024}, total.data<double>(),
           partial.data<double>(), partial.numel(), p);
  });
}

// Elements in place, each by body(its value).
template <class T, class Body>
__device__ __forceinline__ void update(const Runs<GradRun>& runs, const Body& body) {
  constexpr int kEach = kVector<T>;
  const Part part = part_of_block(runs);
  const GradRun& run = runs.run[part.run];
  void* const data = run.data;
  over<kEach>(run, part, aligned_to(data, 16), [&]<int kCount>(int64_t i) {
    auto v = read<T, kCount>(data, i);
#pragma unroll
    for (int k = 0; k < kCount; ++k) v.value[k] = narrow<T>(body(widen(v.value[k])));
    write(data, i, v);
  });
}

template <class T>
__global__ void clip_by_norm_kernel(const __grid_constant__ Runs<GradRun> runs, const double* total,
                                    double max_norm) {
  using Acc = Compute<T>;
  const double factor = max_norm / (*total + 1e-6);
  if (factor >= 1) return;  // false for NaN, which spreads to all gradients
  const Acc f = static_cast<Acc>(factor);
  update<T>(runs, [f](Acc g) { return g * f; });
}

template <class T>
__global__ void clip_by_value_kernel(const __grid_constant__ Runs<GradRun> runs, double bound) {
  using Acc = Compute<T>;
  const Acc high = static_cast<Acc>(bound), low = static_cast<Acc>(-bound);
  update<T>(runs, [=](Acc g) {
    g = g > high ? high : g;
    return g < low ? low : g;
  });
}

void cuda_clip_by_norm(DType dtype, GradRuns runs, In total, double max_norm) {
  const Device device = total.device();
  dispatch_floating(dtype, "clip_by_norm", [&]<class T>() {
    for_each_launch(runs, part_for(device, runs), [&](const Runs<GradRun>& some) {
      launch(device, "clip_by_norm", clip_by_norm_kernel<T>, {some.blocks, kThreads}, some,
             total.data<double>(), max_norm);
    });
  });
}

void cuda_clip_by_value(DType dtype, GradRuns runs, double bound) {
  const GradRun* const first = first_of(runs);
  if (first == nullptr) return;
  const Device device = device_of(first->data);
  dispatch_floating(dtype, "clip_by_value", [&]<class T>() {
    for_each_launch(runs, part_for(device, runs), [&](const Runs<GradRun>& some) {
      launch(device, "clip_by_value", clip_by_value_kernel<T>, {some.blocks, kThreads}, some,
             bound);
    });
  });
}

// --- loss scaling --------------------------------------------------------------------------------

template <class T>
__global__ void unscale_kernel(const __grid_constant__ Runs<GradRun> runs, const float* scale,
                               float* found_inf) {
  using Acc = Compute<T>;
  const Acc factor = static_cast<Acc>(1 / static_cast<double>(*scale));
  bool finite = true;
  update<T>(runs, [&](Acc g) {
    finite = finite && g - g == 0;
    return g * factor;
  });
  const int any = __syncthreads_or(!finite);
  if (any && threadIdx.x == 0) *found_inf = 1;  // whichever block writes it, it is 1
}

void cuda_unscale(DType dtype, GradRuns runs, In scale, Out found_inf) {
  const Device device = scale.device();
  dispatch_floating(dtype, "unscale", [&]<class T>() {
    for_each_launch(runs, part_for(device, runs), [&](const Runs<GradRun>& some) {
      launch(device, "unscale", unscale_kernel<T>, {some.blocks, kThreads}, some,
             scale.data<float>(), found_inf.data<float>());
    });
  });
}

// One thread.
__global__ void update_scale_kernel(float* scale, int64_t* tracker, int64_t* skipped,
                                    float* found_inf, ScaleUpdate update) {
  const double factor = static_cast<double>(*scale);
  if (*found_inf != 0) {
    *scale = static_cast<float>(factor * update.backoff);
    *tracker = 0;
    *skipped += 1;
  } else if (++*tracker == update.interval) {
    const float grown = static_cast<float>(factor * update.growth);
    if (grown - grown == 0) *scale = grown;  // finite
    *tracker = 0;
  }
  *found_inf = 0;
}

void cuda_update_scale(Out scale, Out tracker, Out skipped, Out found_inf,
                       const ScaleUpdate& update) {
  launch(scale.device(), "update_scale", update_scale_kernel, {1, 1}, scale.data<float>(),
         tracker.data<int64_t>(), skipped.data<int64_t>(), found_inf.data<float>(), update);
}

}  // namespace

void fill_optim() {
  sgd_step.fill(DeviceType::cuda, cuda_sgd_step);
  adam_step.fill(DeviceType::cuda, cuda_adam_step);
  norm_partial.fill(DeviceType::cuda, cuda_norm_partial);
  norm_total.fill(DeviceType::cuda, cuda_norm_total);
  clip_by_norm.fill(DeviceType::cuda, cuda_clip_by_norm);
  clip_by_value.fill(DeviceType::cuda, cuda_clip_by_value);
  advance_steps.fill(DeviceType::cuda, cuda_advance_steps);
  unscale.fill(DeviceType::cuda, cuda_unscale);
  update_scale.fill(DeviceType::cuda, cuda_update_scale);
}

}  // namespace cairn::kernels::cuda
