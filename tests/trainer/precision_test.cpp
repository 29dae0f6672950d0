// The trainer's precisions: what is converted and cast, how near mixed training stays to f32, and
// the loss scale of "16-mixed" with skipped steps and resuming.
#include "cairn/trainer/precision.h"

#include <cmath>
#include <limits>

#include "cairn/autograd/ops/reduce.h"
#include "cairn/nn/norm.h"
#include "tests/catch.h"
#include "tests/trainer/small.h"

namespace cairn::test {
namespace {

double largest(const Tensor& t) { return amax(abs(raw::to(t, DType::f64))).item(); }

// Losses scaled down, so that 65536 times their gradients fit f16; at batch `overflow_at` far up.
struct PlainModel : SmallModel {
  int64_t overflow_at = -1;
  std::vector<DType> dtypes;  // of the output, at every step of any kind
  std::vector<DType> batches;
  std::vector<DType> gradients;
  double x = 0, w = 0, y = 0, residual = 0;  // largest of inputs, weights, outputs, y - target

  PlainModel() { dropout_p = 0; }
  Tensor output(const Batch& batch) {
    const Tensor y = forward(batch.input);
    dtypes.push_back(y.dtype());
    batches.push_back(batch.input.dtype());
    return y;
  }
  Tensor training_step(const Batch& batch, int64_t batch_idx) override {
    const Tensor out = output(batch);
    const Tensor target = cairn::to(batch.target, layer.weight.dtype());
    x = std::max(x, largest(batch.input));
    w = std::max({w, largest(layer.weight), largest(layer.bias)});
    y = std::max(y, largest(out));
    residual = std::max(residual, largest(detach(out) - detach(target)));
    Tensor loss = mse_loss(out, target);
    losses.push_back(loss.item<float>());
    return mul(loss, batch_idx == overflow_at ? 1e30 : 1.0 / 64);
  }
  void on_after_backward() override { gradients.push_back(grad(layer.weight).dtype()); }
  void validation_step(const Batch& batch, int64_t) override {
    log("val_loss", mean(square(output(batch))));
  }
  void test_step(const Batch& batch, int64_t) override {
    log("test_loss", mean(square(output(batch))));
  }
  Tensor predict_step(const Batch& batch, int64_t) override { return output(batch); }
  OptimizerConfig configure_optimizers() override {
    return optim::sgd(parameters(), {.lr = 1, .momentum = 0.5});
  }
};

constexpr int64_t kBatches = 6;

void start(PlainModel& model) {
  Generator generator(21);
  uniform_(model.layer.weight, -1, 1, generator);
  uniform_(model.layer.bias, -1, 1, generator);
}

TrainerOptions with(const std::string& precision) {
  TrainerOptions o = quiet({.max_epochs = 1});
  o.precision = precision;
  return o;
}

void fit(PlainModel& model, Trainer& trainer, const std::string& ckpt = {}) {
  data::TensorDataset set = small_data(4 * kBatches);
  data::DataLoader loader(set, {.batch_size = 4});
  trainer.fit(model, loader, {.ckpt_path = ckpt});
}

// What is known of the run after each batch.
struct Watch : Callback {
  std::string folder;
  std::vector<std::string> weights;
  std::vector<double> scales;
  std::vector<int64_t> skipped;
  void on_train_batch_end(Trainer& t, TrainingModule& m, const Tensor&, const Batch&,
                          int64_t batch_idx) override {
    weights.push_back(bits(m));
    if (const auto* scaler = t.precision().scaler()) {
      scales.push_back(scaler->scale_value());
      skipped.push_back(scaler->skipped_steps());
    }
    if (!folder.empty()) t.save_checkpoint(cat(folder, "/", batch_idx, ".ckpt"));
  }
  bool is_checkpoint() const override { return true; }
};

std::vector<double> weights_of(const PlainModel& model) {
  std::vector<double> out;
  for (const auto& [name, t] : model.state_dict()) {
    const Tensor flat = raw::contiguous(raw::to(t, DType::f64));
    out.insert(out.end(), flat.data<double>(), flat.data<double>() + flat.numel());
  }
  return out;
}

}  // namespace

TEST_CASE("trainer: precision has Lightning's names") {
  using trainer::Precision;
  CHECK(TrainerOptions{}.precision == "32-true");
  CHECK(Precision("32").name() == "32-true");
  CHECK(Precision("64").name() == "64-true");
  for (const char* name : {"32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"})
    CHECK(Precision(name).name() == name);
  CHECK(error_text([] { Trainer(with("8-bit")); }) ==
        "Trainer: precision must be one of 32-true 64-true bf16-true 16-true bf16-mixed 16-mixed, "
        "got '8-bit'");
}

TEST_CASE("trainer: every step runs in the precision that was asked for") {
  struct Row {
    const char* name;
    DType weights, batch, output;
  };
  for (const Row& row : {Row{"32-true", DType::f32, DType::f32, DType::f32},
                         Row{"64", DType::f64, DType::f64, DType::f64},
                         Row{"bf16-true", DType::bf16, DType::bf16, DType::bf16},
                         Row{"16-true", DType::f16, DType::f16, DType::f16},
                         Row{"bf16-mixed", DType::f32, DType::f32, DType::bf16},
                         Row{"16-mixed", DType::f32, DType::f32, DType::f16}}) {
    INFO(row.name);
    PlainModel model;
    start(model);
    data::TensorDataset set = small_data(8);
    data::DataLoader train(set, {.batch_size = 4}), other(set, {.batch_size = 4});
    Trainer trainer(with(row.name));
    trainer.fit(model, train, other);
    trainer.validate(model, other);
    trainer.test(model, other);
    const auto predictions = trainer.predict(model, other);
    CHECK(predictions.at(0).dtype() == row.output);
    CHECK(model.dtypes.size() == 2 + 2 + 2 + 2 + 2 + 2);  // sanity check included
    for (const DType dtype : model.dtypes) CHECK(dtype == row.output);
    for (const DType dtype : model.batches) CHECK(dtype == row.batch);
    CHECK(model.layer.weight.dtype() == row.weights);
    CHECK(model.gradients == std::vector<DType>(2, row.weights));
    CHECK(!autocast::enabled());
  }
}

TEST_CASE("nn: a module that is converted keeps running statistics in f32 beside halves") {
  nn::BatchNorm2d norm(nn::Child{}, 3);
  set_grad(norm.weight, full({3}, 2));
  norm.to(DType::bf16);
  CHECK(norm.weight.dtype() == DType::bf16);
  CHECK(grad(norm.weight).dtype() == DType::bf16);
  CHECK(raw::to(grad(norm.weight), DType::f64).data<double>()[0] == 2);
  CHECK(norm.running_mean.dtype() == DType::f32);
  CHECK(norm.num_batches_tracked.dtype() == DType::i64);
  const Tensor x = randn({2, 3, 4, 4}, {DType::bf16});
  backward(sum(norm.forward(x)));
  CHECK(grad(norm.bias).dtype() == DType::bf16);
  norm.to(DType::f64);
  CHECK(norm.running_mean.dtype() == DType::f64);
  CHECK(norm.forward(raw::to(x, DType::f64)).dtype() == DType::f64);
  CHECK(error_text([&] { norm.to(DType::i64); }) == "to: dtype must be floating, got i64");
}

// Mixed against f32 training, with u the half type's rounding, the f32 run's largest x, w, y and
// residual, and three features. An output is off by u (2 * 3 x w + w + y): its factors, the bias
// and itself are rounded. A gradient is the mean of residual * x over the
// batch, times 2 / 2 outputs / 64; the residual's error enters it, and three more roundings (of the
// output's gradient, of x, of the result). Descent with momentum 0.5 doubles the sum of the steps'
// errors; that errors grow by way of the residuals is left to the factor 2.
TEST_CASE("trainer: mixed precision stays as near to f32 as its roundings allow") {
  const auto train = [](const char* precision, PlainModel& model) {
    start(model);
    Trainer trainer(with(precision));
    fit(model, trainer);
  };
  PlainModel plain;
  train("32-true", plain);
  PlainModel untrained;
  start(untrained);
  double changed = 0;
  for (size_t i = 0; i < weights_of(plain).size(); ++i)
    changed = std::max(changed, std::abs(weights_of(plain)[i] - weights_of(untrained)[i]));
  for (const auto& [name, u] : {std::pair{"bf16-mixed", 0x1p-8}, std::pair{"16-mixed", 0x1p-11}}) {
    INFO(name);
    PlainModel mixed;
    train(name, mixed);
    const double output_error = u * (2 * 3 * plain.x * plain.w + plain.w + plain.y);
    const double gradient_error = plain.x * (output_error + 3 * u * plain.residual) / 64;
    const double allowed = 2 * 2 * kBatches * gradient_error;
    const auto got = weights_of(mixed), wanted = weights_of(plain);
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - wanted[i]));
    CHECK(worst > 0);
    CHECK(worst <= allowed);
    CHECK(allowed < changed);
  }
}

