// StateDict: names and tensors in a fixed order, as modules give and take them.
// Invariant: a name occurs once; the tensors are handles, so a dict from state_dict() aliases the
// module and writing through it changes the module.
#pragma once

#include <initializer_list>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cairn/tensor/tensor.h"

namespace cairn::nn {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

class StateDict {
 public:
  StateDict() = default;
  // From anything that holds pairs of name and tensor: std::map, a vector of pairs, {{"w", w}}.
  template <class Pairs>
  requires requires(const Pairs& p) { std::string(p.begin()->first), Tensor(p.begin()->second); }
  StateDict(const Pairs& pairs) {
    for (const auto& [name, tensor] : pairs) insert(name, tensor);
  }
  StateDict(std::initializer_list<std::pair<std::string, Tensor>> pairs) {
    for (const auto& [name, tensor] : pairs) insert(name, tensor);
  }

  // Appends; a name that is there already throws Error.
  void insert(std::string name, Tensor tensor) {
    check(index_.emplace(name, entries_.size()).second, "state_dict: names must be unique, got ",
          name, " twice");
    entries_.emplace_back(std::move(name), std::move(tensor));
  }
  // Null when the name is absent.
  const Tensor* find(const std::string& name) const {
    const auto at = index_.find(name);
    return at == index_.end() ? nullptr : &entries_[at->second].second;
  }
  // Throws Error when the name is absent.
  const Tensor& at(const std::string& name) const {
    const Tensor* tensor = find(name);
    check(tensor != nullptr, "state_dict: name must be one of the ", size(), " entries, got ",
          name);
    return *tensor;
  }
  bool contains(const std::string& name) const { return find(name) != nullptr; }

  size_t size() const { return entries_.size(); }
  bool empty() const { return entries_.empty(); }
  NamedTensors::const_iterator begin() const { return entries_.begin(); }
  NamedTensors::const_iterator end() const { return entries_.end(); }
  const NamedTensors& entries() const { return entries_; }

 private:
  NamedTensors entries_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace cairn::nn
