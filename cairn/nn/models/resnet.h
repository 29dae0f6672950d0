// ResNet (He et al. 2015, "Deep residual learning for image recognition"), torchvision's variant:
// the stride of a bottleneck sits on its 3x3 convolution.
// Invariant: names and order of the state dict are torchvision's, so its weights load.
#pragma once

#include <array>
#include <memory>

#include "cairn/nn/container.h"
#include "cairn/nn/conv.h"
#include "cairn/nn/linear.h"
#include "cairn/nn/norm.h"
#include "cairn/nn/pool.h"

namespace cairn::nn {

struct ResNetOptions {
  int64_t in_channels = 3;
  int64_t num_classes = 1000;
  // Starts each block as the identity: the weight of its last batch norm is 0.
  bool zero_init_residual = false;
  DType dtype = DType::f32;
};

struct ResNetConfig {
  enum class Block { basic, bottleneck };
  Block block = Block::basic;
  std::array<int64_t, 4> depths{};  // blocks of layer1 … layer4
  ResNetOptions options;
};

ResNetConfig resnet18(const ResNetOptions& options = {});
ResNetConfig resnet34(const ResNetOptions& options = {});
ResNetConfig resnet50(const ResNetOptions& options = {});

// Two 3x3 convolutions beside a shortcut. width: channels of the result.
class BasicBlock final : public Layer {
 public:
  static constexpr int64_t kExpansion = 1;
  BasicBlock(int64_t in, int64_t width, int64_t stride, const ResNetOptions& options);
  Tensor forward(const Tensor& x) override;

  Conv2d conv1;
  BatchNorm2d bn1;
  Conv2d conv2;
  BatchNorm2d bn2;
  std::unique_ptr<Sequential> downsample;  // null where the shortcut is the input itself
};

// 1x1, 3x3 and 1x1 convolutions beside a shortcut; the result has 4 width channels.
class Bottleneck final : public Layer {
 public:
  static constexpr int64_t kExpansion = 4;
  Bottleneck(int64_t in, int64_t width, int64_t stride, const ResNetOptions& options);
  Tensor forward(const Tensor& x) override;

  Conv2d conv1;
  BatchNorm2d bn1;
  Conv2d conv2;
  BatchNorm2d bn2;
  Conv2d conv3;
  BatchNorm2d bn3;
  std::unique_ptr<Sequential> downsample;  // null where the shortcut is the input itself
};

// x [N, in_channels, H, W] -> logits [N, num_classes].
class ResNet final : public Layer {
 public:
  explicit ResNet(const ResNetConfig& config) : ResNet(Child{}, config) {}
  ResNet(const Child& place, const ResNetConfig& config);
  Tensor forward(const Tensor& x) override;

  Conv2d conv1;
  BatchNorm2d bn1;
  MaxPool2d maxpool;
  Sequential layer1, layer2, layer3, layer4;
  AdaptiveAvgPool2d avgpool;
  Linear fc;
};

}  // namespace cairn::nn
