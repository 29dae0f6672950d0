// Ops that write into their first argument.
// Invariant: each checks before it writes, bumps the version after, and is recorded only when a
// gradient is wanted, so that a leaf changed under NoGrad stays a leaf.
#include <cmath>

#include "cairn/autograd/ops/elementwise_detail.h"

namespace cairn {
namespace {

bool recorded(const Tensor& self, const Tensor& other = {}) {
  return grad_enabled() && is_floating(self.dtype()) &&
         (requires_grad(self) || requires_grad(other));
}

// Writing needs each element to have a place of its own, and a recorded write a storage of its own:
// the tensor that a view belongs to would not learn of the gradient.
void check_writable(const char* op, const Tensor& self, const Tensor& other = {}) {
  detail::check_defined(op, self);
  for (size_t d = 0; d < self.shape().size(); ++d)
    check(self.shape()[d] <= 1 || self.strides()[d] != 0, op,
          ": input must not be an expanded view, got strides ", self.strides());
  check_inplace(op, self);
  check(!recorded(self, other) || self.storage()->bytes() == self.nbytes(), op,
        ": input must not be a view while a gradient is recorded; use the form without underscore");
  check(!recorded(self, other) || !self.storage()->viewed(), op,
        ": input must not share memory with a view while a gradient is recorded; use the form "
        "without underscore");
}

// `other` in self's dtype, safe to read while self is written. Recorded as a conversion.
Tensor prepared(const char* op, const Tensor& self, const Tensor& other) {
  detail::check_defined(op, other);
  detail::check_same_device(op, self, other);
  check(broadcast_shapes(self.shape(), other.shape(), op) == self.shape(), op,
        ": other must broadcast to ", self.shape(), ", got ", other.shape());
  check(is_floating(self.dtype()) || !is_floating(other.dtype()), op,
        ": result must fit the input's dtype ", self.dtype(), ", got ", other.dtype());
  Tensor from = to(other, self.dtype());
  const bool shares = from.storage() == self.storage();
  const bool same = from.offset() == self.offset() && from.shape() == self.shape() &&
                    from.strides() == self.strides();
  if (!shares || same) return from;
  return record("clone", raw::clone(from), {from}, [](Grads& g) { g.give(0, g.out()); });
}

void check_number(const char* op, const Tensor& self, const Scalar& other) {
  check(is_floating(self.dtype()) || other.kind() != Scalar::Kind::floating, op,
        ": result must fit the input's dtype ", self.dtype(), ", got a floating number");
}

}  // namespace

const Tensor& add_(const Tensor& self, const Tensor& other, double alpha) {
  check_writable("add_", self, other);
  check(is_floating(self.dtype()) || alpha == std::floor(alpha), "add_: alpha must be whole for ",
        self.dtype(), ", got ", alpha);
  const Tensor from = prepared("add_", self, other);
  kernels::add_scaled_fwd(self.device(), self, self, from, alpha);
  self.bump_version("add_");
  if (recorded(self, from))
    record_inplace("add_", self, {from}, [alpha](Grads& g) {
      g.give(0, g.out());
      if (g.needs(1)) g.give(1, alpha == 1 ? g.out() : mul(g.out(), alpha));
    });
  return self;
}

const Tensor& mul_(const Tensor& self, const Tensor& other) {
  check_writable("mul_", self, other);
  const Tensor from = prepared("mul_", self, other);
  const bool record_it = recorded(self, from);
  const Saved before = record_it && requires_grad(from) ? Saved(raw::clone(self)) : Saved();
  // x.mul_(x), or a factor that is another handle on x's memory, overwrites its own factor, so that
  // factor is kept too.
  const Tensor factor = record_it && from.storage() == self.storage() ? raw::clone(from) : from;
  kernels::mul_fwd(self.device(), self, self, from);
  self.bump_version("mul_");
  if (!record_it) return self;
  record_inplace("mul_", self, {from}, [before, factor = Saved(factor)](Grads& g) {
    if (g.needs(0)) g.give(0, mul(g.out(), factor.get("mul_")));
    if (g.needs(1)) g.give(1, mul(g.out(), before.get("mul_")));
  });
  return self;
}

const Tensor& add_(const Tensor& self, Scalar other) {
  check_writable("add_", self);
  check_number("add_", self, other);
  kernels::add_fwd(self.device(), self, self, kernels::Operand(other.as_double(), other.as_int()));
  self.bump_version("add_");
  if (recorded(self)) record_inplace("add_", self, {}, [](Grads& g) { g.give(0, g.out()); });
  return self;
}

const Tensor& mul_(const Tensor& self, Scalar other) {
  check_writable("mul_", self);
  check_number("mul_", self, other);
  kernels::mul_fwd(self.device(), self, self, kernels::Operand(other.as_double(), other.as_int()));
  self.bump_version("mul_");
  if (recorded(self))
    record_inplace("mul_", self, {}, [other](Grads& g) { g.give(0, mul(g.out(), other)); });
  return self;
}

const Tensor& relu_(const Tensor& self) {
  check_writable("relu_", self);
  check(self.dtype() != DType::boolean, "relu_: dtype must not be bool");
  kernels::relu_fwd(self.device(), self, self, kernels::Attributes{});
  self.bump_version("relu_");
  if (recorded(self))
    record_inplace("relu_", self, {}, [y = Saved(self)](Grads& g) {
      kernels::relu_bwd(g.out().device(), g.dst(0), g.out(), y.get("relu_"), kernels::Attributes{});
    });
  return self;
}

const Tensor& zero_(const Tensor& self) {
  check_writable("zero_", self);
  raw::fill_(self, 0);
  self.bump_version("zero_");
  if (recorded(self)) record_inplace("zero_", self, {}, [](Grads& g) { g.dst_cleared(0); });
  return self;
}

const Tensor& fill_(const Tensor& self, double value) {
  check_writable("fill_", self);
  raw::fill_(self, value);
  self.bump_version("fill_");
  if (recorded(self)) record_inplace("fill_", self, {}, [](Grads& g) { g.dst_cleared(0); });
  return self;
}

const Tensor& copy_(const Tensor& self, const Tensor& source) {
  detail::check_defined("copy_", source);
  check_writable("copy_", self, source);
  check(broadcast_shapes(self.shape(), source.shape(), "copy_") == self.shape(),
        "copy_: source must broadcast to ", self.shape(), ", got ", source.shape());
  const bool overlaps = source.storage() == self.storage() && !source.same_as(self);
  raw::copy_(self, overlaps ? raw::clone(source) : source);
  self.bump_version("copy_");
  if (recorded(self, source))
    record_inplace("copy_", self, {source}, [home = source.device()](Grads& g) {
      g.dst_cleared(0);
      if (g.needs(1)) g.give(1, raw::to(g.out(), g.out().dtype(), home));
    });
  return self;
}

}  // namespace cairn
