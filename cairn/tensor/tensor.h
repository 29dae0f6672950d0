// Tensor: a handle to a strided view of a storage.
// Invariant: copies of a Tensor are the same tensor (data, metadata and gradient); every element's
// offset lies inside the storage.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "cairn/tensor/device.h"
#include "cairn/tensor/dtype.h"
#include "cairn/tensor/shape.h"
#include "cairn/tensor/storage.h"

namespace cairn {

// What autograd attaches to a tensor; opaque here.
struct GradMeta {
  virtual ~GradMeta() = default;
};

class Tensor {
 public:
  // An undefined tensor: defined() is false and nothing else may be asked of it.
  Tensor() = default;
  // A view of `storage`; offset in elements. Checks that every element lies inside the storage.
  Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape, const Shape& strides,
         int64_t offset);
  // On memory of its own, not initialised. `op` names the caller in errors.
  Tensor(const char* op, DType dtype, const Shape& shape, const Shape& strides, Device device);

  bool defined() const { return impl_ != nullptr; }

  const Shape& shape() const { return impl_->shape; }
  const Shape& strides() const { return impl_->strides; }
  int64_t dim() const { return static_cast<int64_t>(impl_->shape.size()); }
  int64_t numel() const { return impl_->numel; }
  // Size of dimension d, which may be negative.
  int64_t size(int64_t d) const { return impl_->shape[wrap_dim(d, dim(), "size")]; }
  int64_t stride(int64_t d) const { return impl_->strides[wrap_dim(d, dim(), "stride")]; }
  int64_t offset() const { return impl_->offset; }
  DType dtype() const { return impl_->dtype; }
  Device device() const { return impl_->storage->device(); }
  int64_t nbytes() const { return numel() * item_size(dtype()); }

  // Row-major without gaps.
  bool is_contiguous() const;
  // 4-d and NHWC in memory without gaps.
  bool is_channels_last() const;
  // Every element once and no gaps, in any order of dimensions.
  bool is_dense() const;

  // First element. T must be the tensor's type, else Error.
  template <class T>
  T* data() const {
    check(dtype() == dtype_of<T>(), "data: dtype must be ", dtype_of<T>(), ", got ", dtype());
    return static_cast<T*>(raw_data());
  }
  void* raw_data() const {
    return impl_->storage->data() + impl_->offset * item_size(impl_->dtype);
  }

  // The value of a tensor with one element, converted to T. On a GPU this waits for it.
  template <class T = double>
  T item() const {
    if constexpr (std::is_same_v<T, bool>)
      return item_f64() != 0;
    else if constexpr (std::is_integral_v<T>)
      return static_cast<T>(item_i64());
    else
      return static_cast<T>(item_f64());
  }

  const std::shared_ptr<Storage>& storage() const { return impl_->storage; }
  // Whether both handles are the same tensor (not: equal values).
  bool same_as(const Tensor& other) const { return impl_ == other.impl_; }
  const void* id() const { return impl_.get(); }
  // Whether this is the only handle.
  bool unique() const { return impl_.use_count() == 1; }

  uint32_t version() const { return impl_->storage->version(); }
  // To be called by every op that writes in place; `op` must be a string literal.
  void bump_version(const char* op) const { impl_->storage->bump_version(op); }

  // A new tensor on the same memory, without gradient metadata.
  Tensor alias() const;
  // Makes this tensor (all its handles) refer to `data`'s memory and take its dtype; of the same
  // shape, floating as this or not. For parameters that move to an arena, a device or a dtype.
  void set_data(const Tensor& data) const;

  const std::shared_ptr<GradMeta>& grad_meta() const { return impl_->grad_meta; }
  void set_grad_meta(std::shared_ptr<GradMeta> meta) const { impl_->grad_meta = std::move(meta); }

 private:
  struct Impl {
    Impl(std::shared_ptr<Storage> storage, const Shape& shape, const Shape& strides, int64_t offset,
         int64_t numel, DType dtype)
        : storage(std::move(storage)),
          shape(shape),
          strides(strides),
          offset(offset),
          numel(numel),
          dtype(dtype) {}

    std::shared_ptr<Storage> storage;
    Shape shape;
    Shape strides;
    int64_t offset;
    int64_t numel;
    DType dtype;
    std::shared_ptr<GradMeta> grad_meta;
  };

  double item_f64() const;
  int64_t item_i64() const;

  std::shared_ptr<Impl> impl_;
};

}  // namespace cairn
