// Tensor: construction, layout queries, item.
#include "cairn/tensor/tensor.h"

#include "cairn/tensor/raw.h"

namespace cairn {

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, Shape shape, Shape strides,
               int64_t offset)
    : impl_(std::make_shared<Impl>()) {
  check(shape.size() == strides.size(), "tensor: strides must have one entry per dimension of ",
        shape, ", got ", strides);
  impl_->numel = numel_of(shape, "tensor");
  int64_t last = offset;
  for (size_t i = 0; i < shape.size(); ++i) {
    check(strides[i] >= 0, "tensor: strides must not be negative, got ", strides);
    if (impl_->numel > 0)
      last = checked_add(last, checked_mul(shape[i] - 1, strides[i], "tensor"), "tensor");
  }
  const int64_t limit = storage->bytes() / item_size(dtype);
  check(offset >= 0 && (impl_->numel == 0 || last < limit),
        "tensor: view must lie inside its storage of ", limit, " elements, got offset ", offset,
        ", shape ", shape, ", strides ", strides);
  impl_->storage = std::move(storage);
  impl_->shape = shape;
  impl_->strides = strides;
  impl_->offset = offset;
  impl_->dtype = dtype;
}

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (size_t i = shape().size(); i-- > 0;) {
    if (shape()[i] == 1) continue;
    if (shape()[i] == 0) return true;
    if (strides()[i] != expected) return false;
    expected *= shape()[i];
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
  out.impl_ = std::make_shared<Impl>(*impl_);
  out.impl_->grad_meta = nullptr;
  return out;
}

void Tensor::set_data(const Tensor& data) const {
  check(data.shape() == shape() && data.dtype() == dtype(), "set_data: data must be ", dtype(), " ",
        shape(), ", got ", data.dtype(), " ", data.shape());
  impl_->storage = data.impl_->storage;
  impl_->strides = data.impl_->strides;
  impl_->offset = data.impl_->offset;
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
