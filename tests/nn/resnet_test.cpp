// ResNet: torchvision's keys, order and shapes; initialisation; a forward, a backward and a step.
#include "cairn/nn/models/resnet.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/optim/adam.h"
#include "cairn/tensor/random.h"
#include "tests/catch.h"
#include "tests/nn/helpers.h"

using namespace cairn;
using cairn::test::moments_of;
using cairn::test::values_of;

namespace {

// Compares with the file that torchvision made: tests/parity/keys_<name>.json.
void check_keys(const char* name, const nn::ResNetConfig& config) {
  INFO(name);
  const std::string path = cat(CAIRN_SOURCE_DIR, "/tests/parity/keys_", name, ".json");
  const auto wanted = nlohmann::json::parse(std::ifstream(path));
  nn::ResNet model(config);
  CHECK(model.parameter_count() == wanted["parameters"].get<int64_t>());
  const nn::StateDict state = model.state_dict();
  REQUIRE(state.size() == wanted["state_dict"].size());
  size_t i = 0;
  for (const auto& [key, tensor] : state) {
    const auto& entry = wanted["state_dict"][i++];
    CHECK(key == entry["name"].get<std::string>());
    const auto shape = entry["shape"].get<std::vector<int64_t>>();
    CHECK(tensor.shape() == Shape(std::span<const int64_t>(shape)));
    CHECK(name_of(tensor.dtype()) == entry["dtype"].get<std::string>());
  }
  const auto parameters = model.named_parameters();
  REQUIRE(parameters.size() == wanted["parameter_names"].size());
  for (size_t k = 0; k < parameters.size(); ++k)
    CHECK(parameters[k].first == wanted["parameter_names"][k].get<std::string>());
}

}  // namespace

TEST_CASE("nn: resnet has torchvision's state dict") {
  check_keys("resnet18_job", nn::resnet18({.in_channels = 1, .num_classes = 10}));
  check_keys("resnet18", nn::resnet18());
  check_keys("resnet34", nn::resnet34());
  check_keys("resnet50", nn::resnet50());
}

TEST_CASE("nn: the job's model has 122 entries and 11,175,370 parameters") {
  struct Classifier : nn::Module {
    nn::ResNet model{child("model"), nn::resnet18({.in_channels = 1, .num_classes = 10})};
  } classifier;
  CHECK(classifier.state_dict().size() == 122);
  CHECK(classifier.parameters().size() == 62);
  CHECK(classifier.parameter_count() == 11175370);
  CHECK(classifier.state_dict().contains("model.layer2.0.downsample.1.num_batches_tracked"));
}

TEST_CASE("nn: resnet starts as torchvision's does") {
  manual_seed(1);
  nn::ResNet model(nn::resnet18({.in_channels = 1, .num_classes = 10, .zero_init_residual = true}));
  for (const auto& [name, p] : model.named_parameters()) {
    INFO(name);
    const auto m = moments_of(p);
    if (p.dim() == 4) {
      // kaiming normal, fan_out: the deviation of n draws strays by sigma / sqrt(2 n); allow 5.
      const double std = std::sqrt(2.0 / static_cast<double>(p.size(0) * p.size(2) * p.size(3)));
      CHECK(std::abs(std::sqrt(m.variance) / std - 1) <
            5 / std::sqrt(2.0 * static_cast<double>(p.numel())));
    } else if (name.find("fc.") == 0) {
      CHECK(m.high < 1 / std::sqrt(512.0));
    } else {
      const bool residual = name.find("layer") == 0 && name.find("bn2.weight") != std::string::npos;
      const double value = name.ends_with("weight") && !residual ? 1 : 0;
      CHECK(m.low == value);
      CHECK(m.high == value);
    }
  }
  const auto* block = dynamic_cast<nn::BasicBlock*>(&model.layer2[0]);
  REQUIRE(block != nullptr);
  CHECK(block->downsample != nullptr);
  CHECK(dynamic_cast<nn::BasicBlock*>(&model.layer1[0])->downsample == nullptr);
}

TEST_CASE("nn: resnet trains: all parameters get gradients, counters advance, the loss falls") {
  manual_seed(2);
  for (const bool bottleneck : {false, true}) {
    nn::ResNetConfig config = nn::resnet18({.in_channels = 1, .num_classes = 10});
    if (bottleneck) config = {nn::ResNetConfig::Block::bottleneck, {1, 1, 1, 1}, config.options};
    nn::ResNet model(config);
    const Tensor x = randn({4, 1, 28, 28});
    const Tensor target = tensor<int64_t>({1, 5, 9, 1});
    auto optimizer = optim::adam(model.parameters(), {.lr = 1e-3});
    double first = 0, last = 0;
    for (int step = 0; step < 4; ++step) {
      const Tensor logits = model(x);
      CHECK(logits.shape() == Shape{4, 10});
      const Tensor loss = cross_entropy(logits, target);
      optimizer->zero_grad();
      backward(loss);
      for (const auto& [name, p] : model.named_parameters())
        if (!grad(p).defined()) FAIL(name << " has no gradient");
      optimizer->step();
      (step == 0 ? first : last) = loss.item();
    }
    CHECK(last < first);
    CHECK(model.bn1.num_batches_tracked.item<int64_t>() == 4);
    model.eval();
    model(x);
    CHECK(model.bn1.num_batches_tracked.item<int64_t>() == 4);
  }
}
