// raw:: views: shape and stride arithmetic.
#include <algorithm>

#include "cairn/tensor/raw.h"

namespace cairn::raw {
namespace {

Tensor make_view(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset) {
  return Tensor(t.storage(), t.dtype(), shape, strides, offset);
}

}  // namespace

Shape infer_shape(const Shape& shape, int64_t numel, const char* op) {
  Shape out = shape;
  int64_t known = 1;
  int missing = -1;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == -1) {
      check(missing < 0, op, ": shape must have at most one -1, got ", shape);
      missing = static_cast<int>(i);
    } else {
      check(shape[i] >= 0, op, ": sizes must not be negative, got ", shape);
      known = checked_mul(known, shape[i], op);
    }
  }
  if (missing >= 0) {
    check(known > 0 && numel % known == 0, op, ": shape must hold ", numel, " elements, got ",
          shape);
    out[static_cast<size_t>(missing)] = numel / known;
  } else {
    check(known == numel, op, ": shape must hold ", numel, " elements, got ", shape);
  }
  return out;
}

// Groups of old dimensions that are laid out as one run are cut anew; source of the rule:
// the new strides exist iff every new dimension lies inside one such run.
bool view_strides(const Tensor& t, const Shape& shape, Shape& strides) {
  strides.resize(shape.size());
  if (t.numel() == 0) {
    strides = contiguous_strides(shape);
    return true;
  }
  const Shape& old_shape = t.shape();
  const Shape& old_strides = t.strides();
  int64_t d = static_cast<int64_t>(shape.size()) - 1;
  int64_t chunk_numel = 1;
  int64_t view_numel = 1;
  int64_t base = old_shape.empty() ? 1 : old_strides.back();
  for (int64_t i = static_cast<int64_t>(old_shape.size()) - 1; i >= 0; --i) {
    const auto u = static_cast<size_t>(i);
    chunk_numel *= old_shape[u];
    const bool run_ends =
        i == 0 || (old_shape[u - 1] != 1 && old_strides[u - 1] != chunk_numel * base);
    if (!run_ends) continue;
    while (d >= 0 && (view_numel < chunk_numel || shape[static_cast<size_t>(d)] == 1)) {
      strides[static_cast<size_t>(d)] = view_numel * base;
      view_numel *= shape[static_cast<size_t>(d)];
      --d;
    }
    if (view_numel != chunk_numel) return false;
    if (i > 0) {
      base = old_strides[u - 1];
      chunk_numel = 1;
      view_numel = 1;
    }
  }
  for (; d >= 0; --d) strides[static_cast<size_t>(d)] = 1;  // sizes of 1 in front of a scalar
  return true;
}

Tensor view(const Tensor& t, const Shape& shape) {
  const Shape full = infer_shape(shape, t.numel(), "view");
  Shape strides;
  check(view_strides(t, full, strides), "view: shape must fit the layout, got ", full,
        " for a tensor of shape ", t.shape(), " and strides ", t.strides(), "; use reshape");
  return make_view(t, full, strides, t.offset());
}

Tensor reshape(const Tensor& t, const Shape& shape) {
  const Shape full = infer_shape(shape, t.numel(), "reshape");
  Shape strides;
  if (view_strides(t, full, strides)) return make_view(t, full, strides, t.offset());
  Tensor copy = empty(t.shape(), {t.dtype(), t.device()});
  copy_(copy, t);
  return make_view(copy, full, contiguous_strides(full), 0);
}

Tensor permute(const Tensor& t, const Shape& dims) {
  check(dims.size() == t.shape().size(), "permute: dims must name each of ", t.dim(),
        " dimensions once, got ", dims);
  Shape shape = t.shape();
  Shape strides = t.strides();
  unsigned seen = 0;
  for (size_t i = 0; i < dims.size(); ++i) {
    const auto d = static_cast<size_t>(wrap_dim(dims[i], t.dim(), "permute"));
    check(!(seen & (1u << d)), "permute: dims must name each dimension once, got ", dims);
    seen |= 1u << d;
    shape[i] = t.shape()[d];
    strides[i] = t.strides()[d];
  }
  return make_view(t, shape, strides, t.offset());
}

Tensor transpose(const Tensor& t, int64_t dim0, int64_t dim1) {
  const auto a = static_cast<size_t>(wrap_dim(dim0, t.dim(), "transpose"));
  const auto b = static_cast<size_t>(wrap_dim(dim1, t.dim(), "transpose"));
  Shape shape = t.shape();
  Shape strides = t.strides();
  if (t.dim() > 0) {
    std::swap(shape[a], shape[b]);
    std::swap(strides[a], strides[b]);
  }
  return make_view(t, shape, strides, t.offset());
}

