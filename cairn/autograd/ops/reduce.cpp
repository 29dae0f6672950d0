// Reductions with a gradient.
// Invariant: kernels see outputs with a 1 in every reduced dimension; keepdim only decides the
// shape of the view that is returned.
#include "cairn/autograd/ops/reduce.h"

#include <algorithm>

#include "cairn/autograd/autocast.h"
#include "cairn/autograd/ops/elementwise_detail.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/kernels/indexing.h"
#include "cairn/kernels/reduce.h"

namespace cairn {
namespace {

using detail::recording;

// The shapes behind one reduction.
struct Reduced {
  Shape kept;         // x's shape with 1 in the reduced dimensions
  Shape result;       // what the caller gets
  int64_t count = 1;  // elements behind one result
};

Reduced reduced_shapes(const char* op, const Tensor& x, const Shape& dims, bool keepdim) {
  detail::check_defined(op, x);
  bool gone[kMaxRank] = {};
  if (dims.empty()) std::fill_n(gone, kMaxRank, true);
  for (int64_t dim : dims) {
    const auto d = static_cast<size_t>(wrap_dim(dim, x.dim(), op));
    check(!gone[d], op, ": dims must name each dimension once, got ", dims);
    gone[d] = true;
  }
  Reduced r;
  for (size_t d = 0; d < x.shape().size(); ++d) {
    const int64_t size = x.shape()[d];
    r.kept.push_back(gone[d] ? 1 : size);
    if (gone[d]) r.count *= size;
    if (!gone[d] || keepdim) r.result.push_back(gone[d] ? 1 : size);
  }
  return r;
}

// The gradient of a result as a tensor that broadcasts to the input.
Tensor spread(const Tensor& grad, const Shape& kept) { return raw::reshape(grad, kept); }

DType sum_dtype(DType dtype) { return is_floating(dtype) ? dtype : DType::i64; }

void check_floating(const char* op, const Tensor& x) {
  detail::check_defined(op, x);
  check(is_floating(x.dtype()), op, ": dtype must be floating, got ", x.dtype());
}

Tensor sum_kernel(const Tensor& x, const Shape& kept, double divisor) {
  Tensor y = empty(kept, {sum_dtype(x.dtype()), x.device()});
  kernels::sum_fwd(x.device(), y, x, divisor);
  return y;
}

Tensor extreme(const char* op, const Tensor& x, const Shape& dims, bool keepdim, bool largest) {
  const Reduced r = reduced_shapes(op, x, dims, keepdim);
  check(r.count > 0, op, ": reduced part must not be empty, got shape ", x.shape());
  const Tensor y = empty(r.kept, {x.dtype(), x.device()});
  kernels::extreme_fwd(x.device(), y, x, largest);
  const Tensor out = raw::view(y, r.result);
  if (!recording(x)) return out;
  return record(op, out, {x}, [x = Saved(x), y = Saved(y), kept = r.kept, op](Grads& g) {
    // Shared equally among the elements that equal the extreme.
    const Tensor hits = to(eq(x.get(op), y.get(op)), g.out().dtype());
    const Tensor share = div(spread(g.out(), kept), sum_kernel(hits, kept, 1));
    kernels::mul_fwd(hits.device(), hits, hits, share);
    g.give(0, hits);
  });
}

Tensor arg_kernel(const char* op, const Tensor& values, const Tensor& x, int64_t dim,
                  bool largest) {
  Shape kept = x.shape();
  if (x.dim() > 0) {
    check(x.size(dim) > 0, op, ": dimension must not be empty, got shape ", x.shape());
    kept[static_cast<size_t>(dim)] = 1;
  }
  const Tensor indices = empty(kept, {DType::i64, x.device()});
  kernels::arg_extreme_fwd(x.device(), values, indices, x, dim, largest);
  return indices;
}

Tensor arg_all(const char* op, const Tensor& x, bool largest) {
  detail::check_defined(op, x);
  check(x.numel() > 0, op, ": input must not be empty, got shape ", x.shape());
  const Tensor flat = raw::reshape(x, {x.numel()});
  return raw::view(arg_kernel(op, {}, flat, 0, largest), {});
}

Tensor arg_along(const char* op, const Tensor& x, int64_t dim, bool keepdim, bool largest) {
  detail::check_defined(op, x);
  dim = wrap_dim(dim, x.dim(), op);
  const Tensor indices = arg_kernel(op, {}, x, dim, largest);
  return keepdim || x.dim() == 0 ? indices : raw::squeeze(indices, dim);
}

std::pair<Tensor, Tensor> extreme_along(const char* op, const Tensor& x, int64_t dim, bool keepdim,
                                        bool largest) {
  detail::check_defined(op, x);
  dim = wrap_dim(dim, x.dim(), op);
  Shape kept = x.shape();
  if (x.dim() > 0) kept[static_cast<size_t>(dim)] = 1;
  const Tensor values = empty(kept, {x.dtype(), x.device()});
  const Tensor indices = arg_kernel(op, values, x, dim, largest);
  const bool squeezes = !keepdim && x.dim() > 0;
  Tensor out = squeezes ? raw::squeeze(values, dim) : values;
  const Tensor out_indices = squeezes ? raw::squeeze(indices, dim) : indices;
  if (recording(x))
    out = record(op, out, {x}, [indices = Saved(indices), kept, dim, op](Grads& g) {
      const Dst d = g.dst_cleared(0);
      kernels::scatter_add(d.tensor.device(), d.tensor, dim, indices.get(op),
                           spread(g.out(), kept));
    });
  return {out, out_indices};
}

// The variance with kept dimensions, and the deviations from the mean, which its gradient needs;
// f32 for halves, whose mean would be rounded before it is subtracted.
std::pair<Tensor, Tensor> variance(const Tensor& input, const Reduced& r, int64_t correction) {
  const NoGrad no_grad;
  const Tensor x = raw::to(input, compute_dtype(input.dtype()));
  const Tensor mean = sum_kernel(x, r.kept, static_cast<double>(r.count));
  const Tensor deviation = sub(x, mean);
  const double freedom = static_cast<double>(std::max<int64_t>(0, r.count - correction));
  return {sum_kernel(square(deviation), r.kept, freedom), deviation};
}

}  // namespace

Tensor sum(const Tensor& x, const Shape& dims, bool keepdim) {
  if (autocast::widens({x})) return sum(autocast::widened(x), dims, keepdim);
  const Reduced r = reduced_shapes("sum", x, dims, keepdim);
  const Tensor out = raw::view(sum_kernel(x, r.kept, 1), r.result);
  if (!recording(x)) return out;
  return record("sum", out, {x}, [shape = x.shape(), kept = r.kept](Grads& g) {
    g.give(0, raw::expand(spread(g.out(), kept), shape));
  });
}

Tensor mean(const Tensor& x, const Shape& dims, bool keepdim) {
  check_floating("mean", x);
  const Reduced r = reduced_shapes("mean", x, dims, keepdim);
  const auto count = static_cast<double>(r.count);
  const Tensor out = raw::view(sum_kernel(x, r.kept, count), r.result);
  if (!recording(x)) return out;
  return record("mean", out, {x}, [shape = x.shape(), kept = r.kept, count](Grads& g) {
    g.give(0, raw::expand(spread(div(g.out(), count), kept), shape));
  });
}

Tensor prod(const Tensor& x) {
  detail::check_defined("prod", x);
  return prod(reshape(x, {x.numel()}), 0);
}

Tensor prod(const Tensor& x, int64_t dim, bool keepdim) {
  if (autocast::widens({x})) return prod(autocast::widened(x), dim, keepdim);
  detail::check_defined("prod", x);
  dim = wrap_dim(dim, x.dim(), "prod");
  const Reduced r = reduced_shapes("prod", x, x.dim() == 0 ? Shape{} : Shape{dim}, keepdim);
  const Tensor y = empty(r.kept, {sum_dtype(x.dtype()), x.device()});
  kernels::prod_fwd(x.device(), y, x);
  const Tensor out = raw::view(y, r.result);
  if (!recording(x)) return out;
  return record("prod", out, {x}, [x = Saved(x), kept = r.kept, dim](Grads& g) {
    kernels::prod_bwd(g.out().device(), g.dst(0), spread(g.out(), kept), x.get("prod"), dim);
  });
}

Tensor var(const Tensor& x, const Shape& dims, int64_t correction, bool keepdim) {
  check_floating("var", x);
  const Reduced r = reduced_shapes("var", x, dims, keepdim);
  const auto [y, deviation] = variance(x, r, correction);
  const Tensor out = raw::to(raw::view(y, r.result), x.dtype());
  if (!recording(x)) return out;
  const double scale = 2.0 / static_cast<double>(std::max<int64_t>(0, r.count - correction));
  return record("var", out, {x}, [deviation = Saved(deviation), kept = r.kept, scale](Grads& g) {
    g.give(0, mul(deviation.get("var"), mul(spread(g.out(), kept), scale)));
  });
}

Tensor std(const Tensor& x, const Shape& dims, int64_t correction, bool keepdim) {
  check_floating("std", x);
  const Reduced r = reduced_shapes("std", x, dims, keepdim);
  const auto [y, deviation] = variance(x, r, correction);
  kernels::sqrt_fwd(y.device(), y, y, kernels::Attributes{});
  const Tensor out = raw::to(raw::view(y, r.result), x.dtype());
  if (!recording(x)) return out;
  const auto freedom = static_cast<double>(std::max<int64_t>(0, r.count - correction));
  return record("std", out, {x},
                [deviation = Saved(deviation), y = Saved(y), kept = r.kept, freedom](Grads& g) {
                  // At 0 the slope is taken to be 0.
                  const Tensor& root = y.get("std");
                  const Tensor slope = div(spread(g.out(), kept), mul(root, freedom));
                  g.give(0, mul(deviation.get("std"), masked_fill(slope, eq(root, 0), 0)));
                });
}

Tensor amax(const Tensor& x, const Shape& dims, bool keepdim) {
  return extreme("amax", x, dims, keepdim, true);
}
Tensor amin(const Tensor& x, const Shape& dims, bool keepdim) {
  return extreme("amin", x, dims, keepdim, false);
}

std::pair<Tensor, Tensor> max(const Tensor& x, int64_t dim, bool keepdim) {
  return extreme_along("max", x, dim, keepdim, true);
}
std::pair<Tensor, Tensor> min(const Tensor& x, int64_t dim, bool keepdim) {
  return extreme_along("min", x, dim, keepdim, false);
}

Tensor argmax(const Tensor& x) { return arg_all("argmax", x, true); }
Tensor argmin(const Tensor& x) { return arg_all("argmin", x, false); }
Tensor argmax(const Tensor& x, int64_t dim, bool keepdim) {
  return arg_along("argmax", x, dim, keepdim, true);
}
Tensor argmin(const Tensor& x, int64_t dim, bool keepdim) {
  return arg_along("argmin", x, dim, keepdim, false);
}

Tensor any(const Tensor& x) {
  detail::check_defined("any", x);
  if (x.numel() == 0) return full({}, 0, {DType::boolean, x.device()});
  return amax(raw::to(x, DType::boolean));
}

Tensor all(const Tensor& x) {
  detail::check_defined("all", x);
  if (x.numel() == 0) return full({}, 1, {DType::boolean, x.device()});
  return amin(raw::to(x, DType::boolean));
}

Tensor cumsum(const Tensor& x, int64_t dim) {
  if (autocast::widens({x})) return cumsum(autocast::widened(x), dim);
  detail::check_defined("cumsum", x);
  dim = wrap_dim(dim, x.dim(), "cumsum");
  const Tensor y = empty_like(x, sum_dtype(x.dtype()));
  kernels::cumsum_fwd(x.device(), y, x, dim, false);
  return record("cumsum", y, {x}, [dim](Grads& g) {
    const Tensor dx = empty_like(g.out());
    kernels::cumsum_fwd(dx.device(), dx, g.out(), dim, true);
    g.give(0, dx);
  });
}

// As one line over all of them: nested lines would lose the slope of a part that is all -infinity.
Tensor logsumexp(const Tensor& x, const Shape& dims, bool keepdim) {
  const Reduced r = reduced_shapes("logsumexp", x, dims, keepdim);
  // A dimension of size 1 may stand on either side: the result has its shape from r.
  Shape order, lines, reduced;
  for (int64_t d = 0; d < x.dim(); ++d) {
    const bool kept = r.kept[static_cast<size_t>(d)] == x.size(d);
    (kept ? order : reduced).push_back(d);
    if (kept) lines.push_back(x.size(d));
  }
  for (int64_t d : reduced) order.push_back(d);
  lines.push_back(r.count);
  return reshape(logsumexp(reshape(permute(x, order), lines), int64_t{-1}, false), r.result);
}

Tensor norm(const Tensor& x) {
  if (autocast::widens({x})) return norm(autocast::widened(x));
  check_floating("norm", x);
  const Reduced r = reduced_shapes("norm", x, {}, false);
  const Tensor squares = empty(r.kept, {DType::f64, x.device()});
  kernels::sum_squares_fwd(x.device(), squares, x);
  kernels::sqrt_fwd(x.device(), squares, squares, kernels::Attributes{});
  const Tensor y = raw::to(raw::view(squares, {}), x.dtype());
  if (!recording(x)) return y;
  return record("norm", y, {x}, [x = Saved(x), y = Saved(y)](Grads& g) {
    const Tensor& length = y.get("norm");
    const Tensor slope = masked_fill(div(g.out(), length), eq(length, 0), 0);
    g.give(0, mul(x.get("norm"), slope));
  });
}

}  // namespace cairn
