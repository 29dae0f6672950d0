// TrainerOptions: what is refused, and with which words.
#include "cairn/tensor/cuda.h"
#include "cairn/trainer/callbacks/model_checkpoint.h"
#include "cairn/trainer/callbacks/progress_bar.h"
#include "tests/catch.h"
#include "tests/trainer/small.h"

namespace cairn::test {
namespace {

std::string refused(TrainerOptions options) {
  return error_text([&] { Trainer t(std::move(options)); });
}

TEST_CASE("trainer: options that cannot mean anything") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(refused({.max_epochs = -2}) == "Trainer: max_epochs must be at least -1, got -2");
  CHECK(refused({.min_epochs = -1}) == "Trainer: min_epochs must be at least 0, got -1");
  CHECK(refused({.max_steps = -2}) == "Trainer: max_steps must be at least -1, got -2");
  CHECK(refused({.max_time = std::chrono::seconds(0)}) ==
        "Trainer: max_time must be positive, got 0 s");
  CHECK(refused({.limit_train_batches = 1.5}) ==
        "Trainer: limit_train_batches must be a count or a share from 0.0 to 1.0, got 1.5");
  CHECK(refused({.limit_val_batches = nan}) ==
        "Trainer: limit_val_batches must be a count or a share from 0.0 to 1.0, got nan");
  CHECK(refused({.limit_test_batches = -1}) ==
        "Trainer: limit_test_batches must be at least 0, got -1");
  CHECK(refused({.val_check_interval = 0.0}) ==
        "Trainer: val_check_interval must be a count or a share above 0.0 up to 1.0, got 0");
  CHECK(refused({.val_check_interval = 0}) ==
        "Trainer: val_check_interval must be at least 1, got 0");
  CHECK(refused({.check_val_every_n_epoch = {}}) ==
        "Trainer: val_check_interval must be an integer without check_val_every_n_epoch, got 1");
  CHECK(refused({.check_val_every_n_epoch = 0}) ==
        "Trainer: check_val_every_n_epoch must be at least 1, got 0");
  CHECK(refused({.num_sanity_val_steps = -2}) ==
        "Trainer: num_sanity_val_steps must be at least -1, got -2");
  CHECK(refused({.log_every_n_steps = -1}) ==
        "Trainer: log_every_n_steps must be at least 0, got -1");
  CHECK(refused({.accumulate_grad_batches = 0}) ==
        "Trainer: accumulate_grad_batches must be at least 1, got 0");
  CHECK(refused({.gradient_clip_val = -0.5}) ==
        "Trainer: gradient_clip_val must be finite and at least 0, got -0.5");
  CHECK(refused({.gradient_clip_val = nan}) ==
        "Trainer: gradient_clip_val must be finite and at least 0, got nan");
  CHECK(refused({.gradient_clip_algorithm = "norms"}) ==
        "Trainer: gradient_clip_algorithm must be norm or value, got norms");
}

TEST_CASE("trainer: accelerators, devices and strategies") {
  CHECK(refused({.devices = 1, .accelerator = "CPU"}).empty());
  CHECK(refused({.devices = "1", .accelerator = "auto", .strategy = "single_device"}).empty());
  CHECK(refused({.strategy = trainer::SingleDeviceStrategy()}).empty());
  if (cuda::device_count() == 0)
    for (const char* gpu : {"cuda", "GPU"})
      CHECK(refused({.accelerator = gpu}) ==
            cat("Trainer: accelerator must be auto or cpu without a usable GPU, got ", gpu, "; ",
                cuda::unavailable()));
  CHECK(refused({.accelerator = "tpu"}) ==
        "Trainer: accelerator must be auto, cpu or gpu, got tpu");
  CHECK(refused({.devices = 0}) == "Trainer: devices must be auto or at least 1, got 0");
  CHECK(refused({.devices = "-1"}) == "Trainer: devices must be auto or at least 1, got -1");
  CHECK(refused({.devices = 2, .strategy = "single_device"}) ==
        "Trainer: devices must be 1 with strategy single_device, got 2; one process trains on one "
        "device");
  for (const char* strategy : {"auto", "ddp"})
    CHECK(refused({.devices = 2, .strategy = strategy}) ==
          "Trainer: devices and num_nodes must be 1 in a process that no launcher started, got 2 "
          "and 1; start the program by `cairn launch --workers 2`, or let it call launch_ranks "
          "first");
  CHECK(refused({.num_nodes = 0}) == "Trainer: num_nodes must be at least 1, got 0");
  CHECK(refused({.accelerator = "cpu", .strategy = "DDP"}).empty());
  CHECK(refused({.accelerator = "cpu", .strategy = "ddp_find_unused_parameters_true"}).empty());
  CHECK(refused({.resident_data = "on"}) == "Trainer: resident_data must be auto or off, got on");
  CHECK(refused({.capture_steps = "yes"}) == "Trainer: capture_steps must be auto or off, got yes");
  CHECK(refused({.strategy = "fsdp"}) ==
        "Trainer: strategy must be auto, single_device, ddp, ddp_find_unused_parameters_true or "
        "ddp_find_unused_parameters_false, got fsdp");
}

TEST_CASE("trainer: max_time as text") {
  CHECK(trainer::TimeLimit("01:02:03:04").seconds() == 93784);
  for (const char* bad : {"", "1:2:3", "1:2:3:4:5", "a:0:0:0", "1::2:3", "00:00:00:-1"})
    CHECK(error_text([&] { trainer::TimeLimit t(bad); }) ==
          std::string("Trainer: max_time must read days:hours:minutes:seconds, got '") + bad + "'");
}

TEST_CASE("trainer: callbacks that contradict the options") {
  CHECK(
      refused({.callbacks = {trainer::ModelCheckpoint()}, .enable_checkpointing = false}) ==
      "Trainer: enable_checkpointing must be true with a ModelCheckpoint among the callbacks, got "
      "false");
  CHECK(refused({.callbacks = {trainer::ProgressBar()}, .enable_progress_bar = false}) ==
        "Trainer: enable_progress_bar must be true with a ProgressBar among the callbacks, got "
        "false");
  CHECK(refused({.callbacks = {trainer::ProgressBar(), trainer::ProgressBar()}}) ==
        "Trainer: callbacks must have at most one ProgressBar, got 2");
  CHECK(refused({.callbacks = {trainer::Held<Callback>()}}) ==
        "Trainer: callbacks must not be null");
  TempFolder folder;
  data::TensorDataset set = small_data(4);
  data::DataLoader loader(set, {.batch_size = 2});
  SmallModel model;
  TrainerOptions o{.max_epochs = 1};
  o.callbacks = {trainer::ModelCheckpoint({.dirpath = folder.path()}),
                 trainer::ModelCheckpoint({.dirpath = folder.path()})};
  o.logger = false;
  o.enable_progress_bar = false;
  Trainer t(std::move(o));
  CHECK(error_text([&] {
          t.fit(model, loader);
        }).find("Trainer: callbacks with a state must differ in state_key, got ModelCheckpoint{") ==
        0);
}

TEST_CASE("trainer: models and loaders that cannot be run") {
  data::TensorDataset set = small_data(4);
  data::DataLoader loader(set, {.batch_size = 2});
  Trainer t(quiet({.max_epochs = 1}));
  struct Empty : TrainingModule {
    nn::Linear layer{child("layer"), 3, 2};
  } empty;
  CHECK(error_text([&] { t.fit(empty, loader); }) ==
        "fit: model must override configure_optimizers");
  CHECK(error_text([&] { t.test(empty, loader); }) == "test: model must override test_step");
  CHECK(error_text([&] { t.predict(empty, loader); }) ==
        "predict: model must override predict_step");
  SmallModel model;
  CHECK(error_text([&] { t.fit(model, loader, loader); }) ==
        "fit: the validation loader must be another object than the training loader");
  trainer::DataModule nothing;
  CHECK(error_text([&] { t.fit(model, nothing); }) ==
        "fit: the DataModule must give a training loader, got none");
  CHECK(error_text([&] { t.test(model, nothing); }) ==
        "test: the DataModule must give a loader for this stage, got none");
  TrainerOptions o = quiet();
  o.limit_test_batches = 0.1;
  CHECK(error_text([&] { Trainer(std::move(o)).test(model, loader); }) ==
        "Trainer: a limit of 0.1 must leave at least one of 2 batches");

  struct WrongLoss : SmallModel {
    Tensor loss;
    Tensor training_step(const Batch&, int64_t) override { return loss; }
  } wrong;
  wrong.loss = zeros({3});
  CHECK(error_text([&] { t.fit(wrong, loader); }) ==
        "training_step: loss must have one element, got shape [3]");
  wrong.loss = zeros({});
  CHECK(error_text([&] { t.fit(wrong, loader); }) ==
        "training_step: loss must depend on parameters that require a gradient");
  CHECK(error_text([&] { t.optimizer(); }).empty());
  CHECK(error_text([&] { Trainer(quiet()).optimizer(); }) == "optimizer: trainer must be in a fit");
  CHECK(error_text([&] { Trainer(quiet()).make_checkpoint(); }) ==
        "make_checkpoint: trainer must be in a fit, or after one");
}

}  // namespace
}  // namespace cairn::test
