// A batch norm in training as cuDNN's graph: what its runtime-compiled engines for whole maps take.
// Invariant: statistics, weights and their gradients are f32; maps are channels-last, their
// channels in whole groups of 16 bytes.
#pragma once

#include "cairn/kernels/cuda/dnn_graph.h"

namespace cairn::kernels::cuda {

// Names of the tensors in a graph and in a call.
enum NormTensor : int64_t {
  kNormX = 1,
  kNormY,
  kNormResidual,
  kNormMean,
  kNormRstd,
  kNormW,
  kNormB,
  kNormEps,   // on the host
  kNormZero,  // on the host
  kNormDy,
  kNormDx,
  kNormDresidual,
  kNormDw,
  kNormDb,
  kNormInside  // and up: those between operations
};

// Forward: y = norm(x), relu(norm(x)) or relu(norm(x) + residual); there is no engine for a sum
// without relu. Backward: of norm(x), or, from y, of the other two, where dresidual, the gradient
// behind relu, may be kept.
struct NormProblem {
  bool backward = false;
  DType dtype = DType::bf16;
  std::array<int64_t, 4> sizes{};  // N, C, H, W
  bool residual = false;           // forward: it is added; backward: its gradient is kept
  bool relu = false;
  bool deterministic = false;
};
// Whether it is one of those.
bool has_norm_graph(const NormProblem& problem);
DnnGraph norm_graph(const DnnApi& api, cudnnHandle_t handle, const NormProblem& problem,
                    const Descriptor* properties = nullptr);

// Takes cuDNN for small maps too, wherever it has a plan. For tests.
void set_norms_by_dnn(bool always);

}  // namespace cairn::kernels::cuda
