// Losses.
#pragma once

#include "cairn/tensor/tensor.h"

namespace cairn {

enum class Reduction { none, mean, sum };

struct CrossEntropyOptions {
  Tensor weight = {};  // [C]
  int64_t ignore_index = -100;
  Reduction reduction = Reduction::mean;
  double label_smoothing = 0;
};
// logits [C], [N, C] or [N, C, d1, …]. target: i64 (or i32, u8) class indices of the same shape
// without C, or probabilities of logits' shape and dtype. mean divides by the weights of the
// targets that are not ignored (class indices) or by N d1 … (probabilities). A class outside [0, C)
// that is not ignore_index throws with its position.
Tensor cross_entropy(const Tensor& logits, const Tensor& target,
                     const CrossEntropyOptions& options = {});

struct NllLossOptions {
  Tensor weight = {};
  int64_t ignore_index = -100;
  Reduction reduction = Reduction::mean;
};
// log_probs [C], [N, C] or [N, C, d1, …]; target as class indices above.
Tensor nll_loss(const Tensor& log_probs, const Tensor& target, const NllLossOptions& options = {});

// Shapes broadcast.
Tensor mse_loss(const Tensor& input, const Tensor& target, Reduction reduction = Reduction::mean);

struct BceWithLogitsOptions {
  Tensor weight = {};      // broadcasts to input
  Tensor pos_weight = {};  // broadcasts to input
  Reduction reduction = Reduction::mean;
};
// input and target of one shape.
Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target,
                                        const BceWithLogitsOptions& options = {});

}  // namespace cairn
