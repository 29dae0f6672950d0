// The engine: one thread, highest sequence number first, explicit stacks.
// Invariant: when a node runs, every consumer of its output has run, because consumers are younger.
#include "cairn/autograd/engine.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cairn/autograd/autocast.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/profiler.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

// Memory for the gradient of a tensor that looks like this: its own layout where that is dense.
Tensor make_grad(const AutogradMeta& meta) {
  const Shape& shape = meta.shape;
  const Shape& strides = meta.strides;
  // Probe the layout without touching memory: a dense layout's largest offset is numel - 1.
  int64_t last = 0;
  int64_t count = 1;
  bool overlaps = false;
  for (size_t i = 0; i < shape.size(); ++i) {
    count *= shape[i];
    last += (shape[i] - 1) * strides[i];
    overlaps |= shape[i] > 1 && strides[i] == 0;
  }
  const bool dense = count > 0 && !overlaps && last == count - 1;
  const TensorOptions options{meta.dtype, meta.device};
  return dense ? empty_strided(shape, strides, options) : empty(shape, options);
}

struct Older {
  bool operator()(const Node* a, const Node* b) const { return a->sequence < b->sequence; }
};

// The running backward of this thread. The root and the edges of all nodes, which are dropped in
// the end, keep nodes and leaves alive.
struct Run {
  std::vector<Node*> heap;  // nodes that have a gradient and wait for their turn
  std::vector<Node*> done;
  std::vector<AutogradMeta*> leaves;
  std::vector<bool> had_grad;  // of each leaf, before
  bool finished = false;

  void push(Node* node) {
    if (node->queued) return;
    node->queued = true;
    heap.push_back(node);
    std::push_heap(heap.begin(), heap.end(), Older{});
  }
  Node* pop() {
    std::pop_heap(heap.begin(), heap.end(), Older{});
    Node* node = heap.back();
    heap.pop_back();
    node->queued = false;
    return node;
  }
};

thread_local Run* current_run = nullptr;

bool fits_memory(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.strides() == b.strides();
}

bool knows_zeros(const AutogradMeta& leaf) {
  return leaf.grad.defined() && leaf.zeros_version == leaf.grad.version();
}
// A handle outside could be written through between here and the optimizer.
bool trusts_zeros(const AutogradMeta& leaf) { return !leaf.grad.defined() || leaf.grad.unique(); }

// A step that is captured finds the zeros that were there before, whenever it is launched.
void rely_on_zeros(const std::shared_ptr<AutogradMeta>& leaf) {
  Capture* const capture = Capture::current(leaf->grad.device());
  if (capture == nullptr || leaf->zeros_capture == capture->number()) return;
  leaf->zeros_capture = capture->number();
  if (leaf->zeros.empty()) return;
  capture->rely_on({"zeros in a gradient", [leaf, zeros = leaf->zeros] {
                      return knows_zeros(*leaf) && trusts_zeros(*leaf) &&
                             contains(leaf->zeros, zeros, leaf->grad.numel());
                    }});
}

// Counts the contributions to every leaf below `root`, and checks that no node was used before.
void count_contributions(Node* root, Run& run) {
  std::vector<Node*> stack{root};
  std::vector<Node*> seen{root};
  root->queued = true;  // marks "visited" during this walk
  while (!stack.empty()) {
    Node* node = stack.back();
    stack.pop_back();
    for (const Edge& edge : node->edges) {
      if (!edge.meta) continue;
      if (Node* next = edge.meta->node) {
        if (next->queued) continue;
        next->queued = true;
        seen.push_back(next);
        stack.push_back(next);
      } else {
        if (edge.meta->pending++ > 0) continue;
        run.leaves.push_back(edge.meta.get());
        run.had_grad.push_back(edge.meta->has_grad);
      }
    }
  }
  bool released = false;
  const char* name = "";
  for (Node* node : seen) {
    node->queued = false;
    if (node->released) {
      released = true;
      name = node->name;
    }
  }
  check(!released, "backward: graph must be used once, got a second backward through ", name);
}

// What hooks want to be told at the end. Also of a backward from a leaf, which has no run.
thread_local std::vector<std::function<void(bool)>>* current_ends = nullptr;

