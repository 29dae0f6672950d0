// Layers: parameters, first values, that forward is the op, modes, errors.
#include <cmath>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/conv.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/embedding.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/matmul.h"
#include "cairn/autograd/ops/norm.h"
#include "cairn/autograd/ops/pool.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/nn/activation.h"
#include "cairn/nn/container.h"
#include "cairn/nn/conv.h"
#include "cairn/nn/embedding.h"
#include "cairn/nn/linear.h"
#include "cairn/nn/loss.h"
#include "cairn/nn/norm.h"
#include "cairn/nn/pool.h"
#include "tests/catch.h"
#include "tests/nn/helpers.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::moments_of;
using cairn::test::names_of;
using cairn::test::values_of;

using Names = std::vector<std::string>;

TEST_CASE("nn: linear") {
  manual_seed(1);
  nn::Linear layer(50, 40);
  CHECK(layer.weight.shape() == Shape{40, 50});
  CHECK(layer.bias.shape() == Shape{40});
  const double bound = 1 / std::sqrt(50.0);
  CHECK(moments_of(layer.weight).high < bound);
  CHECK(moments_of(layer.weight).high > 0.99 * bound);
  CHECK(moments_of(layer.bias).high < bound);
  CHECK(moments_of(layer.bias).low < -0.5 * bound);
  const Tensor x = rand({3, 50});
  CHECK(values_of(layer(x)) == values_of(linear(x, layer.weight, layer.bias)));
  nn::Linear bare(4, 2, {.bias = false, .dtype = DType::f64});
  CHECK(names_of(bare.state_dict()) == Names{"weight"});
  CHECK(bare.weight.dtype() == DType::f64);
  nn::Linear ones_layer(4, 2, {.weight_init = [](const Tensor& w) { raw::fill_(w, 1); }});
  CHECK(moments_of(ones_layer.weight).low == 1);
  CHECK(error_of([] { nn::Linear(-1, 2); }) ==
        "linear: in_features and out_features must not be negative, got -1 and 2");
}

TEST_CASE("nn: linear ends in the activation it was given") {
  manual_seed(3);
  const Tensor x = randn({4, 6});
  nn::Linear plain(6, 5);
  nn::Linear fused(6, 5, {.activation = Activation::relu});
  fused.load_state_dict(plain.state_dict());
  CHECK(values_of(fused(x)) == values_of(relu(plain(x))));
}

TEST_CASE("nn: conv2d keeps its weight as the kernels read it") {
  manual_seed(2);
  nn::Conv2d layer(6, 8, {3, 2}, {.stride = 2, .padding = {1, 0}, .groups = 2});
  CHECK(layer.weight.shape() == Shape{8, 3, 3, 2});
  CHECK(layer.weight.strides() == Shape{1, 8, 2 * 3 * 8, 3 * 8});
  const double bound = 1 / std::sqrt(3.0 * 6);
  CHECK(moments_of(layer.weight).high < bound);
  CHECK(moments_of(layer.weight).high > 0.9 * bound);
  CHECK(std::abs(moments_of(layer.bias).high) < bound);
  const Tensor x = rand({2, 6, 7, 9});
  const Tensor y = layer(x);
  CHECK(y.shape() == Shape{2, 8, 4, 4});
  CHECK(values_of(y) == values_of(conv2d(x, layer.weight, layer.bias,
                                         {.stride = 2, .padding = {1, 0}, .groups = 2})));
  CHECK(error_of([] { nn::Conv2d(4, 6, 3, {.groups = 3}); }) ==
        "conv2d: in_channels and out_channels must be multiples of groups 3, got 4 and 6");
  CHECK(error_of([] { nn::Conv2d(4, 6, 0); }) == "conv2d: kernel_size must be positive, got 0 x 0");
  CHECK(error_of([] { nn::Conv2d(4, 6, 1, {.groups = 0}); }) ==
        "conv2d: groups must be positive, got 0");
}

TEST_CASE("nn: batch norm keeps running statistics in training only") {
  manual_seed(3);
  nn::BatchNorm2d layer(3);
  CHECK(names_of(layer.state_dict()) ==
        Names{"weight", "bias", "running_mean", "running_var", "num_batches_tracked"});
  CHECK(layer.num_batches_tracked.dtype() == DType::i64);
  CHECK(layer.num_batches_tracked.dim() == 0);
  const Tensor x = add(mul(rand({4, 3, 5, 5}), 2.0), 1.0);
  layer(x);
  layer.forward_relu(x, x);
  CHECK(layer.num_batches_tracked.item<int64_t>() == 2);
  const Tensor mean_of = mean(x, {0, 2, 3}), var_of = var(x, {0, 2, 3});
  for (size_t c = 0; c < 3; ++c) {
    CHECK(values_of(layer.running_mean)[c] == Approx(0.19 * values_of(mean_of)[c]).epsilon(1e-5));
    CHECK(values_of(layer.running_var)[c] ==
          Approx(0.81 + 0.19 * values_of(var_of)[c]).epsilon(1e-5));
  }
  layer.eval();
  const auto kept = values_of(layer.running_mean);
  const Tensor y = layer(x);
  CHECK(values_of(layer.running_mean) == kept);
  CHECK(layer.num_batches_tracked.item<int64_t>() == 2);
  CHECK(values_of(y) == values_of(batch_norm(x, layer.running_mean, layer.running_var, layer.weight,
                                             layer.bias, {.training = false})));
  const auto fused = values_of(layer.forward_relu(x, x));
  const auto parts = values_of(relu(add(y, x)));
  double worst = 0;
  for (size_t i = 0; i < fused.size(); ++i) worst = std::max(worst, std::abs(fused[i] - parts[i]));
  CHECK(worst < 8 * 0x1p-23 * 4);
}

