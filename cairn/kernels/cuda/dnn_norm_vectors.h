// The [C] vectors of a batch norm by cuDNN, which has them in f32: to it and back, one launch each.
#pragma once

#include <initializer_list>

#include "cairn/kernels/cuda/norm.h"

namespace cairn::kernels::cuda {

// to[c] = from[c] in f32, or `fallback` where there is no `from`.
struct NormVectorToF32 {
  const Tensor& from;
  float fallback;
  float* to;
};
constexpr size_t kMostNormVectors = 4;
void norm_vectors_to_f32(Device device, int64_t channels,
                         std::initializer_list<NormVectorToF32> vectors);

// f.mean and f.rstd, and from them the running statistics.
void finish_dnn_forward(const NormForward& f, const float* mean, const float* rstd);
// dw and db to where the gradients go.
void finish_dnn_backward(const NormBackward& g, const float* dw, const float* db);

}  // namespace cairn::kernels::cuda