class Ends {
 public:
  Ends() { current_ends = &ends_; }
  ~Ends() {
    current_ends = nullptr;
    for (const auto& end : ends_) end(false);
  }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;
  void finish() {
    current_ends = nullptr;
    for (const auto& end : std::exchange(ends_, {})) end(true);
  }

 private:
  std::vector<std::function<void(bool)>> ends_;
};

void fire_hooks(AutogradMeta& leaf) {
  for (const auto& hook : leaf.ready_hooks) {
    leaf.zeros.clear();
    hook(leaf.grad);
  }
  for (const auto& hook : leaf.leaf_hooks) hook();
}

// Counts down the leaves that this node feeds; the last contribution fires the hooks.
void settle_leaves(const Node& node) {
  for (const Edge& edge : node.edges) {
    if (!edge.meta || edge.meta->node) continue;
    AutogradMeta& leaf = *edge.meta;
    if (--leaf.pending == 0 && leaf.has_grad) fire_hooks(leaf);
  }
}

}  // namespace

void Node::drop_edges() {
  std::vector<std::shared_ptr<AutogradMeta>> doomed;  // nodes with edges that nobody else holds
  const auto drop = [&](Node& node) {
    for (Edge& edge : std::exchange(node.edges, {})) {
      const bool last = edge.meta && edge.meta->node && edge.meta.use_count() == 1;
      if (last && !edge.meta->node->edges.empty()) doomed.push_back(std::move(edge.meta));
      edge.meta = nullptr;
    }
  };
  drop(*this);
  while (!doomed.empty()) {
    const std::shared_ptr<AutogradMeta> last = std::move(doomed.back());
    doomed.pop_back();
    drop(*last->node);
  }
}

bool Grads::needs(size_t i) const { return node_.edges[i].meta != nullptr; }
const Shape& Grads::shape(size_t i) const { return node_.edges[i].meta->shape; }

Dst Grads::dst(size_t i) {
  const Edge& edge = node_.edges[i];
  if (!edge.meta) return {};
  AutogradMeta& meta = *edge.meta;
  if (!meta.node) {
    if (!meta.grad.defined()) meta.grad = make_grad(meta);
    // A rule may name the same leaf twice (mul(w, w)); the second write must add.
    const bool add = meta.has_grad;
    meta.has_grad = true;
    meta.zeros.clear();
    return {meta.grad, add};
  }
  Node& producer = *meta.node;
  producer.zeros.clear();
  current_run->push(meta.node);
  if (!producer.grad.defined()) {
    producer.grad = make_grad(producer);
    producer.grad_owned = true;
    return {producer.grad, false};
  }
  if (!producer.grad_owned) {
    producer.grad = raw::clone(producer.grad);
    producer.grad_owned = true;
  }
  return {producer.grad, true};
}

Dst Grads::dst_with_zeros(size_t i) {
  const Edge& edge = node_.edges[i];
  if (!edge.meta) return {};
  if (Node* const producer = edge.meta->node) {
    Dst d = dst(i);
    if (d.add) return d;
    producer->zeros_version = d.tensor.version();
    d.zeros = &producer->zeros;
    return d;
  }
  AutogradMeta& leaf = *edge.meta;
  const bool trusted = trusts_zeros(leaf);
  kernels::ZeroPattern zeros;
  if (trusted && knows_zeros(leaf)) {
    rely_on_zeros(edge.meta);
    zeros = std::move(leaf.zeros);
  }
  Dst d = dst(i);
  if (Capture* const capture = Capture::current(leaf.grad.device()))
    leaf.zeros_capture = capture->number();  // what comes next is of the capture itself
  if (!trusted) return d;
  leaf.zeros = std::move(zeros);
  leaf.zeros_version = leaf.grad.version();
  d.zeros = &leaf.zeros;
  return d;
}

Dst Grads::dst_cleared(size_t i) {
  Dst d = dst(i);
  if (d && !d.add) {
    raw::fill_(d.tensor, 0);
    d.add = true;
  }
  return d;
}

