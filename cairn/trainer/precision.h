// Precision: what a run computes in, by Lightning's names.
//   "32-true", "32"         as the module is (the default)
//   "64-true", "64"         module and batches converted to f64
//   "bf16-true", "16-true"  module and batches converted to the half type
//   "bf16-mixed"            the module's steps under Autocast(bf16); parameters stay f32
//   "16-mixed"              the same in f16 (on the CPU too, where Lightning takes bf16), with the
//                           loss scaled by a GradScaler; a skipped step counts as a step for
//                           global_step and schedules, not for the optimizer
// Invariant: without "-mixed" a step runs as it would without this class.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cairn/autograd/autocast.h"
#include "cairn/data/batch.h"
#include "cairn/nn/module.h"
#include "cairn/optim/scaler.h"
#include "cairn/trainer/value.h"

namespace cairn::trainer {

class Precision {
 public:
  // Throws Error for another name.
  explicit Precision(const std::string& name);

  const std::string& name() const { return name_; }  // the long one
  bool is_mixed() const { return cast_.has_value(); }

  // "-true": converts the module, and what is floating in a batch.
  void convert(nn::Module& module) const;
  Batch convert(Batch batch) const;

  // Around training_step, validation_step, test_step and predict_step; not around backward.
  class Scope {
   public:
    explicit Scope(const Precision& precision) {
      if (precision.cast_) autocast_.emplace(*precision.cast_);
    }

   private:
    std::optional<Autocast> autocast_;
  };

  // "16-mixed", of a fit; the others do nothing and give the loss back.
  void connect(optim::Optimizer& optimizer, Device device);
  Tensor scaled(const Tensor& loss) const;
  void before_step(optim::Optimizer& optimizer);  // once the window's gradients are complete
  void after_step();
  // Null without one.
  const optim::GradScaler* scaler() const { return scaler_.get(); }
  // Of the scaler; empty without one. A state without a scaler is left alone.
  State state_dict() const;
  void load_state_dict(const State& state);

 private:
  std::string name_;
  std::optional<DType> module_;  // what the module is converted to
  std::optional<DType> cast_;    // what steps are cast to
  std::unique_ptr<optim::GradScaler> scaler_;
};

}  // namespace cairn::trainer
