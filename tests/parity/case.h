// One case of ops.json: its inputs and options for the op under test, and the comparison with what
// PyTorch answered. The files are explained in README.md.
// Invariant: a run that leaves an input or an option of its case unread is a failure, so nothing
// the file asks for is silently dropped.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cairn/autograd/ops/conv.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/tensor/tensor.h"

namespace cairn::parity {

using Tensors = std::map<std::string, Tensor>;

// Both are read once; CAIRN_SOURCE_DIR/tests/parity/<name>.
nlohmann::json load_json(const std::string& name);
Tensors load_tensors(const std::string& name);

// How a case runs: floating inputs in `dtype`, row-major in memory or with their dimensions laid
// out in reversed order (what a transposed or channels-last operand is to a kernel).
struct Mode {
  DType dtype = DType::f64;
  bool reversed = false;
};

class Case {
 public:
  Case(const nlohmann::json& info, const Tensors& tensors, Mode mode);

  const std::string& op() const { return op_; }
  DType dtype() const { return mode_.dtype; }
  int64_t input_count() const { return static_cast<int64_t>(inputs_.size()); }

  // The input, which must exist; a leaf where the case has its gradient.
  Tensor in(const std::string& key);
  // The input or, where the case has none of that name, an undefined tensor.
  Tensor in_or_none(const std::string& key);
  // Makes `tensor` (a module's own parameter, filled from in(key)) the leaf whose gradient counts.
  void set_leaf(const std::string& key, const Tensor& tensor);

  // The option, which must exist.
  const nlohmann::json& option(const std::string& key);
  template <class T>
  T get(const std::string& key) {
    return option(key).get<T>();
  }
  template <class T>
  std::optional<T> get_or_none(const std::string& key) {
    const nlohmann::json& value = option(key);
    return value.is_null() ? std::nullopt : std::optional<T>(value.get<T>());
  }
  bool has_option(const std::string& key) const { return options_.contains(key); }
  Pair pair(const std::string& key);
  // A list of numbers; `null` is the empty shape, which Cairn's reductions read as all dimensions.
  Shape shape(const std::string& key);
  Reduction reduction();

  // Takes the gradients of `outputs` (in the file's order) and compares everything; the texts say
  // what is wrong, none when all is well.
  std::vector<std::string> problems(const std::vector<Tensor>& outputs);

  // Names of all the tensors that the case has in the file.
  std::vector<std::string> tensor_names() const;

 private:
  Tensor prepare(const std::string& tensor_name) const;
  // README's relative tolerances.
  double output_tolerance() const { return mode_.dtype == DType::f64 ? 1e-10 : 1e-5; }
  double gradient_tolerance() const { return mode_.dtype == DType::f64 ? 1e-10 : 1e-4; }

  std::string name_, op_;
  nlohmann::json options_;
  std::vector<std::string> inputs_, outputs_, upstream_, grads_;
  const Tensors& tensors_;
  Mode mode_;
  std::set<std::string> unread_;  // "input x", "option dim"
  Tensors leaves_;
};

// What makes the outputs of a case from it.
using Run = std::function<std::vector<Tensor>(Case&)>;
using Runs = std::map<std::string, Run>;  // by the op's name in the file

Runs maths_runs();  // ops_maths.cpp: elementwise, reductions, moves
Runs layer_runs();  // ops_layers.cpp: convolution … losses

// "" where `got` has `wanted`'s shape and values, else what differs. `wanted` is rounded to got's
// dtype first. Integers and bools must be equal, NaN must meet NaN and an infinity the same one;
// numbers may differ by `relative` times the larger of |wanted there| and min(1, the tensor's
// largest).
std::string difference(const Tensor& got, const Tensor& wanted, double relative);

}  // namespace cairn::parity
