// What the losses share: totals in one launch, block and all, or as partial totals and their sum.
// Invariant: totals are kept in f64, in an order that depends on the shape alone.
#pragma once

#include <algorithm>

#include "cairn/kernels/loss.h"
#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda::losses {

using namespace cairn::cuda;

constexpr int kThreads = 256;
constexpr int kWholeThreads = 512;  // of a block that does everything
constexpr int64_t kMostBlocks = 1024;

// Whether a target counts, and may be used as an index.
__device__ __forceinline__ bool counts(int64_t target, int64_t classes, int64_t ignore_index) {
  return target >= 0 && target < classes && target != ignore_index;
}

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.raw_data()) : nullptr;
}

// --- totals --------------------------------------------------------------------------------------

// Where a loss goes. reduction none: an element each, and no totals.
template <class T>
struct LossOut {
  T* loss = nullptr;
  double* denominator = nullptr;  // what backward divides by; may be null
  double* partial = nullptr;      // [blocks][2]: sums and weights, for two launches
  double fixed = 0;               // what a mean divides by; 0: the weights' sum
  LossReduction reduction = LossReduction::none;
};

template <class T>
__device__ __forceinline__ void finish_loss(const LossOut<T>& out, double sum, double weight) {
  double divisor = 1;
  if (out.reduction == LossReduction::mean) divisor = out.fixed != 0 ? out.fixed : weight;
  if (out.denominator != nullptr) *out.denominator = divisor;
  if (out.reduction != LossReduction::none)
    *out.loss = narrow<T>(static_cast<Compute<T>>(sum / divisor));
}

// The end of a kernel whose threads hold parts of the totals: the result, or the block's partial.
template <class T>
__device__ __forceinline__ void keep_totals(const LossOut<T>& out, double sum, double weight) {
  if (out.reduction != LossReduction::none) {
    sum = block_reduce(sum, 0.0, Plus());
    weight = block_reduce(weight, 0.0, Plus());
  }
  if (threadIdx.x != 0) return;
  if (out.partial != nullptr) {
    out.partial[2 * int64_t{blockIdx.x}] = sum;
    out.partial[2 * int64_t{blockIdx.x} + 1] = weight;
  } else if (blockIdx.x == 0) {  // one block, or no totals
    finish_loss(out, sum, weight);
  }
}

template <class T>
__global__ void total_kernel(LossOut<T> out, int blocks) {
  double sum = 0, weight = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += static_cast<int>(blockDim.x)) {
    sum += out.partial[2 * i];
    weight += out.partial[2 * i + 1];
  }
  sum = block_reduce(sum, 0.0, Plus());
  weight = block_reduce(weight, 0.0, Plus());
  if (threadIdx.x == 0) finish_loss(out, sum, weight);
}

// Calls body(out) to launch `blocks` blocks, and then adds up their partial totals where there are
// several and the loss is one.
template <class T, class Body>
void with_totals(Device device, const char* name, LossOut<T> out, int64_t blocks, Body&& body) {
  if (blocks == 1 || out.reduction == LossReduction::none) return body(out);
  // Scratch of this device alone: the CPU's kernel keeps its partial totals on the stack.
  const Tensor partial = empty({2 * blocks}, {DType::f64, device});
  out.partial = partial.data<double>();
  body(out);
  launch(device, name, total_kernel<T>, {1, kThreads}, out, static_cast<int>(blocks));
}

// The gradient of a term: of its own loss element, or its share of the one there is.
template <class T>
struct LossGradient {
  const T* data;
  int64_t step;
  const double* denominator;  // null: `fixed`
  double fixed;
  __device__ __forceinline__ Compute<T> operator()(int64_t i) const {
    const double divisor = denominator != nullptr ? *denominator : fixed;
    return static_cast<Compute<T>>(static_cast<double>(widen(data[i * step])) / divisor);
  }
};
template <class T>
LossGradient<T> loss_gradient(In dloss, const double* denominator, double fixed,
                              LossReduction reduction) {
  return {dloss.data<T>(), reduction == LossReduction::none ? 1 : 0, denominator, fixed};
}

}  // namespace cairn::kernels::cuda::losses
