// The ways in which a batch norm can be computed on a GPU.
// Invariant: arguments are those of the slots in kernels/norm.h, whose contract holds for each way.
#pragma once

#include "cairn/kernels/norm.h"

namespace cairn::kernels::cuda {

struct NormForward {
  Out y, mean, rstd, running_mean, running_var, work, coef;
  In x, residual, w, b;
  double momentum, eps;
  bool relu;
};
struct NormBackward {
  const Dst &dx, &dresidual, &dw, &db;
  Out work, coef;
  In dy, x, y, w, b, mean, rstd;
  bool relu, training;
};

// --- own kernels, batch_norm_fwd.cu and batch_norm_bwd.cu ----------------------------------------
// Up to so many rows they take one launch.
constexpr int64_t kNormRowsOfOneLaunch = 2048;
void own_batch_norm_fwd(const NormForward& f);
void own_batch_norm_bwd(const NormBackward& g);

// --- cuDNN, dnn_norm.cpp -------------------------------------------------------------------------
// In training alone. False, having done nothing, where cuDNN is not there, cannot do it, or would
// not be faster.
struct DnnNorm {
  bool (*fwd)(const NormForward& f) = nullptr;
  bool (*bwd)(const NormBackward& g) = nullptr;
};
// Nulls in a build without cuDNN's headers.
void set_dnn_norm(const DnnNorm& functions);

}  // namespace cairn::kernels::cuda
