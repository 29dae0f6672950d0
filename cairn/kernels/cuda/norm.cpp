// The slots of batch norm in training: which way a call takes.
#include "cairn/kernels/cuda/norm.h"

namespace cairn::kernels::cuda {
namespace {

DnnNorm dnn;

void cuda_batch_norm_fwd(Out y, Out mean, Out rstd, Out running_mean, Out running_var, Out work,
                         Out coef, In x, In residual, In w, In b, double momentum, double eps,
                         bool relu) {
  const NormForward f{y,        mean, rstd, running_mean, running_var, work, coef, x,
                      residual, w,    b,    momentum,     eps,         relu};
  if (dnn.fwd == nullptr || !dnn.fwd(f)) own_batch_norm_fwd(f);
}

void cuda_batch_norm_bwd(const Dst& dx, const Dst& dresidual, const Dst& dw, const Dst& db,
                         Out work, Out coef, In dy, In x, In y, In w, In b, In mean, In rstd,
                         bool relu, bool training) {
  const NormBackward g{dx, dresidual, dw, db,   work, coef, dy,      x,
                       y,  w,         b,  mean, rstd, relu, training};
  if (dnn.bwd == nullptr || !dnn.bwd(g)) own_batch_norm_bwd(g);
}

}  // namespace

void set_dnn_norm(const DnnNorm& functions) { dnn = functions; }

void fill_norm() {
  batch_norm_fwd.fill(DeviceType::cuda, cuda_batch_norm_fwd);
  batch_norm_bwd.fill(DeviceType::cuda, cuda_batch_norm_bwd);
}

}  // namespace cairn::kernels::cuda
