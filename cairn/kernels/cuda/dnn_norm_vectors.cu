// The [C] vectors of a batch norm by cuDNN, between f32 and what the slots ask for.
#include "cairn/kernels/cuda/dnn_norm_vectors.h"

#include "cairn/kernels/cuda/columns.cuh"
#include "cairn/tensor/cuda/launch.h"

namespace cairn::kernels::cuda {
namespace {

struct ToF32 {
  ChannelVector from[kMostNormVectors];
  float fallback[kMostNormVectors] = {};
  float* to[kMostNormVectors] = {};
  int count = 0;
  int64_t channels = 0;
};
__global__ void to_f32_kernel(ToF32 v) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= v.channels) return;
  for (int i = 0; i < v.count; ++i)
    v.to[i][c] = static_cast<float>(v.from[i].get(c, static_cast<double>(v.fallback[i])));
}

struct ForwardEnd {
  const float* mean32 = nullptr;
  const float* rstd32 = nullptr;
  double* mean = nullptr;
  double* rstd = nullptr;
  ChannelVector running_mean, running_var;
  int64_t rows = 0, channels = 0;
  double momentum = 0, eps = 0;
};
__global__ void forward_end_kernel(ForwardEnd f) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= f.channels) return;
  const double mean = double{f.mean32[c]}, rstd = double{f.rstd32[c]};
  f.mean[c] = mean;
  f.rstd[c] = rstd;
  if (f.running_mean.data == nullptr) return;
  // What rstd was rounded by is small beside eps, which is added wherever this is used.
  double variance = 1 / (rstd * rstd) - f.eps;
  variance = variance < 0 ? 0 : variance;  // NaN stays
  const double rows = static_cast<double>(f.rows), keep = 1 - f.momentum;
  f.running_mean.set(c, keep * f.running_mean.get(c, 0) + f.momentum * mean);
  f.running_var.set(c,
                    keep * f.running_var.get(c, 0) + f.momentum * (variance * (rows / (rows - 1))));
}

struct BackwardEnd {
  const float* dw32 = nullptr;
  const float* db32 = nullptr;
  ChannelVector dw, db;
  int64_t channels = 0;
};
__global__ void backward_end_kernel(BackwardEnd g) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= g.channels) return;
  g.dw.accumulate(c, double{g.dw32[c]});
  g.db.accumulate(c, double{g.db32[c]});
}

}  // namespace

void norm_vectors_to_f32(Device device, int64_t channels,
                         std::initializer_list<NormVectorToF32> vectors) {
  ToF32 v;
  v.channels = channels;
  for (const NormVectorToF32& one : vectors) {
    if (one.to == nullptr) continue;
    v.from[v.count] = ChannelVector(one.from);
    v.fallback[v.count] = one.fallback;
    v.to[v.count++] = one.to;
  }
  if (v.count == 0) return;
  cairn::cuda::launch(device, "batch_norm", to_f32_kernel, cairn::cuda::grid_for(channels), v);
}

void finish_dnn_forward(const NormForward& n, const float* mean, const float* rstd) {
  ForwardEnd f;
  f.mean32 = mean;
  f.rstd32 = rstd;
  f.mean = n.mean.data<double>();
  f.rstd = n.rstd.data<double>();
  f.running_mean = ChannelVector(n.running_mean);
  f.running_var = ChannelVector(n.running_var);
  f.channels = n.x.size(1);
  f.rows = n.x.numel() / f.channels;
  f.momentum = n.momentum;
  f.eps = n.eps;
  cairn::cuda::launch(n.x.device(), "batch_norm_fwd", forward_end_kernel,
                      cairn::cuda::grid_for(f.channels), f);
}

void finish_dnn_backward(const NormBackward& n, const float* dw, const float* db) {
  const int64_t channels = n.x.size(1);
  const BackwardEnd g{dw, db, ChannelVector(n.dw.tensor, n.dw.add),
                      ChannelVector(n.db.tensor, n.db.add), channels};
  cairn::cuda::launch(n.x.device(), "batch_norm_bwd", backward_end_kernel,
                      cairn::cuda::grid_for(channels), g);
}

}  // namespace cairn::kernels::cuda
