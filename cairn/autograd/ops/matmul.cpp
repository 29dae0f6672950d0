// matmul and linear: operands become matrices with leading batch dimensions, and gradients are
// products written straight into their destination.
#include "cairn/autograd/ops/matmul.h"

#include "cairn/autograd/autocast.h"
#include "cairn/autograd/record.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/matmul.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

Tensor to_compute(const Tensor& t) {
  return raw::to(t, kernels::product_dtype(t.device(), t.dtype()));
}

// As the raw views, which cost as much as a small product, where they change something.
Tensor reshaped(const Tensor& t, const Shape& shape) {
  return t.shape() == shape ? t : raw::reshape(t, shape);
}
Tensor expanded(const Tensor& t, const Shape& shape) {
  return t.shape() == shape ? t : raw::expand(t, shape);
}

Tensor transposed(const Tensor& t) { return raw::transpose(t, -1, -2); }

Shape leading(const Shape& shape) {
  Shape out = shape;
  out.resize(shape.size() - 2);
  return out;
}

Shape joined(const Shape& batch, int64_t rows, int64_t cols) {
  Shape out = batch;
  out.push_back(rows);
  out.push_back(cols);
  return out;
}

// Whether the matrix kernel can write this: rows or columns of adjacent elements.
bool is_writable(const Tensor& t, DType dtype) {
  const int64_t rows = t.size(-2), cols = t.size(-1);
  return t.dtype() == dtype && (cols <= 1 || rows <= 1 || t.stride(-1) == 1 || t.stride(-2) == 1);
}

// g.dst(input) (+)= a b, summed over the batch dimensions where the input, seen as `matrix`, was
// broadcast.
void product_into(Grads& g, size_t input, const Shape& matrix, const Tensor& a, const Tensor& b) {
  const Dst dst = g.dst(input);
  if (!dst) return;
  const Tensor& t = dst.tensor;
  const Shape full = joined(broadcast_shapes(leading(a.shape()), leading(b.shape()), "matmul"),
                            a.size(-2), b.size(-1));
  Shape strides;
  Dst place;
  if (t.shape() == matrix)
    place = dst;
  else if (raw::view_strides(t, matrix, strides))
    place = {raw::view(t, matrix), dst.add};
  if (!place || !is_writable(place.tensor, a.dtype()))
    place = {empty(matrix, {a.dtype(), a.device()}), false};
  const bool direct = place.tensor.storage() == t.storage();
  // Without a single product nothing would be written.
  if (numel_of(full) == 0 && !place.add) raw::fill_(place.tensor, 0);
  kernels::matmul(a.device(), Dst{expanded(place.tensor, full), place.add},
                  expanded(a, joined(leading(full), a.size(-2), a.size(-1))),
                  expanded(b, joined(leading(full), b.size(-2), b.size(-1))));
  if (!direct) kernels::accumulate_to(a.device(), dst, raw::view(place.tensor, t.shape()));
}

void check_matmul(const Tensor& a, const Tensor& b) {
  check(a.defined() && b.defined(), "matmul: operands must be defined");
  check(a.dim() >= 1 && b.dim() >= 1, "matmul: operands must be at least 1-d, got ", a.shape(),
        " and ", b.shape());
  check(is_floating(a.dtype()) && a.dtype() == b.dtype(),
        "matmul: operands must be of one floating dtype, got ", a.dtype(), " and ", b.dtype());
  check(a.device() == b.device(), "matmul: operands must be on one device, got ", a.device(),
        " and ", b.device());
  check(a.size(-1) == b.size(b.dim() == 1 ? 0 : -2), "matmul: inner sizes must agree, got ",
        a.shape(), " and ", b.shape());
}

void check_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check(x.defined() && weight.defined(), "linear: input and weight must be defined");
  check(weight.dim() == 2, "linear: weight must be 2-d [out, in], got ", weight.shape());
  check(is_floating(x.dtype()), "linear: input must be floating, got ", x.dtype());
  check(weight.dtype() == x.dtype(), "linear: weight must be ", x.dtype(), " like the input, got ",
        weight.dtype());
  check(weight.device() == x.device(), "linear: weight must be on ", x.device(), ", got ",
        weight.device());
  check(x.dim() >= 1 && x.size(-1) == weight.size(1), "linear: input must end in ", weight.size(1),
        " features for weight ", weight.shape(), ", got ", x.shape());
  if (!bias.defined()) return;
  const Shape wanted{weight.size(0)};
  check(bias.shape() == wanted, "linear: bias must be of shape ", wanted, ", got ", bias.shape());
  check(bias.dtype() == x.dtype(), "linear: bias must be ", x.dtype(), " like the input, got ",
        bias.dtype());
  check(bias.device() == x.device(), "linear: bias must be on ", x.device(), ", got ",
        bias.device());
}

kernels::Activation kernel_activation(Activation activation) {
  switch (activation) {
    case Activation::relu:
      return kernels::Activation::relu;
    case Activation::gelu_tanh:
      return kernels::Activation::gelu;
    default:
      return kernels::Activation::none;
  }
}

