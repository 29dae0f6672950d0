// Optimizer steps and gradient clipping over stretches of memory, whatever the tensors' shapes.
// Invariant: element i of a stretch depends on element i alone (norms: on blocks of fixed size,
// combined in order), so results are the same for every thread count.
#pragma once

#include <cstdint>
#include <span>

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

constexpr int kMaxOptimStates = 3;

// One stretch: `numel` elements of parameters and gradients of the call's dtype (any floating
// one) and of the states, which are f64 for f64 and f32 otherwise.
struct OptimRun {
  void* param = nullptr;
  const void* grad = nullptr;
  void* state[kMaxOptimStates] = {};
  int64_t numel = 0;
  // Where not 0: the elements lie in pieces of so many, `step` from one's start to the next one's.
  int64_t piece = 0, step = 0;
};
using OptimRuns = std::span<const OptimRun>;

// Numbers in memory of the parameters' device that a step reads when it runs, instead of the call's
// own: a step that was captured can be run again with others. Null: the call's own number holds.
struct StepNumbers {
  const double* lr = nullptr;
  const double* t = nullptr;         // number of this step, counted from 1
  const float* skip = nullptr;       // not 0: parameters and states stay as they are
  const double* momentum = nullptr;  // Adam's beta1
};

// Stochastic gradient descent. With g = +-grad + weight_decay p:
//   buf = momentum buf + (1 - dampening) g (or g at first); g = nesterov ? g + momentum buf : buf
//   p = p - lr g
// state[0] is buf; without momentum it is not touched.
struct SgdStep {
  double lr = 0;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
  bool maximize = false;
  bool first = false;  // buf holds nothing yet; where from.t is given: *from.t == 1
  StepNumbers from = {};
};
extern Slot<void(DType dtype, OptimRuns runs, const SgdStep& step)> sgd_step;

// Adam (Kingma & Ba 2015), AMSGrad (Reddi et al. 2018), AdamW (Loshchilov & Hutter 2019). With t
// the number of this step, counted from 1, and g = +-grad:
//   decoupled: p = p (1 - lr weight_decay), else g = g + weight_decay p
//   m = m + (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g g;  amsgrad: u = max(u, v), else u =
//   v p = p - lr / (1 - beta1^t) m / (sqrt(u) / sqrt(1 - beta2^t) + eps)
// state[0] is m, state[1] is v, state[2] is u where amsgrad.
struct AdamStep {
  double lr = 0;
  double beta1 = 0;
  double beta2 = 0;
  double eps = 0;
  double weight_decay = 0;
  bool decoupled = false;
  bool amsgrad = false;
  bool maximize = false;
  int64_t t = 1;
  StepNumbers from = {};
};
extern Slot<void(DType dtype, OptimRuns runs, const AdamStep& step)> adam_step;

// Adds 1 to every element of steps, f64 [n], unless *skip (f32, 0-d; may be undefined) is not 0.
extern Slot<void(Out steps, In skip)> advance_steps;

// --- clipping ------------------------------------------------------------------------------------
// One stretch of gradients of the call's dtype.
struct GradRun {
  void* data = nullptr;
  int64_t numel = 0;
  int64_t piece = 0, step = 0;  // as in OptimRun; 0 for norms
};
using GradRuns = std::span<const GradRun>;

// Elements behind one partial sum.
constexpr int64_t kNormBlock = 4096;
inline int64_t norm_blocks(GradRuns runs) {
  int64_t blocks = 0;
  for (const GradRun& run : runs) blocks += (run.numel + kNormBlock - 1) / kNormBlock;
  return blocks;
}

// partial, f64 [norm_blocks(runs)]: sums of |g|^p in f64, or the largest |g| for p = infinity (NaN
// wins).
extern Slot<void(Out partial, DType dtype, GradRuns runs, double p)> norm_partial;
// total, f64 0-d: partial's sum to the power 1 / p, or its maximum.
extern Slot<void(Out total, In partial, double p)> norm_total;
// g = g * min(1, max_norm / (total + 1e-6)); total as above.
extern Slot<void(DType dtype, GradRuns runs, In total, double max_norm)> clip_by_norm;
// g = min(max(g, -bound), bound); NaN stays NaN.
extern Slot<void(DType dtype, GradRuns runs, double bound)> clip_by_value;

// --- loss scaling --------------------------------------------------------------------------------
// g = g (1 / scale), with scale f32 0-d. Where an element is NaN or infinite, found_inf, f32 0-d,
// becomes 1; else it is left as it is.
extern Slot<void(DType dtype, GradRuns runs, In scale, Out found_inf)> unscale;

struct ScaleUpdate {
  double growth = 2;
  double backoff = 0.5;
  int64_t interval = 2000;  // steps without NaN and infinity until the scale grows
};
// After a step. found_inf not 0: scale = scale backoff, tracker = 0, skipped += 1. Else tracker +=
// 1, and at interval: scale = scale growth, unless that is infinite, and tracker = 0. Then
// found_inf = 0. scale and found_inf are f32 0-d, tracker and skipped i64 0-d.
extern Slot<void(Out scale, Out tracker, Out skipped, Out found_inf, const ScaleUpdate& update)>
    update_scale;

}  // namespace cairn::kernels
