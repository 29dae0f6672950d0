// Picking, sorting and triangles with a gradient.
// Invariant: indices are checked here, before a kernel follows them.
#include "cairn/autograd/ops/indexing.h"

#include "cairn/autograd/ops/elementwise_detail.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/indexing.h"

namespace cairn {
namespace {

using detail::recording;

void check_index(const char* op, const Tensor& index, int64_t size) {
  kernels::check_index(index.device(), op, "index", index, size);
}

// Shapes of gather and scatter_add: index has as many dimensions as `t`, none larger but `dim`.
void check_gather(const char* op, const Tensor& t, const char* what, int64_t dim,
                  const Tensor& index, bool in_dim_too) {
  check(t.dim() == index.dim(), op, ": index must have ", t.dim(), " dimensions as ", what,
        " has, got ", index.dim());
  for (size_t d = 0; d < t.shape().size(); ++d) {
    if (static_cast<int64_t>(d) == dim && !in_dim_too) continue;
    check(index.shape()[d] <= t.shape()[d], op, ": index must not be larger than ", what,
          " in dimension ", d, ", got ", index.shape()[d], " and ", t.shape()[d]);
  }
}

void check_index_i64(const char* op, const Tensor& index) {
  detail::check_defined(op, index);
  check(index.dtype() == DType::i64, op, ": index must be i64, got ", index.dtype());
}

int64_t size_along(const Tensor& t, int64_t dim) { return t.dim() == 0 ? 1 : t.size(dim); }

// Values and indices of the k first along dim. Rows are brought to the end and made contiguous for
// the kernel, then moved back.
std::pair<Tensor, Tensor> ranked(const char* op, const Tensor& x, int64_t k, int64_t dim,
                                 bool descending) {
  const int64_t n = size_along(x, dim);
  const int64_t last = std::max<int64_t>(x.dim(), 1) - 1;
  const Tensor moved = x.dim() == 0 ? raw::view(x, {1}) : raw::transpose(x, dim, last);
  const int64_t rows = n == 0 ? 0 : x.numel() / n;
  Shape shape = moved.shape();
  shape[shape.size() - 1] = k;
  const Tensor values = empty({rows, k}, {x.dtype(), x.device()});
  const Tensor indices = empty({rows, k}, {DType::i64, x.device()});
  if (rows > 0)
    kernels::top_rows(x.device(), values, indices, raw::view(raw::contiguous(moved), {rows, n}),
                      descending);
  const auto back = [&](const Tensor& t) {
    if (x.dim() == 0) return raw::view(t, {});
    if (n == 0) return empty(x.shape(), {t.dtype(), t.device()});
    return raw::contiguous(raw::transpose(raw::view(t, shape), dim, last));
  };
  Tensor out = back(values);
  const Tensor out_indices = back(indices);
  if (recording(x))
    out = record(op, out, {x}, [indices = Saved(out_indices), dim, op](Grads& g) {
      const Dst d = g.dst_cleared(0);
      kernels::scatter_add(d.tensor.device(), d.tensor, dim, indices.get(op), g.out());
    });
  return {out, out_indices};
}

Tensor triangle(const char* op, const Tensor& x, int64_t diagonal, bool upper) {
  detail::check_defined(op, x);
  check(x.dim() >= 2, op, ": input must have at least 2 dimensions, got ", x.shape());
  const Tensor y = empty_like(x);
  if (y.numel() > 0) kernels::triangle_fwd(x.device(), y, x, diagonal, upper);
  if (!recording(x)) return y;
  return record(op, y, {x}, [diagonal, upper](Grads& g) {
    const Tensor dx = empty_like(g.out());
    if (dx.numel() > 0) kernels::triangle_fwd(dx.device(), dx, g.out(), diagonal, upper);
    g.give(0, dx);
  });
}

}  // namespace

Tensor index_select(const Tensor& x, int64_t dim, const Tensor& index) {
  detail::check_defined("index_select", x);
  detail::check_defined("index_select", index);
  check(x.dim() > 0, "index_select: input must have a dimension, got a 0-d tensor");
  check(index.dtype() == DType::i64 || index.dtype() == DType::i32,
        "index_select: index must be i64 or i32, got ", index.dtype());
  check(index.dim() == 1, "index_select: index must be 1-d, got shape ", index.shape());
  detail::check_same_device("index_select", x, index);
  dim = wrap_dim(dim, x.dim(), "index_select");
  const int64_t n = x.size(dim);
  check_index("index_select", index, n);
  int64_t outer = 1;
  int64_t inner = 1;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (d < dim) outer *= x.size(d);
    if (d > dim) inner *= x.size(d);
  }
  Shape shape = x.shape();
  shape[static_cast<size_t>(dim)] = index.numel();
  const Tensor y = empty(shape, {x.dtype(), x.device()});
  const Tensor picks = raw::contiguous(index);
  if (y.numel() > 0)
    kernels::index_select_fwd(x.device(), y, raw::contiguous(x), picks, outer, n, inner);
  if (!recording(x)) return y;
  return record("index_select", y, {x}, [picks = Saved(picks), outer, n, inner](Grads& g) {
    const Dst d = g.dst_cleared(0);
    // Many halves added one by one would lose the small ones: sum in f32.
    const Tensor out = raw::contiguous(raw::to(g.out(), compute_dtype(g.out().dtype())));
    const Tensor& index = picks.get("index_select");
    if (d.tensor.is_contiguous() && d.tensor.dtype() == out.dtype()) {
      kernels::index_add(out.device(), d.tensor, out, index, outer, n, inner);
      return;
    }
    const Tensor dx = zeros(d.tensor.shape(), {out.dtype(), out.device()});
    kernels::index_add(out.device(), dx, out, index, outer, n, inner);
    kernels::accumulate_to(out.device(), d, dx);
  });
}

