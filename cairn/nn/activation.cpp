// Activations as layers.
#include "cairn/nn/activation.h"

#include "cairn/autograd/ops/reduce.h"

namespace cairn::nn {

Tensor Softmax::forward(const Tensor& x) { return softmax(x, dim_); }
Tensor LogSoftmax::forward(const Tensor& x) { return log_softmax(x, dim_); }

}  // namespace cairn::nn
