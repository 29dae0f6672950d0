// A convolution as cuDNN's graph of one operation.
#pragma once

#include "cairn/kernels/cuda/conv.h"
#include "cairn/kernels/cuda/dnn_graph.h"

namespace cairn::kernels::cuda {

struct DnnProblem {
  ConvKind kind = ConvKind::fwd;
  ConvShape shape{};
  DType dtype = DType::f32;
  bool add = false;        // to what the result holds
  int64_t alignment = 16;  // bytes, of all three tensors
  bool tf32 = true;        // f32 may be rounded to TF32
  bool deterministic = false;
};
// Its tensors x, w, y are named 1, 2, 3.
DnnGraph conv_graph(const DnnApi& api, cudnnHandle_t handle, const DnnProblem& problem,
                    const Descriptor* properties = nullptr);

}  // namespace cairn::kernels::cuda