Tensor gather(const Tensor& x, int64_t dim, const Tensor& index) {
  detail::check_defined("gather", x);
  check_index_i64("gather", index);
  detail::check_same_device("gather", x, index);
  dim = wrap_dim(dim, x.dim(), "gather");
  check_gather("gather", x, "the input", dim, index, false);
  check_index("gather", index, size_along(x, dim));
  const Tensor y = empty(index.shape(), {x.dtype(), x.device()});
  kernels::gather_fwd(x.device(), y, x, dim, index);
  if (!recording(x)) return y;
  return record("gather", y, {x}, [index = Saved(index), dim](Grads& g) {
    const Dst d = g.dst_cleared(0);
    kernels::scatter_add(d.tensor.device(), d.tensor, dim, index.get("gather"), g.out());
  });
}

Tensor scatter_add(const Tensor& x, int64_t dim, const Tensor& index, const Tensor& src) {
  detail::check_defined("scatter_add", x);
  detail::check_defined("scatter_add", src);
  check_index_i64("scatter_add", index);
  detail::check_same_device("scatter_add", x, index);
  detail::check_same_device("scatter_add", x, src);
  check(x.dtype() == src.dtype(), "scatter_add: src must be ", x.dtype(), " as the input, got ",
        src.dtype());
  dim = wrap_dim(dim, x.dim(), "scatter_add");
  check_gather("scatter_add", x, "the input", dim, index, false);
  check_gather("scatter_add", src, "src", dim, index, true);
  check_index("scatter_add", index, size_along(x, dim));
  const Tensor y = raw::clone(x);
  kernels::scatter_add(x.device(), y, dim, index, src);
  if (!recording(x) && !recording(src)) return y;
  return record("scatter_add", y, {x, src}, [index = Saved(index), dim](Grads& g) {
    g.give(0, g.out());
    if (!g.needs(1)) return;
    const Tensor& picks = index.get("scatter_add");
    const Tensor picked = empty(picks.shape(), {g.out().dtype(), g.out().device()});
    kernels::gather_fwd(picked.device(), picked, g.out(), dim, picks);
    // src may be larger than index; the rest of it took no part.
    const Dst d = g.dst_cleared(1);
    Tensor part = d.tensor;
    for (int64_t k = 0; k < part.dim(); ++k) part = raw::slice(part, k, 0, picks.size(k));
    kernels::accumulate_to(part.device(), Dst{part, true}, picked);
  });
}

std::pair<Tensor, Tensor> topk(const Tensor& x, int64_t k, int64_t dim, bool largest) {
  detail::check_defined("topk", x);
  dim = wrap_dim(dim, x.dim(), "topk");
  const int64_t n = size_along(x, dim);
  check(k >= 0 && k <= n, "topk: k must be in [0, ", n, "], got ", k);
  return ranked("topk", x, k, dim, largest);
}

std::pair<Tensor, Tensor> sort(const Tensor& x, int64_t dim, bool descending) {
  detail::check_defined("sort", x);
  dim = wrap_dim(dim, x.dim(), "sort");
  return ranked("sort", x, size_along(x, dim), dim, descending);
}

Tensor argsort(const Tensor& x, int64_t dim, bool descending) {
  detail::check_defined("argsort", x);
  dim = wrap_dim(dim, x.dim(), "argsort");
  const NoGrad no_grad;
  return ranked("argsort", x, size_along(x, dim), dim, descending).second;
}

Tensor nonzero(const Tensor& x) {
  detail::check_defined("nonzero", x);
  int64_t count = 0;
  kernels::count_nonzero(x.device(), x, count);
  const Tensor indices = empty({count, x.dim()}, {DType::i64, x.device()});
  if (indices.numel() > 0) kernels::nonzero_fwd(x.device(), indices, x);
  return indices;
}

Tensor tril(const Tensor& x, int64_t diagonal) { return triangle("tril", x, diagonal, false); }
Tensor triu(const Tensor& x, int64_t diagonal) { return triangle("triu", x, diagonal, true); }

Tensor one_hot(const Tensor& classes, int64_t num_classes) {
  check_index_i64("one_hot", classes);
  check(num_classes > 0, "one_hot: num_classes must be positive, got ", num_classes);
  check_index("one_hot", classes, num_classes);
  Shape shape = classes.shape();
  shape.push_back(num_classes);
  const Tensor y = zeros(shape, {DType::i64, classes.device()});
  if (y.numel() > 0) kernels::one_hot_fwd(y.device(), y, raw::contiguous(classes), num_classes);
  return y;
}

}  // namespace cairn
