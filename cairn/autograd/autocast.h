// Autocast: mixed precision by op. Inside the scope matrix products run in a half type, and what
// would lose too much there runs in f32; parameters stay as they are, and so do their gradients.
// Invariant: without a scope no op converts anything; a conversion is recorded as any op, so that
// gradients come back in the dtype of what was converted.
//
// The lists are PyTorch's (of CUDA, for every device). f64 is never converted.
//   in the half type: matmul, linear, feed_forward, conv2d
//   in f32:           exp, expm1, log, log1p, log2, pow, reciprocal, rsqrt, softplus, tan,
//                     sum, prod, cumsum, norm, softmax, log_softmax, logsumexp, layer_norm,
//                     cross_entropy, nll_loss, mse_loss, binary_cross_entropy_with_logits
//   as they come:     all others; two dtypes promote. batch_norm takes a half input with weights
//                     and statistics of f32.
#pragma once

#include <initializer_list>

#include "cairn/autograd/record.h"
#include "cairn/tensor/tensor.h"

namespace cairn {

// Ops of this thread are cast inside the scope. With enabled = false none are, inside another scope
// too. A parameter's copy in the half type is made once and kept until the outermost scope ends.
// Backward is never cast: it runs in the dtypes of the forward, inside the scope or outside.
class Autocast {
 public:
  // bf16 or f16.
  explicit Autocast(DType dtype, bool enabled = true);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  bool enabled_before_;
  DType dtype_before_;
};

namespace autocast {

// Whether ops are cast now, and the half type that products run in.
bool enabled();
DType dtype();

// For the top of an op:  if (autocast::narrows({x, w})) return op(autocast::narrowed(x), …);
// Whether the op has to convert any of its inputs. Undefined tensors do not count.
bool narrows(std::initializer_list<Input> inputs);
bool widens(std::initializer_list<Input> inputs);
// The input in the half type, or in f32; itself where there is nothing to convert.
Tensor narrowed(const Tensor& t);
Tensor widened(const Tensor& t);

}  // namespace autocast
}  // namespace cairn
