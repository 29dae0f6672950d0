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

// Gradient metadata of a tensor: of a leaf (requires_grad set by the user), or the part of a node
// that its inputs and consumers see.
struct AutogradMeta : GradMeta {
  explicit AutogradMeta(const Tensor& t)
      : shape(t.shape()), strides(t.strides()), dtype(t.dtype()), device(t.device()) {}

  bool requires_grad = false;
  Node* node = nullptr;  // the node that this is part of; null for a leaf
  // What the tensor looks like: a gradient takes the same layout where that is dense.
  Shape shape;
  Shape strides;
  DType dtype;
  Device device;
  // Of a leaf: the gradient's memory; `has_grad` says whether it holds a gradient, so that
  // zero_grad is a flag and the next backward overwrites. Of a node: the output's gradient while
  // backward runs.
  Tensor grad;
  bool has_grad = false;
  // Zeros in grad's memory, as long as its version is zeros_version. Handing a leaf's gradient out
  // (grad(), hooks) ends that trust; other views of the memory bump the version when they write.
  kernels::ZeroPattern zeros;
  uint32_t zeros_version = 0;
  uint64_t zeros_capture = 0;  // number of the capture that looked at them last
  // Leaf only: fires once per backward, after the last contribution.
  std::vector<std::function<void(const Tensor& grad)>> ready_hooks;
  // The same for those that are not given the gradient, which leave `zeros` alone.
  std::vector<std::function<void()>> leaf_hooks;
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
};
Edge edge_to(const Tensor& input);

// What a backward rule sees: the gradient of the op's output, and where to write those of its
// inputs.
class Grads {
 public:
  Grads(const Node& node, const Tensor& out) : node_(node), out_(out) {}

  // The gradient of the output: its shape and dtype; contiguous or not.
  const Tensor& out() const { return out_; }
  bool needs(size_t i) const;
  // The shape of input i, which must need a gradient.
  const Shape& shape(size_t i) const;
  // Where to write input i's gradient: {tensor of the input's shape, add}; empty if not needed.
  // May be asked once per rule and input.
  Dst dst(size_t i);
  // As dst, with `zeros` for a leaf, or where nothing was written yet: for a rule whose gradient is
  // 0 in whole stretches of memory.
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

class Node : public AutogradMeta {
 public:
  // `out` is the op's output.
  Node(const char* name, const Tensor& out);
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  // The rule: writes the gradient of every input that needs one, through `grads`.
  virtual void backward(Grads& grads) = 0;
  // Drops the rule and all it saved.
  virtual void release() = 0;

  // Lets go of the inputs; long chains are destroyed with a loop. To be called by the destructor
  // of the class that holds the edges.
  void drop_edges();

  const char* name;
  uint64_t sequence;
  std::span<Edge> edges;
  bool grad_owned = false;  // whether `grad` may be added to in place
  bool queued = false;
  bool released = false;
};

}  // namespace cairn
