// Activations as layers.
#pragma once

#include "cairn/autograd/ops/elementwise.h"
#include "cairn/nn/container.h"

namespace cairn::nn {

class ReLU final : public Layer {
 public:
  using Layer::Layer;
  Tensor forward(const Tensor& x) override { return relu(x); }
};

class LeakyReLU final : public Layer {
 public:
  explicit LeakyReLU(double negative_slope = 0.01) : LeakyReLU(Child{}, negative_slope) {}
  explicit LeakyReLU(const Child& place, double negative_slope = 0.01)
      : Layer(place), negative_slope_(negative_slope) {}
  Tensor forward(const Tensor& x) override { return leaky_relu(x, negative_slope_); }

 private:
  double negative_slope_;
};

class GELU final : public Layer {
 public:
  explicit GELU(GeluApproximate approximate = GeluApproximate::none) : GELU(Child{}, approximate) {}
  explicit GELU(const Child& place, GeluApproximate approximate = GeluApproximate::none)
      : Layer(place), approximate_(approximate) {}
  Tensor forward(const Tensor& x) override { return gelu(x, approximate_); }

 private:
  GeluApproximate approximate_;
};

class SiLU final : public Layer {
 public:
  using Layer::Layer;
  Tensor forward(const Tensor& x) override { return silu(x); }
};

class Sigmoid final : public Layer {
 public:
  using Layer::Layer;
  Tensor forward(const Tensor& x) override { return sigmoid(x); }
};

class Tanh final : public Layer {
 public:
  using Layer::Layer;
  Tensor forward(const Tensor& x) override { return tanh(x); }
};

class Softmax final : public Layer {
 public:
  explicit Softmax(int64_t dim) : Softmax(Child{}, dim) {}
  Softmax(const Child& place, int64_t dim) : Layer(place), dim_(dim) {}
  Tensor forward(const Tensor& x) override;

 private:
  int64_t dim_;
};

class LogSoftmax final : public Layer {
 public:
  explicit LogSoftmax(int64_t dim) : LogSoftmax(Child{}, dim) {}
  LogSoftmax(const Child& place, int64_t dim) : Layer(place), dim_(dim) {}
  Tensor forward(const Tensor& x) override;

 private:
  int64_t dim_;
};

}  // namespace cairn::nn
