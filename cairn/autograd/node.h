// The recorded graph: one node per op, with the rule that turns its output's gradient into its
// inputs' gradients.
// Invariant: a node's inputs were made before it, so higher sequence numbers are always nearer to
// the root; a node frees what it saved as soon as it has run.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cairn/kernels/slot.h"
#include "cairn/tensor/tensor.h"

namespace cairn {

class Node;
using kernels::Dst;

// Gradient metadata of a tensor: of a leaf (requires_grad set by the user) or of an op's output.
struct AutogradMeta final : GradMeta {
  bool requires_grad = false;
  std::shared_ptr<Node> node;  // null for a leaf
  // Leaf only. The gradient's memory; `has_grad` says whether it holds a gradient, so that
  // zero_grad is a flag and the next backward overwrites.
  Tensor grad;
  bool has_grad = false;
  // Leaf only. Zeros in grad's memory, as long as its version is zeros_version: whoever may write
  // there unseen (a holder of grad()'s handle, a hook) ends that trust.
  kernels::ZeroRanges zeros;
  uint32_t zeros_version = 0;
  // Leaf only: fires once per backward, after the last contribution.
  std::vector<std::function<void(const Tensor& grad)>> ready_hooks;
  // Leaf only: contributions still to come in the running backward.
  int pending = 0;
};

// Metadata of `t`, or null when it takes no part in a graph.
inline AutogradMeta* autograd_meta(const Tensor& t) {
  return static_cast<AutogradMeta*>(t.grad_meta().get());
}
inline bool requires_grad(const Tensor& t) {
  return t.defined() && t.grad_meta() != nullptr && autograd_meta(t)->requires_grad;
}

// One input of a node: where its gradient goes. Empty when it needs none.
struct Edge {
  std::shared_ptr<AutogradMeta> meta;
  Shape shape;
  Shape strides;  // the forward tensor's; a gradient takes the same layout where that is dense
  DType dtype = DType::f32;
  Device device;
};

// What a backward rule sees: the gradient of the op's output, and where to write those of its
// inputs.
class Grads {
 public:
  Grads(const Node& node, const Tensor& out) : node_(node), out_(out) {}

  // The gradient of the output: its shape and dtype; contiguous or not.
  const Tensor& out() const { return out_; }
  bool needs(size_t i) const;
  // Where to write input i's gradient: {tensor of the input's shape, add}; empty if not needed.
  // May be asked once per rule and input.
  Dst dst(size_t i);
  // As dst, with `zeros` for a leaf: for a rule whose gradient is 0 in whole stretches of memory.
  Dst dst_with_zeros(size_t i);
  // As dst, but already cleared, for rules that touch only part of it: always add.
  Dst dst_cleared(size_t i);
  // Hands a finished gradient over: stolen if it is the first, else added. `grad` must not be
  // written any more. Its shape must be the input's, or broadcast from it (then it is summed).
  void give(size_t i, const Tensor& grad);

 private:
  const Node& node_;
  const Tensor& out_;
};

class Node {
 public:
  Node() = default;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  virtual ~Node();
  // The rule: writes the gradient of every input that needs one, through `grads`.
  virtual void backward(Grads& grads) = 0;
  // Drops the rule and all it saved.
  virtual void release() = 0;

  const char* name = "";
  uint64_t sequence = 0;
  std::vector<Edge> edges;
  // The output's gradient while backward runs; `grad_owned` says whether it may be added to in
  // place.
  Tensor grad;
  bool grad_owned = false;
  // What the output looks like, for making its gradient.
  Shape shape;
  Shape strides;
  DType dtype = DType::f32;
  Device device;
  bool queued = false;
  bool released = false;
};

}  // namespace cairn
