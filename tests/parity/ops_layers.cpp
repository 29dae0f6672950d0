// How the cases of layers (convolution, pooling, normalisation, products, activations, embedding)
// and losses call Cairn.
// Invariant: one entry per op name of ops.json, and nothing but public ops and modules in it.
#include <cmath>
#include <memory>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/embedding.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/autograd/ops/matmul.h"
#include "cairn/autograd/ops/norm.h"
#include "cairn/autograd/ops/pool.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/nn/norm.h"
#include "cairn/tensor/raw.h"
#include "tests/parity/case.h"

namespace cairn::parity {
namespace {

using Outputs = std::vector<Tensor>;

void add_convolution(Runs& runs) {
  runs["conv2d"] = [](Case& c) {
    const Conv2dOptions options{.stride = c.pair("stride"),
                                .padding = c.pair("padding"),
                                .dilation = c.pair("dilation"),
                                .groups = c.get<int64_t>("groups")};
    return Outputs{conv2d(c.in("x"), c.in("weight"), c.in_or_none("bias"), options)};
  };
}

// The flat position in its plane that each output of a max_pool2d came from, [N, C, OH, OW] i64.
// Cairn does not return it, but the gradient of a single output is 1 at that place.
Tensor max_indices(const Tensor& x, const MaxPool2dOptions& options) {
  const Shape shape = max_pool2d(x, options).shape();
  const Tensor indices = full(shape, -1, {DType::i64});
  const int64_t plane = x.size(2) * x.size(3);
  for (int64_t i = 0; i < indices.numel(); ++i) {
    const Tensor leaf = set_requires_grad(raw::clone(x));
    const Tensor one = zeros(shape, {x.dtype()});
    raw::fill_(raw::select(raw::view(one, {one.numel()}), 0, i), 1);
    backward(max_pool2d(leaf, options), one);
    const Tensor places = raw::contiguous(raw::to(grad(leaf), DType::f64));
    for (int64_t p = 0; p < places.numel(); ++p)
      if (places.data<double>()[p] == 1) indices.data<int64_t>()[i] = p % plane;
  }
  return indices;
}

void add_pooling(Runs& runs) {
  runs["max_pool2d"] = [](Case& c) {
    const MaxPool2dOptions options{.kernel_size = c.pair("kernel_size"),
                                   .stride = c.pair("stride"),
                                   .padding = c.pair("padding"),
                                   .dilation = c.pair("dilation")};
    const Tensor x = c.in("x");
    return Outputs{max_pool2d(x, options), max_indices(x, options)};
  };
  runs["avg_pool2d"] = [](Case& c) {
    const AvgPool2dOptions options{.kernel_size = c.pair("kernel_size"),
                                   .stride = c.pair("stride"),
                                   .padding = c.pair("padding"),
                                   .count_include_pad = c.get<bool>("count_include_pad")};
    return Outputs{avg_pool2d(c.in("x"), options)};
  };
  runs["adaptive_avg_pool2d"] = [](Case& c) {
    return Outputs{adaptive_avg_pool2d(c.in("x"), c.pair("output_size"))};
  };
}

std::unique_ptr<nn::BatchNorm> batch_norm_module(const Tensor& x,
                                                 const nn::BatchNormOptions& options) {
  if (x.dim() == 4) return std::make_unique<nn::BatchNorm2d>(x.size(1), options);
  return std::make_unique<nn::BatchNorm1d>(x.size(1), options);
}

// Through the module: it owns the cumulative average and the count of batches.
Outputs run_batch_norm(Case& c) {
  const Tensor x = c.in("x");
  const Tensor weight = c.in_or_none("weight"), bias = c.in_or_none("bias");
  const Tensor mean = c.in_or_none("running_mean"), variance = c.in_or_none("running_var");
  const auto module = batch_norm_module(x, {.eps = c.get<double>("eps"),
                                            .momentum = c.get_or_none<double>("momentum"),
                                            .affine = weight.defined(),
                                            .track_running_stats = mean.defined(),
                                            .dtype = c.dtype()});
  if (c.get<bool>("training"))
    module->train();
  else
    module->eval();
  const auto tracked = c.get<int64_t>("num_batches_tracked");
  if (weight.defined()) {
    raw::copy_(module->weight, weight);
    raw::copy_(module->bias, bias);
    c.set_leaf("weight", module->weight);
    c.set_leaf("bias", module->bias);
  }
  if (!mean.defined()) return {module->forward(x)};
  raw::copy_(module->running_mean, mean);
  raw::copy_(module->running_var, variance);
  raw::fill_(module->num_batches_tracked, static_cast<double>(tracked));
  const Tensor y = module->forward(x);
  return {y, module->running_mean, module->running_var, module->num_batches_tracked};
}

void add_normalisation(Runs& runs) {
  runs["batch_norm"] = run_batch_norm;
  runs["layer_norm"] = [](Case& c) {
    return Outputs{layer_norm(c.in("x"), c.shape("normalized_shape"), c.in_or_none("weight"),
                              c.in_or_none("bias"), c.get<double>("eps"))};
  };
}

void add_products(Runs& runs) {
  runs["linear"] = [](Case& c) {
    return Outputs{linear(c.in("x"), c.in("weight"), c.in_or_none("bias"))};
  };
  runs["feed_forward"] = [](Case& c) {
    const auto name = c.get<std::string>("activation");
    check(name == "relu" || name == "gelu_tanh", "parity: unknown activation ", name);
    return Outputs{feed_forward(
        c.in("x"), c.in("weight1"), c.in_or_none("bias1"), c.in("weight2"), c.in_or_none("bias2"),
        {.activation = name == "relu" ? Activation::relu : Activation::gelu_tanh})};
  };
  runs["matmul"] = [](Case& c) { return Outputs{matmul(c.in("a"), c.in("b"))}; };
  runs["matmul_tt"] = [](Case& c) {
    return Outputs{matmul(transpose(c.in("a"), 0, 1), transpose(c.in("b"), 0, 1))};
  };
}

void add_activations(Runs& runs) {
#define CAIRN_RUN(name) runs[#name] = [](Case& c) { return Outputs{cairn::name(c.in("x"))}; };
  CAIRN_RUN(relu)
  CAIRN_RUN(silu)
  CAIRN_RUN(sigmoid)
  CAIRN_RUN(tanh)
#undef CAIRN_RUN
  runs["gelu"] = [](Case& c) {
    const auto approximate = c.get<std::string>("approximate");
    check(approximate == "none" || approximate == "tanh", "parity: unknown gelu ", approximate);
    return Outputs{
        gelu(c.in("x"), approximate == "tanh" ? GeluApproximate::tanh : GeluApproximate::none)};
  };
  runs["leaky_relu"] = [](Case& c) {
    return Outputs{leaky_relu(c.in("x"), c.get<double>("negative_slope"))};
  };
  runs["softmax"] = [](Case& c) { return Outputs{softmax(c.in("x"), c.get<int64_t>("dim"))}; };
  runs["log_softmax"] = [](Case& c) {
    return Outputs{log_softmax(c.in("x"), c.get<int64_t>("dim"))};
  };
  runs["dropout"] = [](Case& c) {
    return Outputs{dropout(c.in("x"), c.get<double>("p"), c.get<bool>("training"))};
  };
  runs["embedding"] = [](Case& c) {
    return Outputs{
        embedding(c.in("weight"), c.in("indices"), c.get_or_none<int64_t>("padding_idx"))};
  };
}

void add_losses(Runs& runs) {
  runs["cross_entropy"] = [](Case& c) {
    CrossEntropyOptions options{.weight = c.in_or_none("weight"),
                                .reduction = c.reduction(),
                                .label_smoothing = c.get<double>("label_smoothing")};
    // Probabilities have no class to ignore.
    if (c.has_option("ignore_index")) options.ignore_index = c.get<int64_t>("ignore_index");
    return Outputs{cross_entropy(c.in("input"), c.in("target"), options)};
  };
  runs["nll_loss"] = [](Case& c) {
    return Outputs{nll_loss(c.in("input"), c.in("target"),
                            {.weight = c.in_or_none("weight"),
                             .ignore_index = c.get<int64_t>("ignore_index"),
                             .reduction = c.reduction()})};
  };
  runs["mse_loss"] = [](Case& c) {
    return Outputs{mse_loss(c.in("input"), c.in("target"), c.reduction())};
  };
  runs["binary_cross_entropy_with_logits"] = [](Case& c) {
    return Outputs{binary_cross_entropy_with_logits(c.in("input"), c.in("target"),
                                                    {.weight = c.in_or_none("weight"),
                                                     .pos_weight = c.in_or_none("pos_weight"),
                                                     .reduction = c.reduction()})};
  };
}

}  // namespace

Runs layer_runs() {
  Runs runs;
  add_convolution(runs);
  add_pooling(runs);
  add_normalisation(runs);
  add_products(runs);
  add_activations(runs);
  add_losses(runs);
  return runs;
}

}  // namespace cairn::parity
