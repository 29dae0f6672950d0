// raw:: moves: copies with conversion, between layouts, dtypes and devices.
#include "cairn/tensor/profiler.h"
#include "cairn/tensor/raw.h"

namespace cairn::raw {

void copy_(const Tensor& dst, const Tensor& src) {
  if (dst.same_as(src)) return;
  Tensor from = src.shape() == dst.shape() ? src : expand(src, dst.shape());
  if (dst.numel() == 0) return;
  const profiler::Range range = profiler::kernel_range("copy_", dst, src);
  const DeviceType kind =
      dst.device().type != DeviceType::cpu ? dst.device().type : src.device().type;
  backend_of(kind, "copy_").copy(dst, from);
}

void fill_(const Tensor& dst, double value) {
  if (dst.numel() == 0) return;
  const profiler::Range range = profiler::kernel_range("fill_", dst);
  backend_of(dst.device().type, "fill_").fill(dst, value);
}

Tensor contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor out = empty(t.shape(), {t.dtype(), t.device()});
  copy_(out, t);
  return out;
}

Tensor channels_last(const Tensor& t) {
  check(t.dim() == 4, "channels_last: input must be 4-d [N, C, H, W], got ", t.shape());
  if (t.is_channels_last()) return t;
  Tensor out = empty_channels_last(t.shape(), {t.dtype(), t.device()});
  copy_(out, t);
  return out;
}

Tensor to(const Tensor& t, DType dtype, Device device) {
  if (t.dtype() == dtype && t.device() == device) return t;
  Tensor out = empty_strided(t.shape(), t.is_dense() ? t.strides() : contiguous_strides(t.shape()),
                             {dtype, device});
  copy_(out, t);
  return out;
}

Tensor to(const Tensor& t, DType dtype) { return to(t, dtype, t.device()); }

Tensor clone(const Tensor& t) {
  Tensor out = empty_like(t);
  copy_(out, t);
  return out;
}

}  // namespace cairn::raw
