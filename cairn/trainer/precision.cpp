// Precision: the names, and what each does.
#include "cairn/trainer/precision.h"

#include "cairn/tensor/raw.h"

namespace cairn::trainer {
namespace {

struct Row {
  const char* name;
  std::optional<DType> module;
  std::optional<DType> cast;
};

const Row kRows[] = {
    {"32-true", {}, {}},         {"64-true", DType::f64, {}},     {"bf16-true", DType::bf16, {}},
    {"16-true", DType::f16, {}}, {"bf16-mixed", {}, DType::bf16}, {"16-mixed", {}, DType::f16}};

}  // namespace

Precision::Precision(const std::string& name) {
  const std::string full = name == "32" || name == "64" ? name + "-true" : name;
  for (const Row& row : kRows) {
    if (full != row.name) continue;
    name_ = full;
    module_ = row.module;
    cast_ = row.cast;
    return;
  }
  fail(
      "Trainer: precision must be one of 32-true 64-true bf16-true 16-true bf16-mixed 16-mixed, "
      "got '",
      name, "'");
}

void Precision::convert(nn::Module& module) const {
  if (module_) module.to(*module_);
}

Batch Precision::convert(Batch batch) const {
  if (!module_) return batch;
  for (Tensor* t : {&batch.input, &batch.target})
    if (t->defined() && is_floating(t->dtype())) *t = raw::to(*t, *module_);
  return batch;
}

void Precision::connect(optim::Optimizer& optimizer, Device device) {
  scaler_.reset();
  if (cast_ != DType::f16) return;
  scaler_ = std::make_unique<optim::GradScaler>(optim::GradScalerOptions{}, device);
  scaler_->connect(optimizer);
}

Tensor Precision::scaled(const Tensor& loss) const { return scaler_ ? scaler_->scale(loss) : loss; }

void Precision::before_step(optim::Optimizer& optimizer) {
  if (scaler_) scaler_->unscale_(optimizer);
}

void Precision::after_step() {
  if (scaler_) scaler_->update();
}

State Precision::state_dict() const {
  State out;
  if (scaler_)
    for (const auto& [name, value] : scaler_->state_dict().numbers) out[name] = value;
  return out;
}

void Precision::load_state_dict(const State& state) {
  if (!scaler_ || state.empty()) return;
  optim::State numbers;
  for (const auto& [name, value] : state) numbers.numbers[name] = value.as_double();
  scaler_->load_state_dict(numbers);
}

}  // namespace cairn::trainer
