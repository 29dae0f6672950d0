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

bool will_record(std::span<const Input> inputs) {
  if (!grad_mode) return false;
  for (const Input& input : inputs)
    if (requires_grad(input.tensor)) return true;
  return false;
}

bool will_record(std::span<const Tensor> inputs) {
  if (!grad_mode) return false;
  for (const Tensor& t : inputs)
    if (requires_grad(t)) return true;
  return false;
}

Edge edge_to(const Tensor& input) {
  if (!requires_grad(input)) return {};
  auto meta = std::static_pointer_cast<AutogradMeta>(input.grad_meta());
  // A leaf may have been moved or converted since (Tensor::set_data).
  if (!meta->node && !(meta->strides == input.strides() && meta->device == input.device() &&
                       meta->dtype == input.dtype())) {
    meta->dtype = input.dtype();
    meta->strides = input.strides();
    meta->device = input.device();
  }
  return {std::move(meta)};
}

Node::Node(const char* name, const Tensor& out)
    : AutogradMeta(out),
      name(name),
      sequence(next_sequence.fetch_add(1, std::memory_order_relaxed)) {
  check(is_floating(out.dtype()), name, ": output must be floating to have a gradient, got ",
        out.dtype());
  requires_grad = true;
  node = this;
}

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
