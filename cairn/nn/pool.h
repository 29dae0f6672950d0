// Pooling as layers, over [N, C, H, W].
#pragma once

#include "cairn/autograd/ops/pool.h"
#include "cairn/nn/container.h"

namespace cairn::nn {

class MaxPool2d final : public Layer {
 public:
  explicit MaxPool2d(const MaxPool2dOptions& options) : MaxPool2d(Child{}, options) {}
  MaxPool2d(const Child& place, const MaxPool2dOptions& options)
      : Layer(place), options_(options) {}
  Tensor forward(const Tensor& x) override { return max_pool2d(x, options_); }

 private:
  MaxPool2dOptions options_;
};

class AvgPool2d final : public Layer {
 public:
  explicit AvgPool2d(const AvgPool2dOptions& options) : AvgPool2d(Child{}, options) {}
  AvgPool2d(const Child& place, const AvgPool2dOptions& options)
      : Layer(place), options_(options) {}
  Tensor forward(const Tensor& x) override { return avg_pool2d(x, options_); }

 private:
  AvgPool2dOptions options_;
};

class AdaptiveAvgPool2d final : public Layer {
 public:
  explicit AdaptiveAvgPool2d(Pair output_size) : AdaptiveAvgPool2d(Child{}, output_size) {}
  AdaptiveAvgPool2d(const Child& place, Pair output_size)
      : Layer(place), output_size_(output_size) {}
  Tensor forward(const Tensor& x) override { return adaptive_avg_pool2d(x, output_size_); }

 private:
  Pair output_size_;
};

}  // namespace cairn::nn