TEST_CASE("trainer: 16-mixed skips a step that overflows, and resumes bit for bit") {
  const TempFolder folder;
  const auto run = [&](const std::string& ckpt, std::shared_ptr<Watch> watch) {
    PlainModel model;
    start(model);
    model.overflow_at = 2;
    TrainerOptions o = with("16-mixed");
    o.gradient_clip_val = 10;
    o.callbacks = {watch};
    o.enable_checkpointing = true;
    Trainer trainer(o);
    fit(model, trainer, ckpt);
    CHECK(trainer.global_step() == kBatches);
    const auto state = trainer.optimizer().state_dict();
    CHECK(state.numbers.at("state.0.step") == kBatches - 1);
    return bits(model);
  };
  const auto watch = std::make_shared<Watch>();
  watch->folder = folder.path();
  const std::string whole = run("", watch);
  CHECK(watch->scales == std::vector<double>{65536, 65536, 32768, 32768, 32768, 32768});
  CHECK(watch->skipped == std::vector<int64_t>{0, 0, 1, 1, 1, 1});
  CHECK(watch->weights[2] == watch->weights[1]);
  CHECK(watch->weights[1] != watch->weights[0]);
  CHECK(watch->weights[3] != watch->weights[2]);
  for (int64_t from = 0; from + 1 < kBatches; ++from) {
    INFO("from batch " << from);
    const auto rest = std::make_shared<Watch>();
    CHECK(run(cat(folder.path(), "/", from, ".ckpt"), rest) == whole);
    REQUIRE(rest->scales.size() == static_cast<size_t>(kBatches - 1 - from));
    CHECK(rest->scales.back() == 32768);
    CHECK(rest->skipped.back() == 1);
  }
  const auto checkpoint = trainer::load_checkpoint(cat(folder.path(), "/3.ckpt"));
  CHECK(checkpoint.precision.at("scale").as_double() == 32768);
  CHECK(checkpoint.precision.at("growth_tracker").as_double() == 1);
  for (const auto& [name, t] : checkpoint.state_dict) CHECK(t.dtype() == DType::f32);
}

TEST_CASE("trainer: 16-mixed unscales before the gradients are looked at") {
  struct Look : Callback {
    std::vector<double> norms;
    void on_before_optimizer_step(Trainer&, TrainingModule& m, optim::Optimizer&) override {
      norms.push_back(largest(grad(m.parameters()[0])));
    }
  };
  std::vector<std::vector<double>> seen;
  for (const char* precision : {"32-true", "16-mixed"}) {
    const auto look = std::make_shared<Look>();
    PlainModel model;
    start(model);
    TrainerOptions o = with(precision);
    o.callbacks = {look};
    o.accumulate_grad_batches = 2;
    Trainer trainer(o);
    fit(model, trainer);
    seen.push_back(look->norms);
  }
  REQUIRE(seen[0].size() == 3);
  REQUIRE(seen[1].size() == 3);
  CHECK(seen[1][0] == Approx(seen[0][0]).epsilon(0.01));
}

}  // namespace cairn::test
