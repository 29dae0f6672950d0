// The order of hooks, against literal lists. Entries "C.x" are a callback's, "D.x" the data
// module's, "S.x" the strategy's, the others the module's own.
#include <memory>

#include "tests/catch.h"
#include "tests/trainer/small.h"

namespace cairn::test {
namespace {

using trainer::Checkpoint;
using trainer::Held;
using trainer::State;
using Log = std::vector<std::string>;

struct Recorder : Callback {
  explicit Recorder(Log& log) : log_(log) {}
  void add(const char* name) const { log_.push_back(std::string("C.") + name); }

  void setup(Trainer&, TrainingModule&, Stage s) override { add(cat("setup ", s).c_str()); }
  void teardown(Trainer&, TrainingModule&, Stage s) override { add(cat("teardown ", s).c_str()); }
// clang-format off
#define HOOK(name) \
  void name(Trainer&, TrainingModule&) override { add(#name); }
  HOOK(on_fit_start) HOOK(on_sanity_check_start) HOOK(on_sanity_check_end) HOOK(on_train_start)
  HOOK(on_train_epoch_start) HOOK(on_after_backward) HOOK(on_validation_start)
  HOOK(on_validation_epoch_start) HOOK(on_validation_epoch_end) HOOK(on_validation_end)
  HOOK(on_train_epoch_end) HOOK(on_train_end) HOOK(on_fit_end) HOOK(on_test_start)
  HOOK(on_test_epoch_start) HOOK(on_test_epoch_end) HOOK(on_test_end) HOOK(on_predict_start)
  HOOK(on_predict_epoch_start) HOOK(on_predict_epoch_end) HOOK(on_predict_end)
#undef HOOK
#define HOOK(name) \
  void name(Trainer&, TrainingModule&, const Batch&, int64_t) override { add(#name); }
  HOOK(on_train_batch_start) HOOK(on_validation_batch_start) HOOK(on_validation_batch_end)
  HOOK(on_test_batch_start) HOOK(on_test_batch_end) HOOK(on_predict_batch_start)
#undef HOOK
#define HOOK(name) \
  void name(Trainer&, TrainingModule&, optim::Optimizer&) override { add(#name); }
  HOOK(on_before_zero_grad) HOOK(on_before_optimizer_step)
#undef HOOK
      // clang-format on
      void on_before_backward(Trainer&, TrainingModule&, const Tensor&) override {
    add("on_before_backward");
  }
  void on_train_batch_end(Trainer&, TrainingModule&, const Tensor&, const Batch&,
                          int64_t) override {
    add("on_train_batch_end");
  }
  void on_predict_batch_end(Trainer&, TrainingModule&, const Tensor&, const Batch&,
                            int64_t) override {
    add("on_predict_batch_end");
  }
  void on_exception(Trainer&, TrainingModule&, const std::exception&) override {
    add("on_exception");
  }
  State state_dict() const override {
    if (recording_) add("state_dict");
    return {{"kept", 1}};
  }
  void load_state_dict(const State&) override { add("load_state_dict"); }
  void on_save_checkpoint(Trainer&, TrainingModule&, Checkpoint&) override {
    add("on_save_checkpoint");
  }
  void on_load_checkpoint(Trainer&, TrainingModule&, const Checkpoint&) override {
    add("on_load_checkpoint");
  }

  Log& log_;
  bool recording_ = false;  // the trainer also asks at the start, for the keys
};

struct RecordingModel : SmallModel {
  explicit RecordingModel(Log& log) : log_(log) {}
  void add(const char* name) { log_.push_back(name); }

  Tensor training_step(const Batch& b, int64_t i) override {
    Tensor loss = SmallModel::training_step(b, i);
    add("training_step");
    return loss;
  }
  void validation_step(const Batch& b, int64_t i) override {
    SmallModel::validation_step(b, i);
    add("validation_step");
  }
  void test_step(const Batch& b, int64_t i) override {
    SmallModel::test_step(b, i);
    add("test_step");
  }
  Tensor predict_step(const Batch& b, int64_t i) override {
    add("predict_step");
    return SmallModel::predict_step(b, i);
  }
  OptimizerConfig configure_optimizers() override {
    add("configure_optimizers");
    return SmallModel::configure_optimizers();
  }
  std::vector<Held<Callback>> configure_callbacks() override {
    add("configure_callbacks");
    return {};
  }
  void setup(Stage s) override { add(cat("setup ", s).c_str()); }
  void teardown(Stage s) override { add(cat("teardown ", s).c_str()); }
// clang-format off
#define HOOK(name) \
  void name() override { add(#name); }
  HOOK(prepare_data) HOOK(configure_model) HOOK(on_fit_start) HOOK(on_train_start)
  HOOK(on_train_epoch_start) HOOK(on_after_backward) HOOK(on_validation_start)
  HOOK(on_validation_epoch_start) HOOK(on_validation_epoch_end) HOOK(on_validation_end)
  HOOK(on_train_epoch_end) HOOK(on_train_end) HOOK(on_fit_end) HOOK(on_test_start)
  HOOK(on_test_epoch_start) HOOK(on_test_epoch_end) HOOK(on_test_end) HOOK(on_predict_start)
  HOOK(on_predict_epoch_start) HOOK(on_predict_epoch_end) HOOK(on_predict_end)
#undef HOOK
#define HOOK(name)               \
  void name() override {         \
    TrainingModule::name();      \
    add(#name);                  \
  }
  HOOK(on_validation_model_zero_grad) HOOK(on_validation_model_eval)
  HOOK(on_validation_model_train) HOOK(on_test_model_eval) HOOK(on_test_model_train)
  HOOK(on_predict_model_eval) HOOK(on_predict_model_train)
#undef HOOK
#define HOOK(name) \
  void name(const Batch&, int64_t) override { add(#name); }
  HOOK(on_validation_batch_start) HOOK(on_validation_batch_end) HOOK(on_test_batch_start)
  HOOK(on_test_batch_end) HOOK(on_predict_batch_start)
#undef HOOK
      // clang-format on
      void on_before_batch_transfer(Batch&) override {
    add("on_before_batch_transfer");
  }
  Batch transfer_batch_to_device(const Batch& b, Device d) override {
    add("transfer_batch_to_device");
    return TrainingModule::transfer_batch_to_device(b, d);
  }
  void on_after_batch_transfer(Batch&) override { add("on_after_batch_transfer"); }
  EpochControl on_train_batch_start(const Batch&, int64_t) override {
    add("on_train_batch_start");
    return EpochControl::proceed;
  }
  void on_before_zero_grad(optim::Optimizer&) override { add("on_before_zero_grad"); }
  void optimizer_zero_grad(optim::Optimizer& o) override {
    TrainingModule::optimizer_zero_grad(o);
    add("optimizer_zero_grad");
  }
  void on_before_backward(const Tensor&) override { add("on_before_backward"); }
  void on_before_optimizer_step(optim::Optimizer&) override { add("on_before_optimizer_step"); }
  void configure_gradient_clipping(optim::Optimizer& o, std::optional<double> value,
                                   const std::string& algorithm) override {
    TrainingModule::configure_gradient_clipping(o, value, algorithm);
    add("configure_gradient_clipping");
  }
  void on_train_batch_end(const Tensor&, const Batch&, int64_t) override {
    add("on_train_batch_end");
  }
  void on_predict_batch_end(const Tensor&, const Batch&, int64_t) override {
    add("on_predict_batch_end");
  }
  void on_save_checkpoint(Checkpoint&) override { add("on_save_checkpoint"); }
  void on_load_checkpoint(const Checkpoint&) override { add("on_load_checkpoint"); }

  Log& log_;
};

struct RecordingData : trainer::DataModule {
  explicit RecordingData(Log& log) : log_(log) {}
  void add(const char* name) const { log_.push_back(std::string("D.") + name); }
  void prepare_data() override { add("prepare_data"); }
  void setup(Stage) override { add("setup"); }
  void teardown(Stage) override { add("teardown"); }
  data::DataLoader* give(const char* name, data::DataLoader& loader) {
    add(name);
    return &loader;
  }
  data::DataLoader* train_dataloader() override { return give("train_dataloader", train); }
  data::DataLoader* val_dataloader() override { return give("val_dataloader", other); }
  data::DataLoader* test_dataloader() override { return give("test_dataloader", other); }
  data::DataLoader* predict_dataloader() override { return give("predict_dataloader", other); }
  State state_dict() const override {
    add("state_dict");
    return {{"kept", 2}};
  }
  void load_state_dict(const State&) override { add("load_state_dict"); }

  Log& log_;
  data::TensorDataset set = small_data(4);
  data::DataLoader train{set, {.batch_size = 2, .shuffle = true}};
  data::DataLoader other{set, {.batch_size = 2}};
};

struct RecordingStrategy : trainer::SingleDeviceStrategy {
  explicit RecordingStrategy(Log& log) : log_(&log) {}
  void backward(const Tensor& loss, bool sync) override {
    SingleDeviceStrategy::backward(loss, sync);
    log_->push_back("S.backward");
  }
  void optimizer_step(optim::Optimizer& o) override {
    SingleDeviceStrategy::optimizer_step(o);
    log_->push_back("S.optimizer_step");
  }
  Log* log_;
};

// Saves at the end of every epoch, as a checkpoint callback does.
struct Saver : Callback {
  Saver(std::string path, std::shared_ptr<Recorder> recorder)
      : path_(std::move(path)), recorder_(std::move(recorder)) {}
  void on_train_epoch_end(Trainer& t, TrainingModule&) override {
    recorder_->recording_ = true;
    t.save_checkpoint(path_);
    recorder_->recording_ = false;
  }
  bool is_checkpoint() const override { return true; }
  std::string path_;
  std::shared_ptr<Recorder> recorder_;
};

struct Setup {
  TempFolder folder;
  Log log;
  RecordingModel model{log};
  RecordingData data{log};
  std::shared_ptr<Recorder> recorder = std::make_shared<Recorder>(log);

  TrainerOptions options(int64_t max_epochs) {
    TrainerOptions o;
    o.max_epochs = max_epochs;
    o.strategy = RecordingStrategy(log);
    o.callbacks = {recorder, std::make_shared<Saver>(folder.path("a.ckpt"), recorder)};
    o.logger = false;
    o.enable_progress_bar = false;
    return o;
  }
};

Log operator+(Log a, const Log& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
Log twice(const Log& a) { return a + a; }

const Log kTransfer{"on_before_batch_transfer", "transfer_batch_to_device",
                    "on_after_batch_transfer"};

const Log kTrainBatch =
    kTransfer +
    Log{"C.on_train_batch_start",   "on_train_batch_start",        "training_step",
        "C.on_before_zero_grad",    "on_before_zero_grad",         "optimizer_zero_grad",
        "C.on_before_backward",     "on_before_backward",          "S.backward",
        "C.on_after_backward",      "on_after_backward",           "C.on_before_optimizer_step",
        "on_before_optimizer_step", "configure_gradient_clipping", "S.optimizer_step",
        "C.on_train_batch_end",     "on_train_batch_end"};

Log evaluation(const std::string& x) {
  const Log batch =
      kTransfer + Log{"C.on_" + x + "_batch_start", "on_" + x + "_batch_start", x + "_step",
                      "C.on_" + x + "_batch_end", "on_" + x + "_batch_end"};
  return Log{"on_" + x + "_model_eval", "C.on_" + x + "_start", "on_" + x + "_start",
             "C.on_" + x + "_epoch_start", "on_" + x + "_epoch_start"} +
         twice(batch) +
         Log{"C.on_" + x + "_epoch_end", "on_" + x + "_epoch_end", "C.on_" + x + "_end",
             "on_" + x + "_end", "on_" + x + "_model_train"};
}

Log beginning(const std::string& stage) {
  return {"configure_callbacks", "D.prepare_data", "prepare_data",   "D.setup",
          "C.setup " + stage,    "setup " + stage, "configure_model"};
}
Log ending(const std::string& stage) {
  return {"D.teardown", "C.teardown " + stage, "teardown " + stage};
}

const Log kEpoch = Log{"C.on_train_epoch_start", "on_train_epoch_start"} + twice(kTrainBatch) +
                   Log{"on_validation_model_zero_grad"} + evaluation("validation") +
                   Log{"C.on_train_epoch_end", "on_train_epoch_end",   "D.state_dict",
                       "C.state_dict",         "C.on_save_checkpoint", "on_save_checkpoint"};

const Log kFitEnd =
    Log{"C.on_train_end", "on_train_end", "C.on_fit_end", "on_fit_end"} + ending("fit");

// As one text per line, so that a failure shows where the lists part.
std::string text(const Log& log) {
  std::string out;
  for (const auto& entry : log) out += entry + "\n";
  return out;
}

TEST_CASE("trainer: order of hooks in fit") {
  Setup s;
  Trainer trainer(s.options(1));
  trainer.fit(s.model, s.data);
  // The hooks one by one, for the reader: this list is the contract.
  // clang-format off
  const Log expected = {
      "configure_callbacks", "D.prepare_data", "prepare_data", "D.setup", "C.setup fit", "setup fit",
      "configure_model", "configure_optimizers", "C.on_fit_start", "on_fit_start",
      // sanity check
      "C.on_sanity_check_start", "D.val_dataloader", "on_validation_model_eval",
      "C.on_validation_start", "on_validation_start", "C.on_validation_epoch_start",
      "on_validation_epoch_start",
      "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
      "C.on_validation_batch_start", "on_validation_batch_start", "validation_step",
      "C.on_validation_batch_end", "on_validation_batch_end",
      "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
      "C.on_validation_batch_start", "on_validation_batch_start", "validation_step",
      "C.on_validation_batch_end", "on_validation_batch_end",
      "C.on_validation_epoch_end", "on_validation_epoch_end", "C.on_validation_end",
      "on_validation_end", "on_validation_model_train", "C.on_sanity_check_end",
      // training
      "D.train_dataloader", "C.on_train_start", "on_train_start", "C.on_train_epoch_start",
      "on_train_epoch_start",
      "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
      "C.on_train_batch_start", "on_train_batch_start", "training_step", "C.on_before_zero_grad",
      "on_before_zero_grad", "optimizer_zero_grad", "C.on_before_backward", "on_before_backward",
      "S.backward", "C.on_after_backward", "on_after_backward", "C.on_before_optimizer_step",
      "on_before_optimizer_step", "configure_gradient_clipping", "S.optimizer_step",
      "C.on_train_batch_end", "on_train_batch_end",
      "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
      "C.on_train_batch_start", "on_train_batch_start", "training_step", "C.on_before_zero_grad",
      "on_before_zero_grad", "optimizer_zero_grad", "C.on_before_backward", "on_before_backward",
      "S.backward", "C.on_after_backward", "on_after_backward", "C.on_before_optimizer_step",
      "on_before_optimizer_step", "configure_gradient_clipping", "S.optimizer_step",
      "C.on_train_batch_end", "on_train_batch_end",
      // validation
      "on_validation_model_zero_grad", "on_validation_model_eval", "C.on_validation_start",
      "on_validation_start", "C.on_validation_epoch_start", "on_validation_epoch_start",
      "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
      "C.on_validation_batch_start", "on_validation_batch_start", "validation_step",
      "C.on_validation_batch_end", "on_validation_batch_end",
      "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
      "C.on_validation_batch_start", "on_validation_batch_start", "validation_step",
      "C.on_validation_batch_end", "on_validation_batch_end",
      "C.on_validation_epoch_end", "on_validation_epoch_end", "C.on_validation_end",
      "on_validation_end", "on_validation_model_train",
      // the end of the epoch: the module's own hook, then the checkpoint callback
      "C.on_train_epoch_end", "on_train_epoch_end", "D.state_dict", "C.state_dict",
      "C.on_save_checkpoint", "on_save_checkpoint",
      "C.on_train_end", "on_train_end", "C.on_fit_end", "on_fit_end",
      "D.teardown", "C.teardown fit", "teardown fit"};
  // clang-format on
  CHECK(text(s.log) == text(expected));
}

TEST_CASE("trainer: order of hooks in validate, test and predict") {
  const std::string stage = GENERATE("validate", "test", "predict");
  const std::string x = stage == "validate" ? "validation" : stage;
  Setup s;
  Trainer trainer(s.options(1));
  if (stage == "validate") trainer.validate(s.model, s.data);
  if (stage == "test") trainer.test(s.model, s.data);
  if (stage == "predict") trainer.predict(s.model, s.data);
  const std::string loader =
      stage == "validate" ? "D.val_dataloader" : "D." + stage + "_dataloader";
  CHECK(text(s.log) == text(beginning(stage) + Log{loader} + evaluation(x) + ending(stage)));
}

TEST_CASE("trainer: a stage without batches calls no loop hooks and asks for no loader") {
  Setup s;
  TrainerOptions o = s.options(1);
  o.limit_test_batches = 0;
  Trainer trainer(std::move(o));
  CHECK(trainer.test(s.model, s.data).empty());
  CHECK(text(s.log) == text(beginning("test") + ending("test")));
}

TEST_CASE("trainer: order of hooks when a run is resumed") {
  Setup first;
  Trainer(first.options(1)).fit(first.model, first.data);

  Setup s;
  Trainer trainer(s.options(2));
  trainer.fit(s.model, s.data, {.ckpt_path = first.folder.path("a.ckpt")});
  // No sanity check: it would disturb the restored state.
  const Log expected = beginning("fit") +
                       Log{"D.load_state_dict", "on_load_checkpoint",   "C.on_load_checkpoint",
                           "C.load_state_dict", "configure_optimizers", "C.on_fit_start",
                           "on_fit_start",      "D.train_dataloader",   "D.val_dataloader",
                           "C.on_train_start",  "on_train_start"} +
                       kEpoch + kFitEnd;
  CHECK(text(s.log) == text(expected));
}

TEST_CASE("trainer: hooks of a run that fails") {
  struct Failing : RecordingModel {
    using RecordingModel::RecordingModel;
    Tensor training_step(const Batch&, int64_t) override { fail("broken step"); }
  };
  Setup s;
  Failing model(s.log);
  Trainer trainer(s.options(1));
  CHECK(error_text([&] { trainer.fit(model, s.data); }) == "broken step");
  REQUIRE(s.log.size() > 2);
  CHECK(s.log.back() == "C.on_exception");
  CHECK(trainer.stage() == Stage::none);
  // The trainer can be used again.
  CHECK_NOTHROW(trainer.fit(s.model, s.data));
}

}  // namespace
}  // namespace cairn::test