Tensor slice(const Tensor& t, int64_t dim, int64_t start, int64_t end, int64_t step) {
  check(t.dim() > 0, "slice: input must have a dimension, got a 0-d tensor");
  check(step >= 1, "slice: step must be at least 1, got ", step);
  const auto d = static_cast<size_t>(wrap_dim(dim, t.dim(), "slice"));
  const int64_t size = t.shape()[d];
  if (start < 0) start += size;
  if (end < 0) end += size;
  start = std::clamp<int64_t>(start, 0, size);
  end = std::clamp<int64_t>(end, start, size);
  Shape shape = t.shape();
  Shape strides = t.strides();
  shape[d] = (end - start) / step + ((end - start) % step != 0);
  const int64_t offset = t.offset() + start * strides[d];
  strides[d] = checked_mul(strides[d], shape[d] > 1 ? step : 1, "slice");
  return make_view(t, shape, strides, offset);
}

Tensor select(const Tensor& t, int64_t dim, int64_t index) {
  check(t.dim() > 0, "select: input must have a dimension, got a 0-d tensor");
  const auto d = static_cast<size_t>(wrap_dim(dim, t.dim(), "select"));
  const int64_t size = t.shape()[d];
  check(index >= -size && index < size, "select: index must be in [", -size, ", ", size,
        ") of dimension ", d, ", got ", index);
  if (index < 0) index += size;
  Shape shape = t.shape();
  Shape strides = t.strides();
  const int64_t offset = t.offset() + index * strides[d];
  shape.erase(d);
  strides.erase(d);
  return make_view(t, shape, strides, offset);
}

Tensor expand(const Tensor& t, const Shape& shape) {
  check(shape.size() >= t.shape().size(), "expand: shape must have at least ", t.dim(),
        " dimensions, got ", shape);
  const size_t extra = shape.size() - t.shape().size();
  Shape out = shape;
  Shape strides(shape.size(), 0);
  for (size_t i = 0; i < shape.size(); ++i) {
    const int64_t old = i < extra ? 1 : t.shape()[i - extra];
    if (shape[i] == -1) {
      check(i >= extra, "expand: -1 must stand for an existing dimension, got ", shape);
      out[i] = old;
    }
    check(out[i] == old || old == 1, "expand: shape must match ", t.shape(),
          " where its size is not 1, got ", shape);
    strides[i] = i < extra || (old == 1 && out[i] != 1) ? 0 : t.strides()[i - extra];
  }
  return make_view(t, out, strides, t.offset());
}

Tensor squeeze(const Tensor& t, int64_t dim) {
  const auto d = static_cast<size_t>(wrap_dim(dim, t.dim(), "squeeze"));
  Shape shape = t.shape();
  Shape strides = t.strides();
  if (t.dim() > 0 && shape[d] == 1) {
    shape.erase(d);
    strides.erase(d);
  }
  return make_view(t, shape, strides, t.offset());
}

Tensor squeeze(const Tensor& t) {
  Shape shape;
  Shape strides;
  for (size_t i = 0; i < t.shape().size(); ++i) {
    if (t.shape()[i] == 1) continue;
    shape.push_back(t.shape()[i]);
    strides.push_back(t.strides()[i]);
  }
  return make_view(t, shape, strides, t.offset());
}

Tensor unsqueeze(const Tensor& t, int64_t dim) {
  const auto d = static_cast<size_t>(wrap_dim(dim, t.dim() + 1, "unsqueeze"));
  Shape shape = t.shape();
  Shape strides = t.strides();
  const int64_t step = d < shape.size() ? std::max<int64_t>(shape[d], 1) * strides[d] : 1;
  shape.insert(d, 1);
  strides.insert(d, step);
  return make_view(t, shape, strides, t.offset());
}

Tensor flatten(const Tensor& t, int64_t start_dim, int64_t end_dim) {
  if (t.dim() == 0) return reshape(t, {1});
  const auto first = static_cast<size_t>(wrap_dim(start_dim, t.dim(), "flatten"));
  const auto last = static_cast<size_t>(wrap_dim(end_dim, t.dim(), "flatten"));
  check(first <= last, "flatten: start_dim must not come after end_dim, got ", start_dim, " and ",
        end_dim);
  Shape shape;
  for (size_t i = 0; i < first; ++i) shape.push_back(t.shape()[i]);
  int64_t product = 1;
  for (size_t i = first; i <= last; ++i) product *= t.shape()[i];
  shape.push_back(product);
  for (size_t i = last + 1; i < t.shape().size(); ++i) shape.push_back(t.shape()[i]);
  return reshape(t, shape);
}

Tensor as_strided(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset) {
  return make_view(t, shape, strides, t.offset() + offset);
}

}  // namespace cairn::raw
