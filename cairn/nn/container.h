// Layer, the module with one tensor in and one out, and the containers of layers.
// Invariant: a container owns its layers and names them 0, 1, … in order.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cairn/nn/module.h"

namespace cairn::nn {

// What can stand in a Sequential. `layer(x)` is `layer.forward(x)`.
class Layer : public Module {
 public:
  using Module::Module;
  virtual Tensor forward(const Tensor& x) = 0;
  Tensor operator()(const Tensor& x) { return forward(x); }
};

// A layer for a Sequential: layer<Linear>(64, 10).
template <class L, class... Args>
std::unique_ptr<Layer> layer(Args&&... args) {
  return std::make_unique<L>(std::forward<Args>(args)...);
}

// Layers one after another:
//   Sequential net{child("net"), layer<Linear>(64, 32), layer<ReLU>(), layer<Linear>(32, 10)};
class Sequential final : public Layer {
 public:
  using Layer::Layer;
  template <class... Layers>
  requires(sizeof...(Layers) > 0 && (std::convertible_to<Layers&&, std::unique_ptr<Layer>> &&
                                     ...)) explicit Sequential(Layers&&... layers)
      : Sequential(Child{}, std::forward<Layers>(layers)...) {}
  template <class... Layers>
  requires(sizeof...(Layers) > 0 && (std::convertible_to<Layers&&, std::unique_ptr<Layer>> &&
                                     ...)) explicit Sequential(const Child& place,
                                                               Layers&&... layers)
      : Layer(place) {
    (append(std::forward<Layers>(layers)), ...);
  }

  Tensor forward(const Tensor& x) override;
  // Adds a layer at the end.
  Layer& append(std::unique_ptr<Layer> layer);

  size_t size() const { return layers_.size(); }
  // Layer i; past the end throws Error.
  Layer& operator[](size_t i);

 private:
  std::vector<std::unique_ptr<Layer>> layers_;
};

// Modules of one type that the owner calls as it likes:
//   ModuleList<Block> blocks{child("blocks")};   …   blocks.emplace(64, 4);
template <class M>
class ModuleList final : public Module {
 public:
  using Module::Module;
  // Constructs an M as the next child; M's constructor takes a Child first.
  template <class... Args>
  M& emplace(Args&&... args) {
    modules_.push_back(
        std::make_unique<M>(child(std::to_string(modules_.size())), std::forward<Args>(args)...));
    return *modules_.back();
  }
  size_t size() const { return modules_.size(); }
  M& operator[](size_t i) {
    check(i < size(), "module_list: index must be below ", size(), ", got ", i);
    return *modules_[i];
  }

 private:
  std::vector<std::unique_ptr<M>> modules_;
};

// The input itself.
class Identity final : public Layer {
 public:
  using Layer::Layer;
  Tensor forward(const Tensor& x) override { return x; }
};

// Joins dimensions start_dim … end_dim.
class Flatten final : public Layer {
 public:
  explicit Flatten(int64_t start_dim = 1, int64_t end_dim = -1)
      : Flatten(Child{}, start_dim, end_dim) {}
  explicit Flatten(const Child& place, int64_t start_dim = 1, int64_t end_dim = -1)
      : Layer(place), start_dim_(start_dim), end_dim_(end_dim) {}
  Tensor forward(const Tensor& x) override;

 private:
  int64_t start_dim_;
  int64_t end_dim_;
};

}  // namespace cairn::nn
