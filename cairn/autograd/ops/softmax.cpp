// softmax, log_softmax and logsumexp.
// Invariant: kernels see contiguous memory as [outer, n, inner]; the forward's result is all that
// the backward reads.
#include "cairn/autograd/autocast.h"
#include "cairn/autograd/ops/elementwise_detail.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/reduce.h"

namespace cairn {
namespace {

struct Lines {
  int64_t outer = 1;
  int64_t n = 1;
  int64_t inner = 1;
};

Lines lines_of(const Shape& shape, int64_t dim) {
  Lines lines;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (static_cast<int64_t>(d) < dim) lines.outer *= shape[d];
    if (static_cast<int64_t>(d) == dim) lines.n = shape[d];
    if (static_cast<int64_t>(d) > dim) lines.inner *= shape[d];
  }
  return lines;
}

void check_input(const char* op, const Tensor& x) {
  detail::check_defined(op, x);
  check(is_floating(x.dtype()), op, ": dtype must be floating, got ", x.dtype());
}

Tensor normalised(const char* op, const Tensor& x, int64_t dim, bool log) {
  if (autocast::widens({x})) return normalised(op, autocast::widened(x), dim, log);
  check_input(op, x);
  const Lines lines = lines_of(x.shape(), wrap_dim(dim, x.dim(), op));
  const Tensor y = empty(x.shape(), {x.dtype(), x.device()});
  kernels::softmax_fwd(x.device(), y, raw::contiguous(x), lines.outer, lines.n, lines.inner, log);
  if (!detail::recording(x)) return y;
  return record(op, y, {x}, [y = Saved(y), lines, log, op](Grads& g) {
    const Tensor out = raw::contiguous(g.out());
    const Dst d = g.dst(0);
    if (d.tensor.is_contiguous()) {
      kernels::softmax_bwd(out.device(), d, out, y.get(op), lines.outer, lines.n, lines.inner, log);
      return;
    }
    const Tensor dx = empty(out.shape(), {out.dtype(), out.device()});
    kernels::softmax_bwd(out.device(), Dst{dx, false}, out, y.get(op), lines.outer, lines.n,
                         lines.inner, log);
    kernels::accumulate_to(out.device(), d, dx);
  });
}

}  // namespace

Tensor softmax(const Tensor& x, int64_t dim) { return normalised("softmax", x, dim, false); }
Tensor log_softmax(const Tensor& x, int64_t dim) { return normalised("log_softmax", x, dim, true); }

Tensor logsumexp(const Tensor& x, int64_t dim, bool keepdim) {
  if (autocast::widens({x})) return logsumexp(autocast::widened(x), dim, keepdim);
  check_input("logsumexp", x);
  dim = wrap_dim(dim, x.dim(), "logsumexp");
  const Lines lines = lines_of(x.shape(), dim);
  Shape kept = x.shape();
  if (x.dim() > 0) kept[static_cast<size_t>(dim)] = 1;
  const Tensor y = empty(kept, {x.dtype(), x.device()});
  kernels::logsumexp_fwd(x.device(), y, raw::contiguous(x), lines.outer, lines.n, lines.inner);
  const Tensor out = keepdim || x.dim() == 0 ? y : raw::squeeze(y, dim);
  if (!detail::recording(x)) return out;
  return record("logsumexp", out, {x}, [x = Saved(x), y = Saved(y), kept](Grads& g) {
    const Tensor share = exp(sub(x.get("logsumexp"), y.get("logsumexp")));
    g.give(0, mul(share, raw::reshape(g.out(), kept)));
  });
}

}  // namespace cairn