TEST_CASE("nn: batch norm's cumulative average weighs all batches alike") {
  nn::BatchNorm1d layer(2, {.momentum = {}, .dtype = DType::f64});
  const Tensor a = rand({8, 2}, {DType::f64}), b = rand({8, 2}, {DType::f64});
  layer(a);
  layer(b);
  const auto ma = values_of(mean(a, {0})), mb = values_of(mean(b, {0}));
  CHECK(values_of(layer.running_mean)[1] == Approx((ma[1] + mb[1]) / 2).epsilon(1e-13));
}

TEST_CASE("nn: batch norm without statistics uses the batch's always") {
  nn::BatchNorm1d layer(2, {.affine = false, .track_running_stats = false});
  CHECK(layer.state_dict().empty());
  const Tensor x = rand({8, 2});
  const auto trained = values_of(layer(x));
  layer.eval();
  CHECK(values_of(layer(x)) == trained);
  CHECK(error_of([&] {
          layer(rand({2, 2, 2, 2}));
        }) == "batch_norm1d: input must have 2 or 3 dimensions, got shape [2, 2, 2, 2]");
  nn::BatchNorm2d image(2);
  CHECK(error_of([&] {
          image(rand({2, 2}));
        }) == "batch_norm2d: input must have 4 dimensions, got shape [2, 2]");
  CHECK(image.num_batches_tracked.item<int64_t>() == 0);
}

TEST_CASE("nn: layer norm") {
  nn::LayerNorm layer(Shape{3, 4});
  CHECK(layer.weight.shape() == Shape{3, 4});
  const Tensor x = rand({2, 3, 4});
  CHECK(values_of(layer(x)) == values_of(layer_norm(x, {3, 4}, layer.weight, layer.bias)));
  nn::LayerNorm unbiased(Shape{4}, {.bias = false});
  CHECK(names_of(unbiased.state_dict()) == Names{"weight"});
  nn::LayerNorm plain(Shape{4}, {.elementwise_affine = false});
  CHECK(plain.parameters().empty());
}

TEST_CASE("nn: activations, pools and shapes are their ops") {
  const Tensor x = sub(mul(rand({2, 4, 6, 6}), 4.0), 2.0);
  const auto same = [&](nn::Layer& layer, const Tensor& wanted) {
    CHECK(layer.parameters().empty());
    CHECK(values_of(layer(x)) == values_of(wanted));
    CHECK(layer(x).shape() == wanted.shape());
  };
  nn::ReLU relu_layer;
  same(relu_layer, relu(x));
  nn::LeakyReLU leaky(0.2);
  same(leaky, leaky_relu(x, 0.2));
  nn::GELU gelu_layer(GeluApproximate::tanh);
  same(gelu_layer, gelu(x, GeluApproximate::tanh));
  nn::SiLU silu_layer;
  same(silu_layer, silu(x));
  nn::Sigmoid sigmoid_layer;
  same(sigmoid_layer, sigmoid(x));
  nn::Tanh tanh_layer;
  same(tanh_layer, cairn::tanh(x));
  nn::Softmax softmax_layer(1);
  same(softmax_layer, softmax(x, 1));
  nn::LogSoftmax log_softmax_layer(-1);
  same(log_softmax_layer, log_softmax(x, -1));
  nn::MaxPool2d max_layer({.kernel_size = 3, .stride = 2, .padding = 1});
  same(max_layer, max_pool2d(x, {.kernel_size = 3, .stride = 2, .padding = 1}));
  nn::AvgPool2d avg_layer({.kernel_size = 2});
  same(avg_layer, avg_pool2d(x, {.kernel_size = 2}));
  nn::AdaptiveAvgPool2d adaptive({2, 3});
  same(adaptive, adaptive_avg_pool2d(x, {2, 3}));
  nn::Flatten flatten_layer;
  same(flatten_layer, flatten(x, 1));
  nn::Identity identity;
  same(identity, x);
}

