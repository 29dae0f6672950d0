// The run-time choice of instruction set: each one the processor has is forced in turn, and does
// what the best one does, within rounding.
#include "cairn/kernels/target.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/kernels/cpu/gemm.h"
#include "cairn/nn/models/resnet.h"
#include "cairn/optim/adam.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "check/op_table.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"

using namespace cairn;
using test::error_text;

namespace {

// Back to the best target, however a test ends.
struct TargetScope {
  ~TargetScope() { kernels::set_target(""); }
};

// Floats in a vector register of the targets we know.
const std::map<std::string, int> kLanes = {{"AVX-512", 16}, {"AVX2", 8},   {"SSE2", 4},
                                           {"NEON", 4},     {"EMU128", 4}, {"SCALAR", 1}};

struct StepResult {
  double loss = 0;
  std::vector<Tensor> before, gradients, after;  // of each parameter, f64 copies; after Adam
};

nn::ResNetConfig small_resnet(DType dtype) {
  return {nn::ResNetConfig::Block::basic,
          {1, 1, 1, 1},
          {.in_channels = 1, .num_classes = 10, .dtype = dtype}};
}

// Drawn once: draws differ by dtype, and by rounding between targets.
struct Start {
  Start() : x((manual_seed(12), randn({16, 1, 28, 28}))) {}
  Tensor x;
  nn::ResNet model{small_resnet(DType::f32)};
};

// One step of a small ResNet from the same start, in `dtype`.
StepResult training_step(Start& start, DType dtype) {
  nn::ResNet model(small_resnet(dtype));
  model.load_state_dict(start.model.state_dict());
  const Tensor x = raw::to(start.x, dtype);
  auto optimizer = optim::adam(model.parameters(), {.lr = 1e-3});
  const Tensor target = tensor<int64_t>({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5});
  const Tensor loss = cross_entropy(model(x), target);
  backward(loss);
  StepResult out;
  out.loss = loss.item();
  const auto copy = [](const Tensor& t) {
    return raw::clone(raw::to(raw::contiguous(t), DType::f64));
  };
  for (const Tensor& p : model.parameters()) {
    out.before.push_back(copy(p));
    out.gradients.push_back(copy(grad(p)));
  }
  optimizer->step();
  for (const Tensor& p : model.parameters()) out.after.push_back(copy(p));
  return out;
}

double largest_difference(const Tensor& a, const Tensor& b) {
  double worst = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double difference = std::abs(a.data<double>()[i] - b.data<double>()[i]);
    worst = std::max(worst, std::isnan(difference) ? HUGE_VAL : difference);
  }
  return worst;
}

// Over the largest |b|.
double distance(const Tensor& a, const Tensor& b) {
  return largest_difference(a, b) / std::max(largest_difference(b, zeros_like(b)), 1e-30);
}

// Of Adam's first step on parameter i, relative to the rate: p - lr g / (|g| + eps), from the same
// gradient. A rounding of p itself is not Adam's.
double adam_error(const StepResult& r, size_t i) {
  constexpr double kRate = 1e-3;
  double worst = 0;
  for (int64_t k = 0; k < r.before[i].numel(); ++k) {
    const double p = r.before[i].data<double>()[k], g = r.gradients[i].data<double>()[k];
    const double wanted = p - kRate * g / (std::abs(g) + 1e-8);
    const double error =
        std::abs(r.after[i].data<double>()[k] - wanted) - std::abs(wanted) * 0x1p-24;
    worst = std::max(worst, std::isnan(error) ? HUGE_VAL : error / kRate);
  }
  return worst;
}

}  // namespace

