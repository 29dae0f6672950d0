// Containers of layers.
#include "cairn/nn/container.h"

#include "cairn/autograd/ops/indexing.h"

namespace cairn::nn {

Layer& Sequential::append(std::unique_ptr<Layer> layer) {
  check(layer != nullptr, "sequential: layer must be defined, got a null pointer");
  adopt(std::to_string(layers_.size()), *layer);
  layers_.push_back(std::move(layer));
  return *layers_.back();
}

Tensor Sequential::forward(const Tensor& x) {
  Tensor out = x;
  for (const auto& layer : layers_) out = layer->forward(out);
  return out;
}

Layer& Sequential::operator[](size_t i) {
  check(i < size(), "sequential: index must be below ", size(), ", got ", i);
  return *layers_[i];
}

Tensor Flatten::forward(const Tensor& x) { return flatten(x, start_dim_, end_dim_); }

}  // namespace cairn::nn
