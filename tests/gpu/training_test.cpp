// Whole training steps on a real device: as on the CPU, repeatable, without waits or new memory,
// and the same from a captured graph. Invariant: everything starts from weights and images made
// from the parity formula.
#include <cmath>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/nn/models/resnet.h"
#include "cairn/optim/adam.h"
#include "cairn/tensor/allocator.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "tests/gpu/helpers.h"
#include "tests/parity/formula.h"
#include "tests/parity/resnet_check.h"

using namespace cairn;
using namespace cairn::test;

namespace {

// f32 convolutions and products in full precision for as long as this lives.
struct NoTf32 {
  NoTf32() : was(cuda::settings().conv_allow_tf32) { cuda::settings().conv_allow_tf32 = false; }
  ~NoTf32() { cuda::settings().conv_allow_tf32 = was; }
  bool was;
};

// The main job at batch 8, from a fixed start.
struct Job {
  explicit Job(Device device) {
    int64_t place = 0;
    for (const auto& [name, tensor] : model.state_dict())
      fill(tensor, place++, parity::resnet_fill(name, tensor.shape()));
    fill(images, parity::kImages, {std::sqrt(3.0), 0});
    model.to(device);
    images = raw::to(images, DType::f32, device);
    target = raw::to(target, DType::i64, device);
    optimizer = optim::adam(model.parameters(), {.lr = 1e-3});
  }

  static void fill(const Tensor& t, int64_t number, parity::Fill how) {
    std::vector<double> v(static_cast<size_t>(t.numel()));
    for (size_t i = 0; i < v.size(); ++i)
      v[i] = how.scale == 0 ? how.shift
                            : parity::value(number, static_cast<int64_t>(i), how.scale, how.shift);
    raw::copy_(t, from_values(v, t.shape()));
  }

  Tensor step() {
    optimizer->zero_grad();
    Tensor loss = cross_entropy(model(images), target);
    backward(loss);
    optimizer->step();
    return loss;
  }

  std::vector<double> parameters() const {
    std::vector<double> all;
    for (const Tensor& p : model.parameters()) {
      const std::vector<double> v = values_of(p);
      all.insert(all.end(), v.begin(), v.end());
    }
    return all;
  }

  nn::ResNet model{nn::resnet18({.in_channels = 1, .num_classes = 10})};
  Tensor images = empty({8, 1, 28, 28}), target = arange(0, 8);
  std::unique_ptr<optim::Optimizer> optimizer;
};

}  // namespace

TEST_CASE("gpu: resnet18 evaluates as PyTorch's") {
  const NoTf32 exact;
  for (DType dtype : {DType::f64, DType::f32}) parity::check_eval(dtype, kGpu);
}

TEST_CASE("gpu: resnet18 has PyTorch's gradients") {
  const NoTf32 exact;
  for (DType dtype : {DType::f64, DType::f32}) parity::check_training_pass(dtype, kGpu);
}

TEST_CASE("gpu: resnet18 learns as PyTorch's with Adam") {
  const NoTf32 exact;
  for (DType dtype : {DType::f64, DType::f32}) parity::check_adam(dtype, kGpu);
}

TEST_CASE("gpu: two runs of five steps have the same bits") {
  cuda::settings().deterministic = true;
  std::vector<std::vector<double>> runs;
  for (int run = 0; run < 2; ++run) {
    Job job(kGpu);
    for (int i = 0; i < 5; ++i) job.step();
    runs.push_back(job.parameters());
  }
  cuda::settings().deterministic = false;
  CHECK(runs[0] == runs[1]);
}

TEST_CASE("gpu: a steady step neither waits nor asks the driver for memory") {
  Job job(kGpu);
  for (int i = 0; i < 4; ++i) job.step();
  cuda::synchronize(kGpu);
  const int64_t waits = cuda::waits();
  const MemoryStats before = memory_stats(kGpu);
  for (int i = 0; i < 10; ++i) job.step();
  const MemoryStats after = memory_stats(kGpu);
  CHECK(cuda::waits() == waits);
  CHECK(after.system_allocations == before.system_allocations);
  CHECK(after.allocated == before.allocated);
}

TEST_CASE("gpu: a captured step leaves what the same steps left without a graph") {
  cuda::settings().deterministic = true;  // cuDNN's fastest weight gradients add in any order
  Job eager(kGpu), captured(kGpu);
  eager.optimizer->set_capturable(true);
  captured.optimizer->set_capturable(true);
  std::vector<double> wanted, got;
  for (int i = 0; i < 6; ++i) wanted.push_back(eager.step().item());

  for (int i = 0; i < 2; ++i) got.push_back(captured.step().item());
  Capture capture(kGpu);
  const Tensor loss = captured.step();
  CapturedGraph graph = capture.finish();
  const int64_t waits = cuda::waits();
  for (int i = 2; i < 6; ++i) {
    graph.launch();
    CHECK(cuda::waits() == waits + i - 2);
    got.push_back(loss.item());
  }
  CHECK(got == wanted);
  CHECK(captured.parameters() == eager.parameters());
  cuda::settings().deterministic = false;
}
