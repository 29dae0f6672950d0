// The autocast state of a thread, and its cache of parameters in the half type.
// Invariant: a cached copy is used only while the parameter has the values it was made from.
#include "cairn/autograd/autocast.h"

#include <unordered_map>

#include "cairn/autograd/ops/elementwise.h"

namespace cairn {
namespace {

struct Copy {
  Tensor parameter;  // holds the address that is the key
  uint32_t version;
  const void* memory;
  Tensor narrow;
};

// Apart from the copies, so that an op without autocast asks for one byte.
thread_local bool is_enabled = false;
thread_local DType half = DType::bf16;
thread_local int depth = 0;
thread_local std::unordered_map<const void*, Copy> copies;

bool is_parameter(const Tensor& t) {
  return t.dtype() == DType::f32 && requires_grad(t) && !autograd_meta(t)->node;
}

// Whether the copy stands for the parameter here: recorded where recording is on, and not with a
// graph that a backward has freed.
bool is_usable(const Copy& copy, const Tensor& t) {
  if (copy.version != t.version() || copy.memory != t.raw_data() || copy.narrow.dtype() != half)
    return false;
  if (!grad_enabled()) return true;
  return requires_grad(copy.narrow) && !autograd_meta(copy.narrow)->node->released;
}

}  // namespace

Autocast::Autocast(DType dtype, bool enabled) : enabled_before_(is_enabled), dtype_before_(half) {
  check(is_half(dtype), "autocast: dtype must be bf16 or f16, got ", dtype);
  is_enabled = enabled;
  half = dtype;
  ++depth;
}

Autocast::~Autocast() {
  is_enabled = enabled_before_;
  half = dtype_before_;
  if (--depth == 0) copies.clear();
}

namespace autocast {

bool enabled() { return is_enabled; }
DType dtype() { return half; }

bool narrows(std::initializer_list<Input> inputs) {
  if (!is_enabled) return false;
  for (const Input& input : inputs) {
    const Tensor& t = input.tensor;
    if (t.defined() && t.dtype() != half && (is_half(t.dtype()) || t.dtype() == DType::f32))
      return true;
  }
  return false;
}

bool widens(std::initializer_list<Input> inputs) {
  if (!is_enabled) return false;
  for (const Input& input : inputs)
    if (input.tensor.defined() && is_half(input.tensor.dtype())) return true;
  return false;
}

Tensor narrowed(const Tensor& t) {
  if (!narrows({t})) return t;
  if (!is_parameter(t)) return to(t, half);
  Copy& copy = copies[t.id()];
  if (!copy.narrow.defined() || !is_usable(copy, t))
    copy = {t, t.version(), t.raw_data(), to(t, half)};
  return copy.narrow;
}

Tensor widened(const Tensor& t) {
  return t.defined() && is_half(t.dtype()) ? to(t, DType::f32) : t;
}

}  // namespace autocast
}  // namespace cairn
