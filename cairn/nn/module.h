// Module: a tree of named parameters, buffers and child modules.
// Invariant: everything registers itself while it is constructed, so the order is the order of
// declaration; a module is neither copied nor moved, so parents and children may point at each
// other.
//
//   struct Mlp : nn::Module {
//     nn::Linear up{child("up"), 64, 256};
//     nn::Linear down{child("down"), 256, 64};
//     Tensor scale = parameter("scale", ones({64}));
//     Tensor forward(const Tensor& x) { return mul(down(relu(up(x))), scale); }
//   };
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cairn/nn/state_dict.h"
#include "cairn/tensor/tensor.h"

namespace cairn::nn {

class Module;

// Where a module hangs: the first argument of its constructor, made by Module::child(). Without a
// parent the module is a root.
struct Child {
  Module* parent = nullptr;
  std::string name;
};

struct LoadOptions {
  // Missing, unexpected or mismatched keys are an error, and nothing is loaded.
  bool strict = true;
};
// The keys that load_state_dict(…, {.strict = false}) left alone.
struct LoadReport {
  std::vector<std::string> missing;     // of the module, absent from the dict
  std::vector<std::string> unexpected;  // of the dict, absent from the module
  std::vector<std::string> mismatched;  // in both, of different shape (or floating against integer)
};

class Module {
 public:
  Module() = default;
  // Hangs itself into place.parent. A name that is empty, has a dot or is taken throws Error.
  explicit Module(const Child& place);
  virtual ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // --- mode ------------------------------------------------------------------------------------
  // Training mode of this module and everything below it.
  void train(bool mode = true);
  void eval() { train(false); }
  bool training() const { return training_; }

  // --- walking the tree: own entries first, then the children's, in order of declaration ---------
  // Each tensor once, even where it is registered under two names.
  std::vector<Tensor> parameters() const;
  NamedTensors named_parameters() const;
  std::vector<Tensor> buffers() const;
  NamedTensors named_buffers() const;
  // This module ("") and all below it: dotted path and module, parents before children.
  std::vector<std::pair<std::string, Module*>> named_modules();
  // Direct children.
  std::vector<std::pair<std::string, Module*>> named_children();
  // Calls fn on every module, children before parents.
  void apply(const std::function<void(Module&)>& fn);
  // Elements of all parameters; with trainable_only those that require a gradient.
  int64_t parameter_count(bool trainable_only = false) const;

  // --- parameters ------------------------------------------------------------------------------
  // Forgets all gradients.
  void zero_grad();
  // Freezes (false) or unfreezes all parameters.
  void set_requires_grad(bool value);
  // Moves parameters, gradients and buffers; the tensors stay the same handles. Do this before
  // making the optimizer, so that its memory lies on the same device.
  void to(Device device);
  // Converts floating parameters, gradients and buffers; running statistics stay f32 beside halves.
  // Floating dtypes only. As above, before making the optimizer.
  void to(DType dtype);

  // --- state -----------------------------------------------------------------------------------
  // Parameters and persistent buffers by dotted path, aliasing the module; the order is PyTorch's:
  // of each module the parameters, then the buffers, then the children.
  StateDict state_dict() const;
  // Copies values in, converting between floating dtypes (or between integer ones). Strict: any
  // missing, unexpected or mismatched key throws one Error that lists them all, and nothing
  // changes. Not strict: loads what fits and returns the rest.
  LoadReport load_state_dict(const StateDict& dict, const LoadOptions& options = {});

 protected:
  // The token that makes a member a child of this module.
  [[nodiscard]] Child child(std::string name) { return {this, std::move(name)}; }
  // Registers a parameter and returns it, requiring a gradient. An undefined tensor (an absent
  // bias) is returned as it is and not registered.
  Tensor parameter(const std::string& name, const Tensor& tensor);
  // Registers a buffer: state that is no parameter. Not persistent: left out of the state dict.
  Tensor buffer(const std::string& name, const Tensor& tensor, bool persistent = true);
  // A persistent buffer of running averages: to(dtype) leaves it f32 where dtype is a half, in
  // which small steps would be lost.
  Tensor statistics(const std::string& name, const Tensor& tensor);
  // Makes a root module a child of this one; for containers that own their modules.
  void adopt(const std::string& name, Module& module);

 private:
  struct Buffer {
    std::string name;
    Tensor tensor;
    bool persistent;
    bool statistics = false;
  };

  void check_name(const char* op, const std::string& name) const;
  template <class Self, class Fn>
  static void visit(Self& self, const std::string& prefix, Fn&& fn);

  Module* parent_ = nullptr;
  bool training_ = true;
  NamedTensors parameters_;
  std::vector<Buffer> buffers_;
  std::vector<std::pair<std::string, Module*>> children_;
};

}  // namespace cairn::nn
