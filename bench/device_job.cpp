// Training steps of one model on a device, with everything that a fast loop there does: batches
// that are resident, a step that is captured once and launched as a whole, no value read in
// between.
// Invariant: the optimizer steps in the order of the batches, and a measurement starts and
// ends with an idle device. On the CPU (for trying this out) the same steps run without a graph.
#include <cairn/cairn.h>

#include "bench/batches.h"
#include "bench/jobs.h"
#include "cairn/autograd/autocast.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/raw.h"

namespace cairn::bench {
namespace {

// Losses that the two sides compare: of one eager step, then of captured ones.
constexpr int kChecked = 5;

class DeviceTraining final : public Job {
 public:
  explicit DeviceTraining(const json& request)
      : device_(request.at("device").get<std::string>()),
        half_(request.at("precision") == "bf16-mixed"),
        batch_(request.at("batch")),
        batches_(request.at("batches")),
        per_launch_(request.at("steps_per_launch")),
        window_(request.at("window")),
        model_(make_model(request)) {
    check(half_ || request.at("precision") == "f32",
          "setup: precision must be f32 or bf16-mixed, got ", request.at("precision").dump());
    check((kChecked - 1) % per_launch_ == 0 && window_ % per_launch_ == 0,
          "setup: steps_per_launch must divide ", kChecked - 1, " and the window ", window_,
          ", got ", per_launch_);
    cuda::settings().benchmark = true;  // as the peer's
    model_->train();
    model_->to(device_);
    optimizer_ = optim::adam(model_->parameters(), {.lr = 1e-3});
    if (device_ != kCPU) optimizer_->set_capturable(true);
    load(request);
  }

  Outputs outputs() override {
    Outputs losses{{step(inputs_, targets_, 0).item()}};
    at_ = 1;
    if (device_ != kCPU) capture();
    while (losses.size() < kChecked) {
      launch();
      for (const Tensor& loss : losses_) losses.push_back({loss.item()});
    }
    return losses;
  }

  std::vector<double> run(int n) override {
    std::vector<double> times;
    for (int i = 0; i < n; ++i) {
      wait();
      const auto start = std::chrono::steady_clock::now();
      for (int64_t done = 0; done < window_; done += per_launch_) launch();
      wait();
      times.push_back(seconds_since(start) * 1e3 / static_cast<double>(window_));
    }
    return times;
  }

 private:
  // All batches one behind the other, and the first ones again, so that any stretch of per_launch_
  // batches is contiguous.
  void load(const json& request) {
    const std::unique_ptr<Batches> source = make_batches(request);
    const int64_t count = batches_ + per_launch_ - 1;
    for (int64_t i = 0; i < count; ++i) {
      const Batch batch = source->next();
      if (i == 0) {
        inputs_ = stretch(batch.input, count);
        targets_ = stretch(batch.target, count);
      }
      raw::copy_(slice_of(inputs_, i, 1), batch.input);
      raw::copy_(slice_of(targets_, i, 1), batch.target);
    }
    inputs_now_ = stretch(inputs_, per_launch_);
    targets_now_ = stretch(targets_, per_launch_);
  }

  // Room on the device for `count` batches in the layout of `like`.
  Tensor stretch(const Tensor& like, int64_t count) const {
    Shape shape = like.shape();
    shape[0] = count * batch_;
    const TensorOptions options{.dtype = like.dtype(), .device = device_};
    const bool last = shape.size() == 4 && !like.is_contiguous();
    return last ? empty_channels_last(shape, options) : empty(shape, options);
  }
  Tensor slice_of(const Tensor& t, int64_t index, int64_t count) const {
    return raw::slice(t, 0, index * batch_, (index + count) * batch_);
  }

  Tensor step(const Tensor& inputs, const Tensor& targets, int64_t index) {
    optimizer_->zero_grad();
    Tensor loss;
    {
      const Autocast cast(DType::bf16, half_);
      loss =
          cross_entropy(model_->forward(slice_of(inputs, index, 1)), slice_of(targets, index, 1));
    }
    backward(loss);
    optimizer_->step();
    return loss;
  }

  void steps_now() {
    losses_.clear();
    for (int64_t i = 0; i < per_launch_; ++i) losses_.push_back(step(inputs_now_, targets_now_, i));
  }
  void capture() {
    Capture capture(device_);
    steps_now();
    graph_ = capture.finish();
  }
  void launch() {
    raw::copy_(inputs_now_, slice_of(inputs_, at_, per_launch_));
    raw::copy_(targets_now_, slice_of(targets_, at_, per_launch_));
    if (graph_.defined())
      graph_.launch();
    else
      steps_now();
    at_ = (at_ + per_launch_) % batches_;
  }
  void wait() const {
    if (device_ != kCPU) cuda::synchronize(device_);
  }

  Device device_;
  bool half_;
  int64_t batch_, batches_, per_launch_, window_;
  std::unique_ptr<nn::Layer> model_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  Tensor inputs_, targets_;          // all batches
  Tensor inputs_now_, targets_now_;  // those of the next launch
  std::vector<Tensor> losses_;       // of the last launch
  CapturedGraph graph_;
  int64_t at_ = 0;  // the next batch
};

}  // namespace

std::unique_ptr<Job> device_job(const json& request) {
  return std::make_unique<DeviceTraining>(request);
}

}  // namespace cairn::bench
