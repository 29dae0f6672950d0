// Recording: how an op joins the graph.
// Invariant: record() returns its output untouched when no input needs a gradient or grad mode is
// off.
#pragma once

#include <array>
#include <initializer_list>
#include <optional>
#include <utility>

#include "cairn/autograd/node.h"
#include "cairn/tensor/pool.h"

namespace cairn {

// Whether ops are recorded on this thread.
bool grad_enabled();
void set_grad_enabled(bool enabled);

// Switches recording off for a scope.
class NoGrad {
 public:
  NoGrad() : before_(grad_enabled()) { set_grad_enabled(false); }
  ~NoGrad() { set_grad_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

// A tensor in a braced list of an op's inputs; a list of tensors would copy the handles.
struct Input {
  Input(const Tensor& t) : tensor(t) {}
  const Tensor& tensor;
};

// Whether an op with these inputs would be recorded now. Undefined tensors count as constants.
bool will_record(std::span<const Input> inputs);
bool will_record(std::span<const Tensor> inputs);
inline bool will_record(std::initializer_list<Input> inputs) {
  return will_record(std::span<const Input>(inputs.begin(), inputs.size()));
}

// A tensor kept for backward. Reading it checks that no public op wrote to it since.
class Saved {
 public:
  Saved() = default;
  explicit Saved(const Tensor& t) {
    if (!t.defined()) return;
    tensor_ = t.alias();  // without the metadata: a saved output must not keep its own node alive
    version_ = t.version();
  }
  bool defined() const { return tensor_.defined(); }
  // `op` names the rule in the error: "op: a tensor saved for backward was changed in place by X".
  const Tensor& get(const char* op) const {
    if (tensor_.defined() && tensor_.version() != version_) [[unlikely]]
      fail(op, ": a tensor saved for backward was changed in place by ",
           tensor_.storage()->last_writer());
    return tensor_;
  }

 private:
  Tensor tensor_;
  uint32_t version_ = 0;
};

namespace detail {

template <class Rule, class Edges>
class RuleNode final : public Node {
 public:
  RuleNode(const char* name, const Tensor& out, Edges edges, Rule rule)
      : Node(name, out), edges_(std::move(edges)), rule_(std::move(rule)) {
    Node::edges = edges_;
  }
  ~RuleNode() override { drop_edges(); }
  void backward(Grads& grads) override { (*rule_)(grads); }
  void release() override { rule_.reset(); }

 private:
  Edges edges_;
  std::optional<Rule> rule_;
};

template <class Edges, class Rule>
Tensor attach(const char* name, Tensor out, Edges edges, Rule&& rule) {
  // An op that returned one of its inputs (a no-op conversion, say) must not lose that input's own
  // metadata.
  if (out.grad_meta()) out = out.alias();
  out.set_grad_meta(make_pooled<RuleNode<std::decay_t<Rule>, Edges>>(name, out, std::move(edges),
                                                                     std::forward<Rule>(rule)));
  return out;
}

}  // namespace detail

// Joins `out` to the graph: `rule(Grads&)` turns its gradient into the inputs'. `name` must be a
// string literal. The rule is stored by value; it should capture Saved, never Tensor, for inputs
// and outputs. Inputs are numbered as listed; undefined ones (absent bias) are allowed.
template <size_t N, class Rule>
Tensor record(const char* name, Tensor out, const Input (&inputs)[N], Rule&& rule) {
  if (!will_record(inputs)) return out;
  std::array<Edge, N> edges;
  for (size_t i = 0; i < N; ++i) edges[i] = edge_to(inputs[i].tensor);
  return detail::attach(name, std::move(out), std::move(edges), std::forward<Rule>(rule));
}
template <class Rule>
Tensor record(const char* name, Tensor out, std::span<const Tensor> inputs, Rule&& rule) {
  if (!will_record(inputs)) return out;
  std::vector<Edge> edges;
  edges.reserve(inputs.size());
  for (const Tensor& input : inputs) edges.push_back(edge_to(input));
  return detail::attach(name, std::move(out), std::move(edges), std::forward<Rule>(rule));
}

// Records an op that has written into `self` in place: `self` now stands for the op's output; its
// old self is input 0, followed by `others`. Call check_inplace before writing.
template <class Rule>
void record_inplace(const char* name, const Tensor& self, std::initializer_list<Tensor> others,
                    Rule&& rule);
// Throws where writing into `self` would spoil a gradient: a leaf that requires one, a view, or a
// tensor that has a view.
void check_inplace(const char* op, const Tensor& self);

template <class Rule>
void record_inplace(const char* name, const Tensor& self, std::initializer_list<Tensor> others,
                    Rule&& rule) {
  // The old self keeps the old metadata, so the new node's edge leads to where it came from.
  Tensor before = self.alias();
  before.set_grad_meta(self.grad_meta());
  std::vector<Tensor> inputs{before};
  inputs.insert(inputs.end(), others.begin(), others.end());
  Tensor after =
      record(name, self.alias(), std::span<const Tensor>(inputs), std::forward<Rule>(rule));
  self.set_grad_meta(after.grad_meta());
}

}  // namespace cairn