TEST_CASE("nn: embedding") {
  manual_seed(5);
  nn::Embedding layer(1000, 20, {.padding_idx = -2});
  CHECK(layer.weight.shape() == Shape{1000, 20});
  CHECK(std::abs(moments_of(layer.weight).variance - 1) < 0.05);
  CHECK(moments_of(raw::select(layer.weight, 0, 998)).high == 0);
  const Tensor indices = tensor<int64_t>({998, 3, 3});
  const Tensor y = layer(indices);
  CHECK(y.shape() == Shape{3, 20});
  backward(sum(y));
  CHECK(values_of(raw::select(grad(layer.weight), 0, 3))[0] == 2);
  CHECK(values_of(raw::select(grad(layer.weight), 0, 998))[0] == 0);
  CHECK(error_of([] { nn::Embedding(4, 2, {.padding_idx = 4}); }) ==
        "embedding: padding_idx must lie in [-4, 4), got 4");
}

TEST_CASE("nn: dropout works in training only") {
  manual_seed(6);
  nn::Dropout layer(0.25);
  const Tensor x = ones({10000});
  const auto m = moments_of(layer(x));
  CHECK(m.low == 0);
  CHECK(m.high == Approx(1 / 0.75));
  CHECK(std::abs(m.mean - 1) < 0.05);
  layer.eval();
  CHECK(values_of(layer(x)) == values_of(x));
  CHECK(error_of([] { nn::Dropout(1.5); }) == "dropout: p must lie in [0, 1], got 1.5");
}

TEST_CASE("nn: losses are their ops and keep their tensors as buffers") {
  const Tensor logits = rand({4, 3}), target = tensor<int64_t>({0, 2, 1, 1});
  const Tensor weight = tensor<float>({1, 2, 0.5f});
  nn::CrossEntropyLoss loss({.weight = weight, .label_smoothing = 0.1});
  CHECK(names_of(loss.state_dict()) == Names{"weight"});
  CHECK(loss.parameters().empty());
  CHECK(loss(logits, target).item() ==
        cross_entropy(logits, target, {.weight = weight, .label_smoothing = 0.1}).item());
  nn::CrossEntropyLoss plain;
  CHECK(plain.state_dict().empty());
  CHECK(plain(logits, target).item() == cross_entropy(logits, target).item());
  nn::NLLLoss nll({.weight = {}, .reduction = Reduction::sum});
  CHECK(
      nll(log_softmax(logits, 1), target).item() ==
      nll_loss(log_softmax(logits, 1), target, {.weight = {}, .reduction = Reduction::sum}).item());
  nn::MSELoss mse;
  CHECK(mse(logits, zeros({4, 3})).item() == mse_loss(logits, zeros({4, 3})).item());
  nn::BCEWithLogitsLoss bce({.weight = {}, .pos_weight = weight});
  CHECK(names_of(bce.state_dict()) == Names{"pos_weight"});
  const Tensor labels = ones({4, 3});
  CHECK(bce(logits, labels).item() ==
        binary_cross_entropy_with_logits(logits, labels, {.weight = {}, .pos_weight = weight})
            .item());
}

TEST_CASE("nn: sequential") {
  struct Net : nn::Module {
    nn::Sequential net{child("net"), nn::layer<nn::Linear>(4, 3), nn::layer<nn::ReLU>(),
                       nn::layer<nn::Linear>(3, 2)};
  } model;
  CHECK(names_of(model.state_dict()) ==
        Names{"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"});
  CHECK(model.net.size() == 3);
  const Tensor x = rand({5, 4});
  CHECK(values_of(model.net(x)) == values_of(model.net[2](model.net[1](model.net[0](x)))));
  CHECK(model.net(x).shape() == Shape{5, 2});
  CHECK(error_of([&] { model.net[3]; }) == "sequential: index must be below 3, got 3");
  CHECK(error_of([&] { model.net.append(nullptr); }) ==
        "sequential: layer must be defined, got a null pointer");
  model.eval();
  CHECK_FALSE(model.net[1].training());
  nn::Sequential root(nn::layer<nn::Linear>(4, 3), nn::layer<nn::Flatten>(0));
  root.append(nn::layer<nn::Identity>());
  CHECK(names_of(root.named_modules()) == Names{"", "0", "1", "2"});
  nn::Sequential empty_one;
  CHECK(empty_one(x).same_as(x));
}

TEST_CASE("nn: module list") {
  struct Net : nn::Module {
    nn::ModuleList<nn::Linear> blocks{child("blocks")};
    Net() {
      for (int i = 0; i < 3; ++i) blocks.emplace(4, 4);
    }
  } model;
  CHECK(model.blocks.size() == 3);
  CHECK(model.named_parameters()[4].first == "blocks.2.weight");
  CHECK(error_of([&] { model.blocks[3]; }) == "module_list: index must be below 3, got 3");
}
