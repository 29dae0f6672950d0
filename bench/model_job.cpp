// Training steps and inference of one model.
// Invariant: a measurement covers what a loop around the model does (zero_grad, forward, loss,
// backward, optimizer and reading the loss; or the forward alone), never the making of the batch.
#include <cairn/cairn.h>

#include "bench/batches.h"
#include "bench/jobs.h"
#include "bench/models.h"
#include "tests/parity/formula.h"

namespace cairn::bench {
namespace {

constexpr int kChecked = 5;  // losses, or batches of logits, that the two sides compare

std::unique_ptr<nn::Layer> empty_model(const json& request) {
  const std::string name = request.at("model");
  if (name == "mlp") return std::make_unique<Mlp>();
  if (name == "transformer") return std::make_unique<Encoder>();
  check(name == "resnet18" || name == "resnet50",
        "setup: model must be one of resnet18, resnet50, mlp, transformer, got ", name);
  const nn::ResNetOptions options{.in_channels = request.at("channels"), .num_classes = 10};
  return std::make_unique<nn::ResNet>(name == "resnet18" ? nn::resnet18(options)
                                                         : nn::resnet50(options));
}

parity::Fill fill_of(const std::string& name, const Shape& shape) {
  const auto ends_with = [&](const std::string& tail) {
    return name.size() >= tail.size() && name.substr(name.size() - tail.size()) == tail;
  };
  if (shape.size() == 4)
    return {std::sqrt(6.0 / static_cast<double>(shape[0] * shape[2] * shape[3])), 0};
  if (shape.size() == 2) return {1.0 / std::sqrt(static_cast<double>(shape[1])), 0};
  if (ends_with("running_mean")) return {0, 0};
  if (ends_with("running_var")) return {0, 1};
  return ends_with("weight") ? parity::Fill{0.1, 1} : parity::Fill{0.1, 0};
}

// Weights that both sides can make.
void fill_from_formula(nn::Module& model) {
  nn::StateDict filled;
  int64_t place = 0;
  for (const auto& [name, entry] : model.state_dict()) {
    const parity::Fill fill = fill_of(name, entry.shape());
    Tensor values = empty(entry.shape(), {.dtype = DType::f64});
    double* out = values.data<double>();
    for (int64_t i = 0; i < values.numel(); ++i)
      out[i] = fill.scale == 0 ? fill.shift : parity::value(place, i, fill.scale, fill.shift);
    if (is_floating(entry.dtype())) filled.insert(name, values);
    ++place;
  }
  // Not strict: the counters stay as they are, at 0.
  const nn::LoadReport report = model.load_state_dict(filled, {.strict = false});
  check(report.unexpected.empty() && report.mismatched.empty(),
        "setup: weights must fit the model");
}

class Training final : public Job {
 public:
  Training(std::unique_ptr<nn::Layer> model, std::unique_ptr<Batches> batches)
      : model_(std::move(model)), batches_(std::move(batches)) {
    model_->train();
    optimizer_ = optim::adam(model_->parameters(), {.lr = 1e-3});
  }

  Outputs outputs() override {
    Outputs losses;
    for (int i = 0; i < kChecked; ++i) losses.push_back({step().second});
    return losses;
  }
  std::vector<double> run(int n) override {
    std::vector<double> times;
    for (int i = 0; i < n; ++i) times.push_back(step().first);
    return times;
  }

 private:
  // Milliseconds and loss.
  std::pair<double, double> step() {
    const Batch batch = batches_->next();
    const auto start = std::chrono::steady_clock::now();
    optimizer_->zero_grad();
    Tensor loss = cross_entropy(model_->forward(batch.input), batch.target);
    backward(loss);
    optimizer_->step();
    const double value = loss.item();
    return {seconds_since(start) * 1e3, value};
  }

  std::unique_ptr<nn::Layer> model_;
  std::unique_ptr<Batches> batches_;
  std::unique_ptr<optim::Optimizer> optimizer_;
};

class Inference final : public Job {
 public:
  Inference(std::unique_ptr<nn::Layer> model, std::unique_ptr<Batches> batches)
      : model_(std::move(model)), batches_(std::move(batches)) {
    model_->eval();
  }

  Outputs outputs() override {
    Outputs logits;
    for (int i = 0; i < kChecked; ++i) {
      const Tensor y = contiguous(forward().second);
      logits.push_back(std::vector<double>(y.data<float>(), y.data<float>() + y.numel()));
    }
    return logits;
  }
  std::vector<double> run(int n) override {
    std::vector<double> times;
    for (int i = 0; i < n; ++i) times.push_back(forward().first);
    return times;
  }

 private:
  // Milliseconds and logits.
  std::pair<double, Tensor> forward() {
    const Batch batch = batches_->next();
    const NoGrad no_grad;
    const auto start = std::chrono::steady_clock::now();
    const Tensor y = model_->forward(batch.input);
    return {seconds_since(start) * 1e3, y};
  }

  std::unique_ptr<nn::Layer> model_;
  std::unique_ptr<Batches> batches_;
};

}  // namespace

std::unique_ptr<nn::Layer> make_model(const json& request) {
  std::unique_ptr<nn::Layer> model = empty_model(request);
  if (request.value("weights", "formula") == "formula") fill_from_formula(*model);
  return model;
}

std::unique_ptr<Job> training_job(std::unique_ptr<nn::Layer> model,
                                  std::unique_ptr<Batches> batches) {
  return std::make_unique<Training>(std::move(model), std::move(batches));
}

std::unique_ptr<Job> model_job(const json& request) {
  std::unique_ptr<nn::Layer> model = make_model(request);
  std::unique_ptr<Batches> batches = make_batches(request);
  const std::string mode = request.at("mode");
  if (mode == "train") return training_job(std::move(model), std::move(batches));
  check(mode == "infer", "setup: mode must be train or infer, got ", mode);
  return std::make_unique<Inference>(std::move(model), std::move(batches));
}

}  // namespace cairn::bench