// The gradient before the activation, from dy after it; the bias's gradient goes to g.dst(2).
Tensor activation_gradient(Grads& g, const Tensor& dy, const Saved& saved,
                           kernels::Activation activation) {
  const Dst db = g.dst(2);
  const bool direct = !db || (db.tensor.dtype() == dy.dtype() && db.tensor.is_contiguous());
  const TensorOptions options{dy.dtype(), dy.device()};
  const Dst sums = direct ? db : Dst{empty({dy.size(1)}, options), false};
  const bool fused = activation != kernels::Activation::none;
  const Tensor dpre = fused ? empty(dy.shape(), options) : dy;
  if (fused)
    kernels::linear_bwd_activation(dy.device(), Dst{dpre, false}, sums, dy,
                                   to_compute(saved.get("linear")), activation);
  else if (db)
    kernels::sum_rows(dy.device(), sums, dy);
  if (!direct) kernels::accumulate_to(dy.device(), db, sums.tensor);
  return dpre;
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
  if (autocast::narrows({a, b})) return matmul(autocast::narrowed(a), autocast::narrowed(b));
  check_matmul(a, b);
  // Vectors become matrices of one row or column; a batch that meets one matrix becomes tall.
  Shape a_matrix = a.shape(), b_matrix = b.shape();
  if (a.dim() == 1) a_matrix = {1, a.size(0)};
  if (b.dim() == 1) b_matrix = {b.size(0), 1};
  Shape result = joined(broadcast_shapes(leading(a_matrix), leading(b_matrix), "matmul"),
                        a_matrix[a_matrix.size() - 2], b_matrix.back());
  if (b_matrix.size() == 2 && a_matrix.size() > 2) {
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < a_matrix.size(); ++i) rows *= a_matrix[i];
    a_matrix = {rows, a_matrix.back()};
  }
  const Shape full = joined(broadcast_shapes(leading(a_matrix), leading(b_matrix), "matmul"),
                            a_matrix[a_matrix.size() - 2], b_matrix.back());
  if (b.dim() == 1) result.erase(result.size() - 1);
  if (a.dim() == 1) result.erase(result.size() - (b.dim() == 1 ? 1 : 2));

  const Tensor left = reshaped(a, a_matrix), right = reshaped(b, b_matrix);
  const Tensor y = empty(full, {kernels::product_dtype(a.device(), a.dtype()), a.device()});
  kernels::matmul(
      a.device(), Dst{y, false},
      expanded(to_compute(left), joined(leading(full), left.size(-2), left.size(-1))),
      expanded(to_compute(right), joined(leading(full), right.size(-2), right.size(-1))));
  return record(
      "matmul", reshaped(raw::to(y, a.dtype()), result), {a, b},
      [a = requires_grad(b) ? Saved(left) : Saved(), b = requires_grad(a) ? Saved(right) : Saved(),
       a_matrix, b_matrix, full](Grads& g) {
        const Tensor dy = to_compute(reshaped(g.out(), full));
        if (b.defined()) product_into(g, 0, a_matrix, dy, transposed(to_compute(b.get("matmul"))));
        if (a.defined()) product_into(g, 1, b_matrix, transposed(to_compute(a.get("matmul"))), dy);
      });
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const LinearOptions& options) {
  if (autocast::narrows({x, weight, bias}))
    return linear(autocast::narrowed(x), autocast::narrowed(weight), autocast::narrowed(bias),
                  options);
  check_linear(x, weight, bias);
  const kernels::Activation activation = kernel_activation(options.activation);
  const int64_t in = weight.size(1), out = weight.size(0);
  Shape result = x.shape();
  result[result.size() - 1] = out;
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < result.size(); ++i) rows *= result[i];
  const Tensor matrix = reshaped(x, {rows, in});
  const TensorOptions like{kernels::product_dtype(x.device(), x.dtype()), x.device()};
  const Tensor y = empty({rows, out}, like);
  const bool records = will_record({x, weight, bias});
  const bool keeps_pre = records && activation == kernels::Activation::gelu;
  const Tensor pre = keeps_pre ? empty({rows, out}, like) : Tensor{};
  kernels::linear_fwd(x.device(), y, pre, to_compute(matrix), to_compute(weight),
                      bias.defined() ? to_compute(raw::contiguous(bias)) : bias, activation);
  const Tensor product = raw::to(y, x.dtype());
  Saved saved;
  if (keeps_pre) saved = Saved(raw::to(pre, x.dtype()));
  if (activation == kernels::Activation::relu) saved = Saved(product);
  return record("linear", reshaped(product, result), {x, weight, bias},
                [x = requires_grad(weight) ? Saved(matrix) : Saved(),
                 w = requires_grad(x) ? Saved(weight) : Saved(), saved = std::move(saved),
                 activation, rows, in, out](Grads& g) {
                  const Tensor dy = to_compute(raw::contiguous(reshaped(g.out(), {rows, out})));
                  const Tensor dpre = activation_gradient(g, dy, saved, activation);
                  if (w.defined())
                    product_into(g, 0, {rows, in}, dpre, to_compute(w.get("linear")));
                  if (x.defined())
                    product_into(g, 1, {out, in}, transposed(dpre), to_compute(x.get("linear")));
                });
}

}  // namespace cairn
