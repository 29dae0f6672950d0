// What the elementwise ops share: promotion, operands that are tensors or numbers, and the
// recording of unary and binary kernels. Invariant: nothing is saved, copied or allocated for a
// gradient that nobody will ask for.
#pragma once

#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/record.h"
#include "cairn/kernels/elementwise.h"
#include "cairn/tensor/raw.h"

namespace cairn::detail {

inline bool recording(const Tensor& x) { return grad_enabled() && requires_grad(x); }

inline void check_defined(const char* op, const Tensor& x) {
  check(x.defined(), op, ": input must be defined, got an undefined tensor");
}
void check_same_device(const char* op, const Tensor& a, const Tensor& b);

// f32 where an op has no integer results.
inline DType to_floating(DType dtype) { return is_floating(dtype) ? dtype : DType::f32; }

// The layout of a result over broadcast operands: that of the first operand that already has the
// result's shape without gaps, else row-major.
Tensor empty_result(const Shape& shape, DType dtype, const Tensor& a, const Tensor* b = nullptr);

// A tensor or a number as operand of a binary op.
struct Argument {
  Argument(const Tensor& t) : tensor(&t) {}
  Argument(const Scalar& s) : scalar(s) {}
  const Tensor* tensor = nullptr;
  Scalar scalar{0.0};
};

DType result_type(const Argument& a, const Argument& b);

// What is known of a unary op.
struct UnaryOp {
  const char* name;
  const kernels::UnaryFwd& fwd;
  const kernels::UnaryBwd& bwd;
  functors::Saves saves;
  bool integers;  // integers stay integers (bool is an error), else they become f32
};
Tensor unary(const UnaryOp& op, const Tensor& x, kernels::Attributes attributes = {});

// What is known of a binary op.
struct BinaryOp {
  const char* name;
  const kernels::BinaryFwd& fwd;
  const kernels::BinaryBwd* bwd;  // null: no gradient
  int da_reads = 0;
  int db_reads = 0;
  bool floating = false;   // integers become f32
  bool passes_on = false;  // the gradients are the output's own (add)
};
// Promotes, broadcasts, computes and records.
Tensor binary(const BinaryOp& op, const Argument& a, const Argument& b);

}  // namespace cairn::detail
