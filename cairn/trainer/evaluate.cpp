// The evaluation loop: validation inside and outside of fit, test, predict.
// Invariant: it records no gradients, and every submodule has its own mode back afterwards.
#include <utility>

#include "cairn/autograd/record.h"
#include "cairn/trainer/trainer.h"

namespace cairn::trainer {

struct Trainer::Evaluation {
  using OfCallback = void (Callback::*)(Trainer&, TrainingModule&);
  using OfModule = void (TrainingModule::*)();
  using BatchOfCallback = void (Callback::*)(Trainer&, TrainingModule&, const Batch&, int64_t);
  using BatchOfModule = void (TrainingModule::*)(const Batch&, int64_t);
  struct Pair {
    OfCallback callback;
    OfModule module;
  };
  struct BatchPair {
    BatchOfCallback callback;
    BatchOfModule module;
  };

  const EvaluationHooks& names;
  OfModule eval;
  OfModule train;
  Pair start;
  Pair epoch_start;
  BatchPair batch_start;
  BatchOfModule step;   // null: predict_step, which gives a tensor
  BatchPair batch_end;  // null: that of predict
  Pair epoch_end;
  Pair end;

  static const Evaluation& of(Stage stage);
};

const Trainer::Evaluation& Trainer::Evaluation::of(Stage stage) {
  using C = Callback;
  using M = TrainingModule;
  static const Evaluation kValidation{
      kValidationHooks,
      &M::on_validation_model_eval,
      &M::on_validation_model_train,
      {&C::on_validation_start, &M::on_validation_start},
      {&C::on_validation_epoch_start, &M::on_validation_epoch_start},
      {&C::on_validation_batch_start, &M::on_validation_batch_start},
      &M::validation_step,
      {&C::on_validation_batch_end, &M::on_validation_batch_end},
      {&C::on_validation_epoch_end, &M::on_validation_epoch_end},
      {&C::on_validation_end, &M::on_validation_end}};
  static const Evaluation kTest{kTestHooks,
                                &M::on_test_model_eval,
                                &M::on_test_model_train,
                                {&C::on_test_start, &M::on_test_start},
                                {&C::on_test_epoch_start, &M::on_test_epoch_start},
                                {&C::on_test_batch_start, &M::on_test_batch_start},
                                &M::test_step,
                                {&C::on_test_batch_end, &M::on_test_batch_end},
                                {&C::on_test_epoch_end, &M::on_test_epoch_end},
                                {&C::on_test_end, &M::on_test_end}};
  static const Evaluation kPredict{kPredictHooks,
                                   &M::on_predict_model_eval,
                                   &M::on_predict_model_train,
                                   {&C::on_predict_start, &M::on_predict_start},
                                   {&C::on_predict_epoch_start, &M::on_predict_epoch_start},
                                   {&C::on_predict_batch_start, &M::on_predict_batch_start},
                                   nullptr,
                                   {nullptr, nullptr},
                                   {&C::on_predict_epoch_end, &M::on_predict_epoch_end},
                                   {&C::on_predict_end, &M::on_predict_end}};
  if (stage == Stage::test) return kTest;
  return stage == Stage::predict ? kPredict : kValidation;
}

void Trainer::run_evaluation(const RunOptions& options) {
  if (!options.ckpt_path.empty()) {
    const std::string path = strategy_->broadcast(resolve_checkpoint(options.ckpt_path));
    check(!path.empty(), stage_, ": ckpt_path must lead to a checkpoint, got '", options.ckpt_path,
          "', which leads to none");
    const Checkpoint checkpoint = strategy_->load_checkpoint(path);
    call_own(hooks::kLoadCheckpoint, &TrainingModule::on_load_checkpoint, checkpoint);
    load_weights(*model_, checkpoint, path);
  }
  precision_.convert(*model_);
  strategy_->setup(*model_);
  model_->zero_grad();
  const Limit& limit = stage_ == Stage::test      ? options_.limit_test_batches
                       : stage_ == Stage::predict ? options_.limit_predict_batches
                                                  : options_.limit_val_batches;
  data::DataLoader* loader = nullptr;
  int64_t own = 0;
  if (!limit.is_zero()) {
    loader = loaders_.evaluation;
    if (DataModule* m = loaders_.module)
      loader = stage_ == Stage::test      ? m->test_dataloader()
               : stage_ == Stage::predict ? m->predict_dataloader()
                                          : m->val_dataloader();
    check(loader != nullptr, stage_,
          ": the DataModule must give a loader for this stage, got none");
    loader = share(loader, false);
    own = limit_batches(limit, loader->size());
  }
  evaluate_stage(loader, count_batches(own));
}

int64_t Trainer::limit_batches(const Limit& limit, int64_t size) const {
  const int64_t batches = limit.of(size);
  check(batches > 0 || size == 0, "Trainer: a limit of ", limit, " must leave at least one of ",
        size, " batches");
  return batches;
}

void Trainer::evaluate_stage(data::DataLoader* loader, const Batches& batches) {
  evaluate(Evaluation::of(stage_), loader, batches);
}

// All processes go through it together, also those without batches.
void Trainer::evaluate(const Evaluation& kind, data::DataLoader* loader, const Batches& batches) {
  if (batches.most == 0) return;
  const profiler::Range range("evaluation");
  const NoGrad no_grad;
  evaluation_batches_ = batches.own;
  call_own(hooks::kTransfer, kind.eval);
  metrics_.begin_epoch(true);
  metrics_.context.evaluating = true;
  metrics_.context.fewest_batches = batches.fewest;
  metrics_.context.most_batches = batches.most;
  call(kind.names.start, kind.start.callback, kind.start.module);
  call(kind.names.epoch_start, kind.epoch_start.callback, kind.epoch_start.module);
  if (batches.own > 0) evaluate_batches(kind, *loader, batches.own);
  if (batches.fewest != batches.most) strategy_->patient_barrier();
  metrics_.context.batch_size = 0;
  metrics_.publish_epoch(true);
  call(kind.names.epoch_end, kind.epoch_end.callback, kind.epoch_end.module);
  metrics_.publish_epoch(true);
  result_ = metrics_.epoch_metrics(true);
  if (!sanity_checking()) {
    emit(result_);
    save_loggers();
    warn_of_local_metrics(true);
  }
  if (stage_ == Stage::fit) progress_.validated_at = progress_.total_batches;
  call(kind.names.end, kind.end.callback, kind.end.module);
  metrics_.context = {};
  call_own(hooks::kTransfer, kind.train);
}

void Trainer::evaluate_batches(const Evaluation& kind, data::DataLoader& loader, int64_t batches) {
  int64_t batch_idx = 0;
  loader.set_epoch(0);  // an evaluation always sees its data in the same order
  const auto first = [&] {
    const profiler::Range next("next_batch");
    return loader.begin();
  };
  const auto advance = [](data::DataLoader::Iterator& it) {
    const profiler::Range next("next_batch");
    ++it;
  };
  for (auto it = first(); it != loader.end(); advance(it)) {
    evaluate_batch(kind, *it, batch_idx);
    check_interrupt();
    if (++batch_idx == batches) break;
  }
}

void Trainer::evaluate_batch(const Evaluation& kind, Batch batch, int64_t batch_idx) {
  batch = transfer(std::move(batch));
  metrics_.begin_batch(true);
  metrics_.context.batch_size = batch.size();
  call(kind.names.batch_start, kind.batch_start.callback, kind.batch_start.module, batch,
       batch_idx);
  if (kind.step != nullptr) {
    {
      const Precision::Scope scope(precision_);
      call_own(kind.names.step, kind.step, batch, batch_idx);
    }
    call(kind.names.batch_end, kind.batch_end.callback, kind.batch_end.module, batch, batch_idx);
  } else {
    Tensor prediction;
    {
      const Precision::Scope scope(precision_);
      prediction = call_own(kind.names.step, &TrainingModule::predict_step, batch, batch_idx);
    }
    call(kind.names.batch_end, &Callback::on_predict_batch_end,
         &TrainingModule::on_predict_batch_end, prediction, batch, batch_idx);
    predictions_.push_back(std::move(prediction));
  }
  if (!sanity_checking()) emit(metrics_.step_metrics(true));
}

Batch Trainer::transfer(Batch batch) {
  call_own(hooks::kTransfer, &TrainingModule::on_before_batch_transfer, batch);
  batch = call_own(hooks::kTransfer, &TrainingModule::transfer_batch_to_device, batch,
                   strategy_->root_device());
  batch = precision_.convert(std::move(batch));
  call_own(hooks::kTransfer, &TrainingModule::on_after_batch_transfer, batch);
  return batch;
}

}  // namespace cairn::trainer
