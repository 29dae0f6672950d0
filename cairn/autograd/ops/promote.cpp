// Type promotion between tensors and numbers.
#include "cairn/autograd/ops/elementwise_detail.h"

namespace cairn {
namespace {

// bool < integer < floating.
int category(DType d) { return is_floating(d) ? 2 : d == DType::boolean ? 0 : 1; }

DType dtype_of(const Scalar& s) {
  switch (s.kind()) {
    case Scalar::Kind::boolean:
      return DType::boolean;
    case Scalar::Kind::integer:
      return DType::i64;
    case Scalar::Kind::floating:
      break;
  }
  return DType::f32;
}

// `strong` (a tensor with dimensions beside one without, or a tensor beside a number) decides,
// unless `weak` is of a higher category.
DType lean(DType strong, DType weak) { return category(weak) > category(strong) ? weak : strong; }

}  // namespace

DType result_type(const Tensor& a, const Tensor& b) {
  if (a.dtype() == b.dtype()) return a.dtype();
  if ((a.dim() == 0) == (b.dim() == 0)) return promote_types(a.dtype(), b.dtype());
  return a.dim() > 0 ? lean(a.dtype(), b.dtype()) : lean(b.dtype(), a.dtype());
}

DType result_type(const Tensor& a, Scalar b) { return lean(a.dtype(), dtype_of(b)); }

namespace detail {

DType result_type(const Argument& a, const Argument& b) {
  if (a.tensor && b.tensor) return cairn::result_type(*a.tensor, *b.tensor);
  return a.tensor ? cairn::result_type(*a.tensor, b.scalar)
                  : cairn::result_type(*b.tensor, a.scalar);
}

void check_same_device(const char* op, const Tensor& a, const Tensor& b) {
  check(a.device() == b.device(), op, ": tensors must be on one device, got ", a.device(), " and ",
        b.device());
}

Tensor empty_result(const Shape& shape, DType dtype, const Tensor& a, const Tensor* b) {
  if (a.shape() == shape && a.is_dense())
    return empty_strided(shape, a.strides(), {dtype, a.device()});
  if (b && b->shape() == shape && b->is_dense())
    return empty_strided(shape, b->strides(), {dtype, a.device()});
  return empty(shape, {dtype, a.device()});
}

}  // namespace detail
}  // namespace cairn
