// Comparison, logic and choice.
// Invariant: results of comparisons are bool and never recorded; where's gradient goes to the side
// that was chosen.
#include <cmath>

#include "cairn/autograd/ops/elementwise_detail.h"

namespace cairn {
namespace {

using detail::Argument;

kernels::Operand operand(const Argument& a) {
  if (a.tensor) return kernels::Operand(*a.tensor);
  return kernels::Operand(a.scalar.as_double(), a.scalar.as_int());
}

bool fits(const Scalar& s, DType dtype) {
  if (s.kind() != Scalar::Kind::integer) return true;
  const int64_t v = s.as_int();
  if (dtype == DType::i32) return v == static_cast<int32_t>(v);
  if (dtype == DType::u8) return v == static_cast<uint8_t>(v);
  return true;
}

Tensor compare(const char* op, const kernels::BinaryFwd& fwd, Argument a, Argument b) {
  detail::check_defined(op, *a.tensor);
  if (b.tensor) {
    detail::check_defined(op, *b.tensor);
    detail::check_same_device(op, *a.tensor, *b.tensor);
  }
  DType dtype = detail::result_type(a, b);
  if (!b.tensor && !fits(b.scalar, dtype)) dtype = DType::i64;  // 300 is larger than any u8
  Tensor converted_a;
  Tensor converted_b;
  if (a.tensor->dtype() != dtype) a.tensor = &(converted_a = raw::to(*a.tensor, dtype));
  if (b.tensor && b.tensor->dtype() != dtype) b.tensor = &(converted_b = raw::to(*b.tensor, dtype));
  const Shape shape =
      b.tensor ? broadcast_shapes(a.tensor->shape(), b.tensor->shape(), op) : a.tensor->shape();
  const Tensor y = detail::empty_result(shape, DType::boolean, *a.tensor, b.tensor);
  fwd(y.device(), y, operand(a), operand(b));
  return y;
}

Tensor test(const char* op, const kernels::UnaryFwd& fwd, const Tensor& x) {
  detail::check_defined(op, x);
  const Tensor y = empty_like(x, DType::boolean);
  fwd(x.device(), y, x, kernels::Attributes{});
  return y;
}

void check_condition(const char* op, const char* what, const Tensor& condition) {
  detail::check_defined(op, condition);
  check(condition.dtype() == DType::boolean, op, ": ", what, " must be bool, got ",
        condition.dtype());
}

// Hands g, where `condition` is `side`, to input i of shape `shape`.
void give_side(Grads& g, size_t i, const Shape& shape, bool side, const Tensor& condition) {
  if (!g.needs(i)) return;
  const Tensor& out = g.out();
  if (shape == out.shape()) {
    kernels::where_bwd(out.device(), g.dst(i), side, out, condition);
    return;
  }
  const Tensor wide = empty_like(out);
  kernels::where_bwd(out.device(), Dst{wide, false}, side, out, condition);
  g.give(i, wide);
}

}  // namespace

#define CAIRN_OP(name, Functor)                       \
  Tensor name(const Tensor& a, const Tensor& b) {     \
    return compare(#name, kernels::name##_fwd, a, b); \
  }
CAIRN_COMPARE(CAIRN_OP)
#undef CAIRN_OP

Tensor eq(const Tensor& a, Scalar b) { return compare("eq", kernels::eq_fwd, a, b); }
Tensor ne(const Tensor& a, Scalar b) { return compare("ne", kernels::ne_fwd, a, b); }
Tensor lt(const Tensor& a, Scalar b) { return compare("lt", kernels::lt_fwd, a, b); }
Tensor le(const Tensor& a, Scalar b) { return compare("le", kernels::le_fwd, a, b); }
Tensor gt(const Tensor& a, Scalar b) { return compare("gt", kernels::gt_fwd, a, b); }
Tensor ge(const Tensor& a, Scalar b) { return compare("ge", kernels::ge_fwd, a, b); }

#define CAIRN_OP(name, Functor) \
  Tensor name(const Tensor& x) { return test(#name, kernels::name##_fwd, x); }
CAIRN_TEST(CAIRN_OP)
#undef CAIRN_OP

Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  check_condition("where", "condition", condition);
  detail::check_defined("where", a);
  detail::check_defined("where", b);
  detail::check_same_device("where", condition, a);
  detail::check_same_device("where", a, b);
  const DType dtype = result_type(a, b);
  const Tensor from_a = to(a, dtype);
  const Tensor from_b = to(b, dtype);
  const Shape shape =
      broadcast_shapes(broadcast_shapes(a.shape(), b.shape(), "where"), condition.shape(), "where");
  const Tensor y = detail::empty_result(shape, dtype, from_a, &from_b);
  kernels::where_fwd(y.device(), y, condition, from_a, from_b);
  if (!detail::recording(from_a) && !detail::recording(from_b)) return y;
  return record("where", y, {from_a, from_b},
                [condition = Saved(condition), shape_a = a.shape(), shape_b = b.shape()](Grads& g) {
                  const Tensor& chosen = condition.get("where");
                  give_side(g, 0, shape_a, true, chosen);
                  give_side(g, 1, shape_b, false, chosen);
                });
}

Tensor masked_fill(const Tensor& x, const Tensor& mask, double value) {
  check_condition("masked_fill", "mask", mask);
  detail::check_defined("masked_fill", x);
  detail::check_same_device("masked_fill", x, mask);
  check(is_floating(x.dtype()) || (std::abs(value) < 0x1p63 && value == std::floor(value)),
        "masked_fill: value must be whole for ", x.dtype(), ", got ", value);
  const Shape shape = broadcast_shapes(x.shape(), mask.shape(), "masked_fill");
  const Tensor y = detail::empty_result(shape, x.dtype(), x);
  const auto integer = is_floating(x.dtype()) ? int64_t{0} : static_cast<int64_t>(value);
  kernels::where_fwd(y.device(), y, mask, kernels::Operand(value, integer), x);
  if (!detail::recording(x)) return y;
  return record("masked_fill", y, {x}, [mask = Saved(mask), shape = x.shape()](Grads& g) {
    give_side(g, 0, shape, false, mask.get("masked_fill"));
  });
}

}  // namespace cairn
