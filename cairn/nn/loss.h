// Losses as modules: `loss(input, target)`. Tensors among the options are buffers, so that they
// move with the module.
#pragma once

#include "cairn/autograd/ops/loss.h"
#include "cairn/nn/module.h"

namespace cairn::nn {

class CrossEntropyLoss final : public Module {
 public:
  explicit CrossEntropyLoss(const CrossEntropyOptions& options = {})
      : CrossEntropyLoss(Child{}, options) {}
  explicit CrossEntropyLoss(const Child& place, const CrossEntropyOptions& options = {})
      : Module(place), options_(options) {
    buffer("weight", options.weight);
  }
  Tensor operator()(const Tensor& logits, const Tensor& target) const {
    return cross_entropy(logits, target, options_);
  }

 private:
  CrossEntropyOptions options_;
};

class NLLLoss final : public Module {
 public:
  explicit NLLLoss(const NllLossOptions& options = {}) : NLLLoss(Child{}, options) {}
  explicit NLLLoss(const Child& place, const NllLossOptions& options = {})
      : Module(place), options_(options) {
    buffer("weight", options.weight);
  }
  Tensor operator()(const Tensor& log_probs, const Tensor& target) const {
    return nll_loss(log_probs, target, options_);
  }

 private:
  NllLossOptions options_;
};

class MSELoss final : public Module {
 public:
  explicit MSELoss(Reduction reduction = Reduction::mean) : MSELoss(Child{}, reduction) {}
  explicit MSELoss(const Child& place, Reduction reduction = Reduction::mean)
      : Module(place), reduction_(reduction) {}
  Tensor operator()(const Tensor& input, const Tensor& target) const {
    return mse_loss(input, target, reduction_);
  }

 private:
  Reduction reduction_;
};

class BCEWithLogitsLoss final : public Module {
 public:
  explicit BCEWithLogitsLoss(const BceWithLogitsOptions& options = {})
      : BCEWithLogitsLoss(Child{}, options) {}
  explicit BCEWithLogitsLoss(const Child& place, const BceWithLogitsOptions& options = {})
      : Module(place), options_(options) {
    buffer("weight", options.weight);
    buffer("pos_weight", options.pos_weight);
  }
  Tensor operator()(const Tensor& input, const Tensor& target) const {
    return binary_cross_entropy_with_logits(input, target, options_);
  }

 private:
  BceWithLogitsOptions options_;
};

}  // namespace cairn::nn
