// ResNet: blocks, stages and torchvision's initialisation.
#include "cairn/nn/models/resnet.h"

#include "cairn/autograd/ops/indexing.h"
#include "cairn/nn/init.h"

namespace cairn::nn {
namespace {

void init_conv(const Tensor& weight) {
  init::kaiming_normal_(weight,
                        {.mode = init::FanMode::fan_out, .nonlinearity = init::Nonlinearity::relu});
}

// Square kernels of odd size that keep the size of the image, bar the stride.
Conv2dOptions conv_options(int64_t kernel, int64_t stride, DType dtype) {
  return {.stride = stride,
          .padding = kernel / 2,
          .bias = false,
          .dtype = dtype,
          .weight_init = init_conv};
}

// The shortcut's own convolution, where sizes or channels change.
std::unique_ptr<Sequential> make_downsample(const Child& place, int64_t in, int64_t out,
                                            int64_t stride, DType dtype) {
  if (stride == 1 && in == out) return nullptr;
  return std::make_unique<Sequential>(place,
                                      layer<Conv2d>(in, out, 1, conv_options(1, stride, dtype)),
                                      layer<BatchNorm2d>(out, BatchNormOptions{.dtype = dtype}));
}

Tensor shortcut(const std::unique_ptr<Sequential>& downsample, const Tensor& x) {
  return downsample ? downsample->forward(x) : x;
}

template <class Block>
void fill_stage(Sequential& stage, int64_t* channels, int64_t width, int64_t depth, int64_t stride,
                const ResNetOptions& options) {
  for (int64_t i = 0; i < depth; ++i) {
    stage.append(layer<Block>(*channels, width, i == 0 ? stride : 1, options));
    *channels = width * Block::kExpansion;
  }
}

int64_t expansion(const ResNetConfig& config) {
  return config.block == ResNetConfig::Block::basic ? BasicBlock::kExpansion
                                                    : Bottleneck::kExpansion;
}

constexpr int64_t kStem = 64;  // channels after the stem and of the first stage

}  // namespace

ResNetConfig resnet18(const ResNetOptions& options) {
  return {ResNetConfig::Block::basic, {2, 2, 2, 2}, options};
}
ResNetConfig resnet34(const ResNetOptions& options) {
  return {ResNetConfig::Block::basic, {3, 4, 6, 3}, options};
}
ResNetConfig resnet50(const ResNetOptions& options) {
  return {ResNetConfig::Block::bottleneck, {3, 4, 6, 3}, options};
}

BasicBlock::BasicBlock(int64_t in, int64_t width, int64_t stride, const ResNetOptions& options)
    : conv1{child("conv1"), in, width, 3, conv_options(3, stride, options.dtype)},
      bn1{child("bn1"), width, {.dtype = options.dtype}},
      conv2{child("conv2"), width, width, 3, conv_options(3, 1, options.dtype)},
      bn2{child("bn2"), width, {.dtype = options.dtype}},
      downsample(make_downsample(child("downsample"), in, width, stride, options.dtype)) {
  if (options.zero_init_residual) init::zeros_(bn2.weight);
}

Tensor BasicBlock::forward(const Tensor& x) {
  const Tensor hidden = conv2(bn1.forward_relu(conv1(x)));
  return bn2.forward_relu(hidden, shortcut(downsample, x));
}

Bottleneck::Bottleneck(int64_t in, int64_t width, int64_t stride, const ResNetOptions& options)
    : conv1{child("conv1"), in, width, 1, conv_options(1, 1, options.dtype)},
      bn1{child("bn1"), width, {.dtype = options.dtype}},
      conv2{child("conv2"), width, width, 3, conv_options(3, stride, options.dtype)},
      bn2{child("bn2"), width, {.dtype = options.dtype}},
      conv3{child("conv3"), width, width * kExpansion, 1, conv_options(1, 1, options.dtype)},
      bn3{child("bn3"), width * kExpansion, {.dtype = options.dtype}},
      downsample(
          make_downsample(child("downsample"), in, width * kExpansion, stride, options.dtype)) {
  if (options.zero_init_residual) init::zeros_(bn3.weight);
}

Tensor Bottleneck::forward(const Tensor& x) {
  const Tensor hidden = bn2.forward_relu(conv2(bn1.forward_relu(conv1(x))));
  return bn3.forward_relu(conv3(hidden), shortcut(downsample, x));
}

ResNet::ResNet(const Child& place, const ResNetConfig& config)
    : Layer(place),
      conv1{child("conv1"), config.options.in_channels, kStem, 7,
            conv_options(7, 2, config.options.dtype)},
      bn1{child("bn1"), kStem, {.dtype = config.options.dtype}},
      maxpool{child("maxpool"), {.kernel_size = 3, .stride = 2, .padding = 1}},
      layer1{child("layer1")},
      layer2{child("layer2")},
      layer3{child("layer3")},
      layer4{child("layer4")},
      avgpool{child("avgpool"), 1},
      fc{child("fc"),
         8 * kStem * expansion(config),
         config.options.num_classes,
         {.dtype = config.options.dtype}} {
  int64_t channels = kStem;
  int64_t width = kStem;
  Sequential* const stages[] = {&layer1, &layer2, &layer3, &layer4};
  for (size_t i = 0; i < 4; ++i, width *= 2) {
    check(config.depths[i] > 0, "resnet: depths must be positive, got ", config.depths[i]);
    const int64_t stride = i == 0 ? 1 : 2;
    if (config.block == ResNetConfig::Block::basic)
      fill_stage<BasicBlock>(*stages[i], &channels, width, config.depths[i], stride,
                             config.options);
    else
      fill_stage<Bottleneck>(*stages[i], &channels, width, config.depths[i], stride,
                             config.options);
  }
}

Tensor ResNet::forward(const Tensor& x) {
  Tensor h = maxpool(bn1.forward_relu(conv1(x)));
  h = layer4(layer3(layer2(layer1(h))));
  return fc(flatten(avgpool(h), 1));
}

}  // namespace cairn::nn
