// Recording: grad mode and the joining of a node to the graph.
#include "cairn/autograd/record.h"

#include <atomic>

namespace cairn {
namespace {

thread_local bool grad_mode = true;
std::atomic<uint64_t> next_sequence{1};

}  // namespace

bool grad_enabled() { return grad_mode; }
void set_grad_enabled(bool enabled) { grad_mode = enabled; }

bool will_record(std::span<const Tensor> inputs) {
  if (!grad_mode) return false;
  for (const Tensor& t : inputs)
    if (requires_grad(t)) return true;
  return false;
}

bool will_record(std::initializer_list<Tensor> inputs) {
  return will_record(std::span<const Tensor>(inputs.begin(), inputs.size()));
}

namespace detail {

Tensor attach(const char* name, const Tensor& out, std::span<const Tensor> inputs,
              std::shared_ptr<Node> node) {
  check(is_floating(out.dtype()), name, ": output must be floating to have a gradient, got ",
        out.dtype());
  node->name = name;
  node->sequence = next_sequence.fetch_add(1, std::memory_order_relaxed);
  node->shape = out.shape();
  node->strides = out.strides();
  node->dtype = out.dtype();
  node->device = out.device();
  node->edges.resize(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& in = inputs[i];
    if (!requires_grad(in)) continue;
    node->edges[i] = {std::static_pointer_cast<AutogradMeta>(in.grad_meta()), in.shape(),
                      in.strides(), in.dtype(), in.device()};
  }
  auto meta = std::make_shared<AutogradMeta>();
  meta->requires_grad = true;
  meta->node = std::move(node);
  // An op that returned one of its inputs (a no-op conversion, say) must not lose that input's own
  // metadata.
  Tensor result = out.grad_meta() ? out.alias() : out;
  result.set_grad_meta(std::move(meta));
  return result;
}

}  // namespace detail

void check_inplace(const char* op, const Tensor& self) {
  if (!grad_mode || !requires_grad(self)) return;
  check(autograd_meta(self)->node != nullptr, op,
        ": input must not be a leaf that requires a gradient; wrap the call in NoGrad");
  check(self.storage()->bytes() == self.nbytes(), op,
        ": input must not be a view while a gradient is recorded; use the form without underscore");
  check(!self.storage()->viewed(), op,
        ": input must not share memory with a view while a gradient is recorded; use the form "
        "without underscore");
}

}  // namespace cairn