TEST_CASE("kernels: a target can be forced by name, and the code that runs says so") {
  const TargetScope scope;
  const std::vector<std::string> usable = kernels::usable_targets();
  REQUIRE_FALSE(usable.empty());
  const auto compiled = kernels::compiled_targets();
  for (const std::string& name : usable) {
    kernels::set_target(name);
    INFO(name);
    CHECK(kernels::current_target() == name);
    CHECK(std::count(compiled.begin(), compiled.end(), name) == 1);
    REQUIRE(kLanes.count(name) == 1);
    CHECK(kernels::cpu::tile_kernels<float>().lanes == kLanes.at(name));
    CHECK(kernels::cpu::tile_kernels<double>().lanes == std::max(1, kLanes.at(name) / 2));
    CHECK(kernels::usable_targets() == usable);  // what there is does not change
  }
  std::string lower = usable.back();
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  lower.erase(std::remove(lower.begin(), lower.end(), '-'), lower.end());
  kernels::set_target(lower);
  CHECK(kernels::current_target() == usable.back());
  kernels::set_target("");
  CHECK(kernels::current_target() == usable.front());
  CHECK(error_text([] {
          kernels::set_target("MMX");
        }).rfind("set_target: name must be one of ", 0) == 0);
  CHECK(kernels::current_target() == usable.front());
}

TEST_CASE("kernels: a training step is right on every target") {
  const TargetScope scope;
  Start start;
  const StepResult truth = training_step(start, DType::f64);
  REQUIRE(std::isfinite(truth.loss));
  const struct {
    DType dtype;
    double loss, gradients;
  } tolerances[] = {{DType::f64, 1e-10, 1e-10}, {DType::f32, 1e-5, 1e-4}};
  for (const std::string& name : kernels::usable_targets()) {
    kernels::set_target(name);
    for (const auto& t : tolerances) {
      const StepResult result = training_step(start, t.dtype);
      INFO(name << " " << name_of(t.dtype));
      CHECK(std::abs(result.loss - truth.loss) <= t.loss * std::abs(truth.loss));
      for (size_t i = 0; i < truth.gradients.size(); ++i) {
        INFO("parameter " << i);
        CHECK(distance(result.gradients[i], truth.gradients[i]) <= t.gradients);
        CHECK(adam_error(result, i) <= 1e-5);
      }
    }
  }
}

// The whole table in f32 (the dtype of training); f64 and bf16 are left to `cairn check --target`.
TEST_CASE("kernels: the op table holds on every target") {
  const TargetScope scope;
  const std::vector<std::string> usable = kernels::usable_targets();
  for (size_t i = 1; i < usable.size(); ++i) {  // the best one has a test of its own
    kernels::set_target(usable[i]);
    for (const auto& entry : check_table::entries()) {
      if (std::count(entry.dtypes.begin(), entry.dtypes.end(), DType::f32) == 0) continue;
      const auto verdict = check_table::run(entry, DType::f32);
      for (const std::string& failure : verdict.failures) FAIL_CHECK(usable[i] + ": " + failure);
    }
  }
}

TEST_CASE("kernels: no kernel keeps what a dispatch chose") {
  // A static variable in a function that dispatches would stay with the first target.
  const auto kept = [](const std::string& text) {
    for (size_t at = text.find("HWY_DYNAMIC_DISPATCH"); at != std::string::npos;
         at = text.find("HWY_DYNAMIC_DISPATCH", at + 1)) {
      const size_t end_before = text.rfind("\n}", at);  // of the function before
      const size_t start = end_before == std::string::npos ? 0 : end_before;
      const std::string body = text.substr(start, at - start);
      for (const std::string word : {"  static ", "  thread_local "}) {
        const size_t variable = body.find(word);
        if (variable == std::string::npos) continue;
        const size_t next = body.find_first_of("=({;", variable);
        if (next != std::string::npos && body[next] == '=') return true;
      }
    }
    return false;
  };
  CHECK(kept("int f() {\n  static const auto g = HWY_DYNAMIC_DISPATCH(pick)();\n  return g;\n}\n"));
  CHECK_FALSE(
      kept("int f() {\n  static int i;\n}\n\nint g() {\n  HWY_DYNAMIC_DISPATCH(h)();\n}\n"));
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(cat(CAIRN_SOURCE_DIR, "/cairn/kernels/cpu"))) {
    ++files;
    if (kept(test::read_bytes(entry.path().string())))
      FAIL_CHECK(entry.path().filename().string() + " keeps a dispatched function");
  }
  CHECK(files > 20);
}