void Grads::give(size_t i, const Tensor& grad) {
  const Edge& edge = node_.edges[i];
  if (!edge.meta) return;
  AutogradMeta& meta = *edge.meta;
  const bool fits = grad.shape() == meta.shape && grad.dtype() == meta.dtype;
  if (meta.node && fits && !meta.node->grad.defined()) {
    current_run->push(meta.node);
    meta.node->grad = grad;
    meta.node->grad_owned = false;
    return;
  }
  // A rule that hands its own gradient on, in another dtype, hands on what is known of it.
  const bool known = grad.same_as(out_) && !node_.zeros.empty() &&
                     node_.zeros_version == grad.version() && grad.is_dense();
  Dst d = known ? dst_with_zeros(i) : dst(i);
  kernels::ZeroPattern* const zeros = std::exchange(d.zeros, nullptr);
  kernels::accumulate_to(d.tensor.device(), d, grad);
  if (zeros == nullptr) return;
  if (!fits_memory(d.tensor, grad))
    zeros->clear();
  else
    *zeros = d.add ? intersection(*zeros, node_.zeros, grad.numel()) : node_.zeros;
}

const Tensor& set_requires_grad(const Tensor& t, bool value) {
  AutogradMeta* meta = autograd_meta(t);
  check(!meta || !meta->node, "set_requires_grad: tensor must be a leaf, got the output of ",
        meta && meta->node ? meta->node->name : "");
  check(!value || is_floating(t.dtype()), "set_requires_grad: dtype must be floating, got ",
        t.dtype());
  if (!meta) {
    if (!value) return t;
    auto fresh = std::make_shared<AutogradMeta>(t);
    meta = fresh.get();
    t.set_grad_meta(std::move(fresh));
  }
  meta->requires_grad = value;
  return t;
}

void backward(const Tensor& root, const Tensor& grad) {
  check(root.defined() && requires_grad(root), "backward: root must require a gradient, got ",
        root.defined() ? "a tensor that does not" : "an undefined tensor");
  Tensor seed = grad;
  if (!seed.defined()) {
    check(root.numel() == 1,
          "backward: root must have one element when no grad is given, got shape ", root.shape());
    seed = ones_like(root);
  }
  check(seed.shape() == root.shape() && seed.dtype() == root.dtype(), "backward: grad must be ",
        root.dtype(), " ", root.shape(), ", got ", seed.dtype(), " ", seed.shape());
  const auto meta = std::static_pointer_cast<AutogradMeta>(root.grad_meta());
  const NoGrad no_grad;
  const Autocast uncast(DType::bf16, false);
  check(current_run == nullptr && current_ends == nullptr,
        "backward: must not be called from inside a backward rule or hook");
  Ends ends;
  if (!meta->node) {
    if (!meta->has_grad)
      set_grad(root, seed);
    else
      kernels::accumulate_to(meta->grad.device(), Dst{meta->grad, true}, seed);
    meta->zeros.clear();
    fire_hooks(*meta);
    ends.finish();
    return;
  }
  Run run;
  // Whatever happens, the thread is left without a run, and the nodes and the leaves that had no
  // gradient before without half-made ones.
  struct Cleanup {
    Run& run;
    ~Cleanup() {
      for (Node* node : run.heap) {
        node->queued = false;
        node->grad = {};
      }
      for (size_t i = 0; i < run.leaves.size(); ++i) {
        run.leaves[i]->pending = 0;
        if (!run.finished && !run.had_grad[i]) run.leaves[i]->has_grad = false;
      }
      // Oldest first: a node that dies with its last consumer holds nothing any more.
      for (size_t i = run.done.size(); i-- > 0;) run.done[i]->drop_edges();
      current_run = nullptr;
    }
  } cleanup{run};
  count_contributions(meta->node, run);
  current_run = &run;
  meta->node->grad = seed;
  meta->node->grad_owned = false;
  run.push(meta->node);
  while (!run.heap.empty()) {
    Node* node = run.pop();
    const Tensor out = std::move(node->grad);
    node->grad = {};
    const profiler::Range range(node->name, profiler::Kind::backward);
    Grads grads(*node, out);
    node->backward(grads);
    node->released = true;
    node->release();
    settle_leaves(*node);
    run.done.push_back(node);
  }
  run.finished = true;
  ends.finish();
}

Tensor grad(const Tensor& leaf) {
  AutogradMeta* meta = autograd_meta(leaf);
  if (!meta || !meta->has_grad) return {};
  meta->zeros.clear();
  return meta->grad;
}

