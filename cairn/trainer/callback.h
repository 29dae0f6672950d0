// Callback: something that watches a run, or steers it, without being part of the model.
// Invariant: hooks are called in the order written here (a test pins it); of one hook, every
// callback's comes first, in the order of TrainerOptions::callbacks with checkpoint callbacks last,
// and then the module's own. Only on_train_epoch_end differs: checkpoint callbacks come after the
// module.
#pragma once

#include <concepts>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "cairn/data/batch.h"
#include "cairn/optim/optimizer.h"
#include "cairn/tensor/tensor.h"
#include "cairn/trainer/checkpoint.h"
#include "cairn/trainer/stage.h"
#include "cairn/trainer/value.h"

namespace cairn::trainer {

class Trainer;
class TrainingModule;

class Callback {
 public:
  virtual ~Callback() = default;

  // Called before anything else of a stage, and as its very last.
  virtual void setup(Trainer&, TrainingModule&, Stage) {}
  virtual void teardown(Trainer&, TrainingModule&, Stage) {}

  virtual void on_fit_start(Trainer&, TrainingModule&) {}
  virtual void on_sanity_check_start(Trainer&, TrainingModule&) {}
  virtual void on_sanity_check_end(Trainer&, TrainingModule&) {}

  virtual void on_train_start(Trainer&, TrainingModule&) {}
  virtual void on_train_epoch_start(Trainer&, TrainingModule&) {}
  // These six lie in or around a step; see needs_batch.
  virtual void on_train_batch_start(Trainer&, TrainingModule&, const Batch&, int64_t batch_idx);
  virtual void on_before_zero_grad(Trainer&, TrainingModule&, optim::Optimizer&);
  virtual void on_before_backward(Trainer&, TrainingModule&, const Tensor& loss);
  virtual void on_after_backward(Trainer&, TrainingModule&);
  virtual void on_before_optimizer_step(Trainer&, TrainingModule&, optim::Optimizer&);
  // `loss` is what training_step returned; undefined for a skipped batch. A batch's tensors may be
  // used for the next one: keep a copy.
  virtual void on_train_batch_end(Trainer&, TrainingModule&, const Tensor& loss, const Batch&,
                                  int64_t batch_idx);

  virtual void on_validation_start(Trainer&, TrainingModule&) {}
  virtual void on_validation_epoch_start(Trainer&, TrainingModule&) {}
  virtual void on_validation_batch_start(Trainer&, TrainingModule&, const Batch&,
                                         int64_t /*batch_idx*/) {}
  virtual void on_validation_batch_end(Trainer&, TrainingModule&, const Batch&,
                                       int64_t /*batch_idx*/) {}
  virtual void on_validation_epoch_end(Trainer&, TrainingModule&) {}
  virtual void on_validation_end(Trainer&, TrainingModule&) {}

  virtual void on_train_epoch_end(Trainer&, TrainingModule&) {}
  virtual void on_train_end(Trainer&, TrainingModule&) {}
  virtual void on_fit_end(Trainer&, TrainingModule&) {}

  virtual void on_test_start(Trainer&, TrainingModule&) {}
  virtual void on_test_epoch_start(Trainer&, TrainingModule&) {}
  virtual void on_test_batch_start(Trainer&, TrainingModule&, const Batch&, int64_t /*batch_idx*/) {
  }
  virtual void on_test_batch_end(Trainer&, TrainingModule&, const Batch&, int64_t /*batch_idx*/) {}
  virtual void on_test_epoch_end(Trainer&, TrainingModule&) {}
  virtual void on_test_end(Trainer&, TrainingModule&) {}

  virtual void on_predict_start(Trainer&, TrainingModule&) {}
  virtual void on_predict_epoch_start(Trainer&, TrainingModule&) {}
  virtual void on_predict_batch_start(Trainer&, TrainingModule&, const Batch&,
                                      int64_t /*batch_idx*/) {}
  virtual void on_predict_batch_end(Trainer&, TrainingModule&, const Tensor& /*prediction*/,
                                    const Batch&, int64_t /*batch_idx*/) {}
  virtual void on_predict_epoch_end(Trainer&, TrainingModule&) {}
  virtual void on_predict_end(Trainer&, TrainingModule&) {}

  // A run is about to end with this error, which is thrown again afterwards.
  virtual void on_exception(Trainer&, TrainingModule&, const std::exception&) {}
  // The trainer has something to say that is no error; each text comes once per run.
  virtual void on_warning(Trainer&, const std::string& /*text*/) {}

  // What a checkpoint keeps of this callback; empty: nothing.
  virtual State state_dict() const { return {}; }
  virtual void load_state_dict(const State&) {}
  virtual void on_save_checkpoint(Trainer&, TrainingModule&, Checkpoint&) {}
  virtual void on_load_checkpoint(Trainer&, TrainingModule&, const Checkpoint&) {}

  // Under this name the state lies in a checkpoint. Callbacks with a state must differ in it.
  virtual std::string state_key() const;
  // On a GPU several steps may be launched as one. Asked before training batch `batch_idx` of a
  // callback that has hooks in or around a step. true: all of them are called, each in its place,
  // so a callback with hooks inside the step has it run function by function. false: those inside
  // the step are left out, and those around it may come late, with tensors of a later batch.
  virtual bool needs_batch(const Trainer&, int64_t batch_idx) const;
  // Checkpoint callbacks are called last, so that they see what the others logged.
  virtual bool is_checkpoint() const { return false; }
};

// A callback, strategy or logger given to the trainer: by value (Held takes it over), or by
// shared_ptr where the caller wants to read from it later.
template <class Base>
class Held {
 public:
  Held() = default;
  template <class T>
  requires std::derived_from<T, Base> Held(T value)
      : object_(std::make_shared<T>(std::move(value))) {}
  template <class T>
  requires std::derived_from<T, Base> Held(std::shared_ptr<T> object)
      : object_(std::move(object)) {}

  Base* get() const { return object_.get(); }
  Base* operator->() const { return object_.get(); }
  Base& operator*() const { return *object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  std::shared_ptr<Base> object_;
};

}  // namespace cairn::trainer
