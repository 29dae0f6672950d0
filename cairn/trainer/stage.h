// What the Trainer is doing, and what may be logged from which hook.
// Invariant: the rules for log() stand in this one table of hooks.
#pragma once

#include <cstdint>
#include <string_view>

#include "cairn/tensor/error.h"

namespace cairn::trainer {

// fit = training with its validations; sanity = the validation batches run before training.
enum class Stage : uint8_t { none, fit, sanity, validate, test, predict };

inline std::string_view name_of(Stage stage) {
  switch (stage) {
    case Stage::none:
      return "none";
    case Stage::fit:
      return "fit";
    case Stage::sanity:
      return "sanity";
    case Stage::validate:
      return "validate";
    case Stage::test:
      return "test";
    case Stage::predict:
      return "predict";
  }
  return "none";
}
inline void append_text(std::string& out, Stage stage) { out += name_of(stage); }

// What log() does in a hook when the caller does not say.
enum class LogRule : uint8_t {
  never,       // logging is an error
  step,        // on_step; on_epoch may be asked for
  epoch,       // on_epoch; on_step may be asked for (evaluation batches)
  epoch_only,  // on_epoch; on_step is an error
};

// A hook by name, with its rule.
struct Hook {
  const char* name;
  LogRule log = LogRule::never;
};

namespace hooks {
inline constexpr Hook kSetup{"setup"};
inline constexpr Hook kTeardown{"teardown"};
inline constexpr Hook kFitStart{"on_fit_start"};
inline constexpr Hook kFitEnd{"on_fit_end"};
inline constexpr Hook kSanityStart{"on_sanity_check_start"};
inline constexpr Hook kSanityEnd{"on_sanity_check_end"};
inline constexpr Hook kTrainStart{"on_train_start", LogRule::epoch_only};
inline constexpr Hook kTrainEnd{"on_train_end"};
inline constexpr Hook kTrainEpochStart{"on_train_epoch_start", LogRule::epoch_only};
inline constexpr Hook kTrainEpochEnd{"on_train_epoch_end", LogRule::epoch_only};
inline constexpr Hook kTrainBatchStart{"on_train_batch_start", LogRule::step};
inline constexpr Hook kTrainingStep{"training_step", LogRule::step};
inline constexpr Hook kTrainBatchEnd{"on_train_batch_end", LogRule::step};
inline constexpr Hook kBeforeZeroGrad{"on_before_zero_grad", LogRule::step};
inline constexpr Hook kBeforeBackward{"on_before_backward", LogRule::step};
inline constexpr Hook kBackward{"backward", LogRule::step};
inline constexpr Hook kAfterBackward{"on_after_backward", LogRule::step};
inline constexpr Hook kBeforeOptimizerStep{"on_before_optimizer_step", LogRule::step};
inline constexpr Hook kGradientClipping{"configure_gradient_clipping", LogRule::step};
inline constexpr Hook kOptimizerStep{"optimizer_step", LogRule::step};
inline constexpr Hook kTransfer{"transfer_batch_to_device"};
inline constexpr Hook kSaveCheckpoint{"on_save_checkpoint"};
inline constexpr Hook kLoadCheckpoint{"on_load_checkpoint"};
inline constexpr Hook kException{"on_exception"};
}  // namespace hooks

// The hooks of one kind of evaluation loop.
struct EvaluationHooks {
  Hook start, epoch_start, batch_start, step, batch_end, epoch_end, end;
};
inline constexpr EvaluationHooks kValidationHooks{
    {"on_validation_start", LogRule::epoch_only},
    {"on_validation_epoch_start", LogRule::epoch_only},
    {"on_validation_batch_start", LogRule::epoch},
    {"validation_step", LogRule::epoch},
    {"on_validation_batch_end", LogRule::epoch},
    {"on_validation_epoch_end", LogRule::epoch_only},
    {"on_validation_end"}};
inline constexpr EvaluationHooks kTestHooks{{"on_test_start", LogRule::epoch_only},
                                            {"on_test_epoch_start", LogRule::epoch_only},
                                            {"on_test_batch_start", LogRule::epoch},
                                            {"test_step", LogRule::epoch},
                                            {"on_test_batch_end", LogRule::epoch},
                                            {"on_test_epoch_end", LogRule::epoch_only},
                                            {"on_test_end"}};
inline constexpr EvaluationHooks kPredictHooks{
    {"on_predict_start"}, {"on_predict_epoch_start"}, {"on_predict_batch_start"},
    {"predict_step"},     {"on_predict_batch_end"},   {"on_predict_epoch_end"},
    {"on_predict_end"}};

}  // namespace cairn::trainer