const kernels::ZeroPattern& grad_zeros(const Tensor& leaf) {
  static const kernels::ZeroPattern none;
  const AutogradMeta* meta = autograd_meta(leaf);
  if (!meta || !meta->has_grad || !knows_zeros(*meta)) return none;
  rely_on_zeros(std::static_pointer_cast<AutogradMeta>(leaf.grad_meta()));
  return meta->zeros;
}

kernels::ZeroPattern memory_zeros(const Tensor& leaf) {
  const AutogradMeta* meta = autograd_meta(leaf);
  return meta && knows_zeros(*meta) ? meta->zeros : kernels::ZeroPattern();
}

void set_memory_zeros(const Tensor& leaf, const kernels::ZeroPattern& zeros) {
  AutogradMeta* meta = autograd_meta(leaf);
  if (!meta || !meta->grad.defined()) return;
  meta->zeros = trusts_zeros(*meta) ? zeros : kernels::ZeroPattern();
  meta->zeros_version = meta->grad.version();
}

void keep_grad_zeros(const Tensor& leaf) {
  if (AutogradMeta* meta = autograd_meta(leaf); meta && meta->grad.defined())
    meta->zeros_version = meta->grad.version();
}

bool has_grad(const Tensor& leaf) {
  const AutogradMeta* meta = autograd_meta(leaf);
  return meta != nullptr && meta->has_grad;
}

void declare_grad(const Tensor& leaf) {
  AutogradMeta* meta = autograd_meta(leaf);
  check(meta && !meta->node && meta->grad.defined(),
        "declare_grad: tensor must be a leaf with memory for its gradient");
  meta->has_grad = true;
  meta->zeros.clear();
}

void zero_grad(const Tensor& leaf) {
  if (AutogradMeta* meta = autograd_meta(leaf)) meta->has_grad = false;
}

void zero_grad(std::span<const Tensor> leaves) {
  for (const Tensor& leaf : leaves) zero_grad(leaf);
}

void set_grad_memory(const Tensor& leaf, const Tensor& memory, bool zeros) {
  AutogradMeta* meta = autograd_meta(leaf);
  check(meta && !meta->node, "set_grad_memory: tensor must be a leaf that requires a gradient");
  check(memory.shape() == leaf.shape() && memory.dtype() == leaf.dtype(),
        "set_grad_memory: memory must be ", leaf.dtype(), " ", leaf.shape(), ", got ",
        memory.dtype(), " ", memory.shape());
  if (meta->has_grad) raw::copy_(memory, meta->grad);
  meta->grad = memory;
  meta->zeros.clear();
  if (!zeros || meta->has_grad) return;
  meta->zeros.append({0, memory.numel()});
  meta->zeros_version = memory.version();
}

void set_grad(const Tensor& leaf, const Tensor& value) {
  AutogradMeta* meta = autograd_meta(leaf);
  check(meta && !meta->node, "set_grad: tensor must be a leaf that requires a gradient");
  check(value.shape() == leaf.shape(), "set_grad: value must be of shape ", leaf.shape(), ", got ",
        value.shape());
  if (!meta->grad.defined()) meta->grad = make_grad(AutogradMeta(leaf));
  raw::copy_(meta->grad, value);
  meta->has_grad = true;
  meta->zeros.clear();
}

void on_grad_ready(const Tensor& leaf, std::function<void(const Tensor& grad)> hook) {
  AutogradMeta* meta = autograd_meta(leaf);
  check(meta && !meta->node, "on_grad_ready: tensor must be a leaf that requires a gradient");
  meta->ready_hooks.push_back(std::move(hook));
}

void on_leaf_ready(const Tensor& leaf, std::function<void()> hook) {
  AutogradMeta* meta = autograd_meta(leaf);
  check(meta && !meta->node, "on_leaf_ready: tensor must be a leaf that requires a gradient");
  meta->leaf_hooks.push_back(std::move(hook));
}

void after_backward(std::function<void(bool finished)> end) {
  check(current_ends != nullptr, "after_backward: must be called by a hook of a running backward");
  current_ends->push_back(std::move(end));
}

Tensor detach(const Tensor& t) { return t.alias(); }

}  // namespace cairn
