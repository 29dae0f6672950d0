// Module: registration, walking, moving, saving and loading.
#include "cairn/nn/module.h"

#include <algorithm>
#include <set>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/conv.h"
#include "cairn/tensor/raw.h"

namespace cairn::nn {
namespace {

bool add_once(std::set<const void*>& seen, const Tensor& t) { return seen.insert(t.id()).second; }

// A copy of `t` with the same strides where they are dense.
Tensor moved(const Tensor& t, const TensorOptions& options) {
  return raw::to(t, options.dtype, options.device);
}

// As moved(); a convolution's weight, or its gradient, goes from the layout that its device's
// kernels read to the one that the new device's do.
Tensor moved_parameter(const Tensor& t, const TensorOptions& options) {
  if (!is_conv2d_weight(t)) return moved(t, options);
  const Tensor out =
      empty_strided(t.shape(), conv2d_weight_strides(options.device, t.shape()), options);
  raw::copy_(out, t);
  return out;
}

// The parameter and its gradient, if it has one.
void move_parameter(const Tensor& p, const TensorOptions& options) {
  p.set_data(moved_parameter(p, options));
  AutogradMeta* meta = autograd_meta(p);
  if (meta == nullptr) return;
  meta->dtype = options.dtype;
  meta->device = options.device;
  meta->strides = p.strides();
  meta->grad =
      meta->grad.defined() && meta->has_grad ? moved_parameter(meta->grad, options) : Tensor{};
  meta->zeros.clear();
}

// ", missing a, b" and the like; nothing for an empty list.
void append_list(std::string& text, const char* title, const std::vector<std::string>& keys) {
  if (keys.empty()) return;
  text += text.empty() ? "" : "; ";
  text += title;
  for (size_t i = 0; i < keys.size(); ++i) append_text(text, cat(i == 0 ? " " : ", ", keys[i]));
}

}  // namespace

Module::Module(const Child& place) {
  if (place.parent != nullptr) place.parent->adopt(place.name, *this);
}

Module::~Module() {
  // Either may go first: a child that is reset while its parent lives, or a parent whose child
  // belongs to somebody else.
  if (parent_ != nullptr)
    std::erase_if(parent_->children_, [this](const auto& c) { return c.second == this; });
  for (auto& [name, module] : children_) module->parent_ = nullptr;
}

void Module::check_name(const char* op, const std::string& name) const {
  check(!name.empty() && name.find('.') == std::string::npos, op,
        ": name must not be empty or have a dot, got \"", name, "\"");
  bool taken = false;
  for (const auto& p : parameters_) taken |= p.first == name;
  for (const auto& b : buffers_) taken |= b.name == name;
  for (const auto& c : children_) taken |= c.first == name;
  check(!taken, op, ": name must be new in its module, got ", name, " twice");
}

void Module::adopt(const std::string& name, Module& module) {
  check_name("child", name);
  check(module.parent_ == nullptr, "child: module must not have a parent yet, got one for ", name);
  children_.emplace_back(name, &module);
  module.parent_ = this;
}

Tensor Module::parameter(const std::string& name, const Tensor& tensor) {
  check_name("parameter", name);
  if (!tensor.defined()) return tensor;
  cairn::set_requires_grad(tensor);
  parameters_.emplace_back(name, tensor);
  return tensor;
}

Tensor Module::buffer(const std::string& name, const Tensor& tensor, bool persistent) {
  check_name("buffer", name);
  if (tensor.defined()) buffers_.push_back({name, tensor, persistent});
  return tensor;
}

Tensor Module::statistics(const std::string& name, const Tensor& tensor) {
  check_name("statistics", name);
  if (tensor.defined()) buffers_.push_back({name, tensor, true, true});
  return tensor;
}

// Calls fn(path prefix with a trailing dot, module) on self and all below, parents first.
template <class Self, class Fn>
void Module::visit(Self& self, const std::string& prefix, Fn&& fn) {
  fn(prefix, self);
  for (const auto& [name, module] : self.children_)
    visit(static_cast<Self&>(*module), cat(prefix, name, "."), fn);
}

void Module::train(bool mode) {
  visit(*this, "", [&](const std::string&, Module& m) { m.training_ = mode; });
}

NamedTensors Module::named_parameters() const {
  NamedTensors out;
  std::set<const void*> seen;
  visit(*this, "", [&](const std::string& prefix, const Module& m) {
    for (const auto& [name, tensor] : m.parameters_)
      if (add_once(seen, tensor)) out.emplace_back(prefix + name, tensor);
  });
  return out;
}

NamedTensors Module::named_buffers() const {
  NamedTensors out;
  std::set<const void*> seen;
  visit(*this, "", [&](const std::string& prefix, const Module& m) {
    for (const auto& b : m.buffers_)
      if (add_once(seen, b.tensor)) out.emplace_back(prefix + b.name, b.tensor);
  });
  return out;
}

std::vector<Tensor> Module::parameters() const {
  std::vector<Tensor> out;
  for (auto& entry : named_parameters()) out.push_back(std::move(entry.second));
  return out;
}

std::vector<Tensor> Module::buffers() const {
  std::vector<Tensor> out;
  for (auto& entry : named_buffers()) out.push_back(std::move(entry.second));
  return out;
}

std::vector<std::pair<std::string, Module*>> Module::named_modules() {
  std::vector<std::pair<std::string, Module*>> out;
  visit(*this, "", [&](const std::string& prefix, Module& m) {
    out.emplace_back(prefix.substr(0, prefix.empty() ? 0 : prefix.size() - 1), &m);
  });
  return out;
}

std::vector<std::pair<std::string, Module*>> Module::named_children() { return children_; }

void Module::apply(const std::function<void(Module&)>& fn) {
  for (const auto& entry : children_) entry.second->apply(fn);
  fn(*this);
}

int64_t Module::parameter_count(bool trainable_only) const {
  int64_t count = 0;
  for (const Tensor& p : parameters())
    if (!trainable_only || requires_grad(p)) count += p.numel();
  return count;
}

void Module::zero_grad() {
  for (const Tensor& p : parameters()) cairn::zero_grad(p);
}

void Module::set_requires_grad(bool value) {
  for (const Tensor& p : parameters()) cairn::set_requires_grad(p, value);
}

void Module::to(Device device) {
  for (const Tensor& p : parameters())
    if (p.device() != device) move_parameter(p, {p.dtype(), device});
  for (const Tensor& b : buffers())
    if (b.device() != device) b.set_data(moved(b, {b.dtype(), device}));
}

void Module::to(DType dtype) {
  check(is_floating(dtype), "to: dtype must be floating, got ", dtype);
  for (const Tensor& p : parameters())
    if (p.dtype() != dtype) move_parameter(p, {dtype, p.device()});
  visit(*this, "", [&](const std::string&, Module& m) {
    for (const Buffer& b : m.buffers_) {
      const DType wanted = b.statistics ? compute_dtype(dtype) : dtype;
      if (is_floating(b.tensor.dtype()) && b.tensor.dtype() != wanted)
        b.tensor.set_data(moved(b.tensor, {wanted, b.tensor.device()}));
    }
  });
}

StateDict Module::state_dict() const {
  NamedTensors out;
  visit(*this, "", [&](const std::string& prefix, const Module& m) {
    // Aliases take no part in the graph, so that reading and saving them is never recorded.
    for (const auto& [name, tensor] : m.parameters_)
      out.emplace_back(prefix + name, tensor.alias());
    for (const auto& b : m.buffers_)
      if (b.persistent) out.emplace_back(prefix + b.name, b.tensor.alias());
  });
  return StateDict(out);
}

LoadReport Module::load_state_dict(const StateDict& dict, const LoadOptions& options) {
  const StateDict own = state_dict();
  LoadReport report;
  std::vector<std::pair<Tensor, Tensor>> copies;
  for (const auto& [name, tensor] : own) {
    const Tensor* given = dict.find(name);
    if (given == nullptr || !given->defined()) {
      report.missing.push_back(name);
    } else if (given->shape() != tensor.shape() ||
               is_floating(given->dtype()) != is_floating(tensor.dtype())) {
      report.mismatched.push_back(cat(name, " (", tensor.dtype(), " ", tensor.shape(),
                                      " in the module, ", given->dtype(), " ", given->shape(),
                                      " in the dict)"));
    } else {
      copies.emplace_back(tensor, *given);
    }
  }
  for (const auto& entry : dict)
    if (!own.contains(entry.first)) report.unexpected.push_back(entry.first);

  if (options.strict) {
    std::string text;
    append_list(text, "missing", report.missing);
    append_list(text, "unexpected", report.unexpected);
    append_list(text, "mismatched", report.mismatched);
    check(text.empty(), "load_state_dict: keys must be the module's, got ", text);
  }
  for (const auto& [to, from] : copies) {
    raw::copy_(to, from);
    to.bump_version("load_state_dict");
  }
  return report;
}

}  // namespace cairn::nn
