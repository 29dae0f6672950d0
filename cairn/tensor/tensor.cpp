// Tensor: construction, layout queries, item.
#include "cairn/tensor/tensor.h"

#include "cairn/tensor/pool.h"
#include "cairn/tensor/raw.h"

namespace cairn {

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape,
               const Shape& strides, int64_t offset) {
  const Extent extent = extent_of(shape, strides, "tensor");
  const int64_t limit = storage->bytes() / item_size(dtype);
  check(
      offset >= 0 && (extent.numel == 0 || (extent.span <= limit && offset <= limit - extent.span)),
      "tensor: view must lie inside its storage of ", limit, " elements, got offset ", offset,
      ", shape ", shape, ", strides ", strides);
  impl_ = make_pooled<Impl>(std::move(storage), shape, strides, offset, extent.numel, dtype);
}

Tensor::Tensor(const char* op, DType dtype, const Shape& shape, const Shape& strides,
               Device device) {
  const Extent extent = extent_of(shape, strides, op);
  const int64_t bytes = checked_mul(extent.span, item_size(dtype), op);
  impl_ = make_pooled<Impl>(make_pooled<Storage>(bytes, device), shape, strides, 0, extent.numel,
                            dtype);
}

bool Tensor::is_contiguous() const {
  const Impl& t = *impl_;
  int64_t expected = 1;
  for (size_t i = t.shape.size(); i-- > 0;) {
    if (t.shape[i] == 1) continue;
    if (t.shape[i] == 0) return true;
    if (t.strides[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

bool Tensor::is_channels_last() const {
  if (dim() != 4) return false;
  if (numel() == 0) return true;
  int64_t expected = 1;
  for (size_t d : {size_t{1}, size_t{3}, size_t{2}, size_t{0}}) {
    if (shape()[d] == 1) continue;
    if (strides()[d] != expected) return false;
    expected *= shape()[d];
  }
  return true;
}

bool Tensor::is_dense() const {
  if (is_contiguous()) return true;
  // The dimensions that matter, by stride: insertion into at most kMaxRank places.
  size_t order[kMaxRank];
  size_t count = 0;
  for (size_t i = 0; i < shape().size(); ++i) {
    if (shape()[i] == 1) continue;
    size_t at = count++;
    for (; at > 0 && strides()[order[at - 1]] > strides()[i]; --at) order[at] = order[at - 1];
    order[at] = i;
  }
  int64_t expected = 1;
  for (size_t i = 0; i < count; ++i) {
    if (strides()[order[i]] != expected) return false;
    expected *= shape()[order[i]];
  }
  return true;
}

Tensor Tensor::alias() const {
  Tensor out;
  const Impl& t = *impl_;
  out.impl_ = make_pooled<Impl>(t.storage, t.shape, t.strides, t.offset, t.numel, t.dtype);
  return out;
}

void Tensor::set_data(const Tensor& data) const {
  check(data.shape() == shape() && is_floating(data.dtype()) == is_floating(dtype()),
        "set_data: data must be ", dtype(), " ", shape(), ", got ", data.dtype(), " ",
        data.shape());
  impl_->storage = data.impl_->storage;
  impl_->strides = data.impl_->strides;
  impl_->offset = data.impl_->offset;
  impl_->dtype = data.impl_->dtype;
}

double Tensor::item_f64() const {
  check(numel() == 1, "item: tensor must have one element, got shape ", shape());
  double value = 0;
  Tensor host(std::make_shared<Storage>(&value, 8, kCPU, nullptr), DType::f64, shape(),
              contiguous_strides(shape()), 0);
  raw::copy_(host, *this);
  return value;
}

int64_t Tensor::item_i64() const {
  check(numel() == 1, "item: tensor must have one element, got shape ", shape());
  int64_t value = 0;
  Tensor host(std::make_shared<Storage>(&value, 8, kCPU, nullptr), DType::i64, shape(),
              contiguous_strides(shape()), 0);
  raw::copy_(host, *this);
  return value;
}

}  // namespace cairn
