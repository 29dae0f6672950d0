// matmul, linear and feed_forward: operands become matrices with leading batch dimensions, and
// gradients are products written straight into their destination.
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

// `number` tells the layers of an op apart.
void check_layer(const char* op, const char* number, const Tensor& x, const Tensor& weight,
                 const Tensor& bias) {
  check(x.defined() && weight.defined(), op, ": input and weight", number, " must be defined");
  check(weight.dim() == 2, op, ": weight", number, " must be 2-d [out, in], got ", weight.shape());
  check(is_floating(x.dtype()), op, ": input must be floating, got ", x.dtype());
  check(weight.dtype() == x.dtype(), op, ": weight", number, " must be ", x.dtype(),
        " like the input, got ", weight.dtype());
  check(weight.device() == x.device(), op, ": weight", number, " must be on ", x.device(), ", got ",
        weight.device());
  if (!bias.defined()) return;
  const Shape wanted{weight.size(0)};
  check(bias.shape() == wanted, op, ": bias", number, " must be of shape ", wanted, ", got ",
        bias.shape());
  check(bias.dtype() == x.dtype(), op, ": bias", number, " must be ", x.dtype(),
        " like the input, got ", bias.dtype());
  check(bias.device() == x.device(), op, ": bias", number, " must be on ", x.device(), ", got ",
        bias.device());
}

void check_features(const char* op, const char* number, const Tensor& x, const Tensor& weight) {
  check(x.dim() >= 1 && x.size(-1) == weight.size(1), op, ": input must end in ", weight.size(1),
        " features for weight", number, " ", weight.shape(), ", got ", x.shape());
}

void check_feed_forward(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                        const Tensor& weight2, const Tensor& bias2,
                        const FeedForwardOptions& options) {
  check(options.activation != Activation::none,
        "feed_forward: activation must be relu or gelu_tanh, got none");
  check_layer("feed_forward", "1", x, weight1, bias1);
  check_features("feed_forward", "1", x, weight1);
  check_layer("feed_forward", "2", x, weight2, bias2);
  check(weight2.size(1) == weight1.size(0), "feed_forward: weight2 must take the ", weight1.size(0),
        " features of weight1 ", weight1.shape(), ", got ", weight2.shape());
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

// [..., in] as the rows of a matrix, and the same leading sizes with other features.
Shape as_rows(const Shape& shape) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return {rows, shape[shape.size() - 1]};
}
Shape with_features(Shape shape, int64_t features) {
  shape[shape.size() - 1] = features;
  return shape;
}

// A layer's result [rows, out] and what its activation's gradient needs of it, in x's dtype.
struct Layer {
  Tensor y, pre, mask;
};

// x [rows, in]. `kept`: a gradient will come through the activation; `within`: inside one op, which
// can use a device's bits of relu.
Layer run_layer(const Tensor& x, const Tensor& weight, const Tensor& bias,
                kernels::Activation activation, bool kept, bool within) {
  const int64_t rows = x.size(0), out = weight.size(0);
  const TensorOptions like{kernels::product_dtype(x.device(), x.dtype()), x.device()};
  Layer layer;
  const Tensor y = empty({rows, out}, like);
  const Tensor pre =
      kept && activation == kernels::Activation::gelu ? empty({rows, out}, like) : Tensor{};
  if (kept && within && activation == kernels::Activation::relu)
    if (const int64_t bytes = kernels::relu_mask_bytes(x.device(), like.dtype, out))
      layer.mask = empty({rows, bytes}, {DType::u8, x.device()});
  kernels::linear_fwd(x.device(), y, pre, layer.mask.defined() ? &layer.mask : nullptr,
                      to_compute(x), to_compute(weight),
                      bias.defined() ? to_compute(raw::contiguous(bias)) : bias, activation);
  layer.y = raw::to(y, x.dtype());
  if (pre.defined()) layer.pre = raw::to(pre, x.dtype());
  return layer;
}

// Where a kernel writes a gradient in its own dtype: the gradient itself or, where it cannot, a
// tensor that finish() hands over.
struct Target {
  Target(const Dst& wanted, const Tensor& like, bool direct) : wanted(wanted), place(wanted) {
    if (wanted && !direct) place = {empty(wanted.tensor.shape(), {like.dtype(), like.device()})};
  }
  void finish() const {
    if (wanted && place.tensor.storage() != wanted.tensor.storage())
      kernels::accumulate_to(wanted.tensor.device(), wanted, place.tensor);
  }

  Dst wanted, place;
};

Target bias_target(const Dst& db, const Tensor& dy) {
  return {db, dy, db && db.tensor.dtype() == dy.dtype() && db.tensor.is_contiguous()};
}

// A layer's gradients from dy [rows, out], the one of its product: the weight's, where x [rows, in]
// is given, and the bias's, where `db` is.
void parameter_gradients(Grads& g, size_t weight, const Dst& db, const Tensor& dy,
                         const Tensor& x) {
  const Target sums = bias_target(db, dy);
  if (x.defined()) {
    const Dst dw = g.dst(weight);
    const Target product(dw, dy, dw && is_writable(dw.tensor, dy.dtype()));
    kernels::linear_bwd_weight(dy.device(), product.place, sums.place, dy, x);
    product.finish();
  } else if (db) {
    kernels::sum_rows(dy.device(), sums.place, dy);
  }
  sums.finish();
}

// The gradient before the activation, from dy after it; the bias's gradient goes to db.
Tensor activation_gradient(const Dst& db, const Tensor& dy, const Tensor& saved,
                           kernels::Activation activation) {
  const Target sums = bias_target(db, dy);
  const Tensor dpre = empty(dy.shape(), {dy.dtype(), dy.device()});
  kernels::linear_bwd_activation(dy.device(), Dst{dpre, false}, sums.place, dy, saved, activation);
  sums.finish();
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
  check_layer("linear", "", x, weight, bias);
  check_features("linear", "", x, weight);
  const kernels::Activation activation = kernel_activation(options.activation);
  const Tensor matrix = reshaped(x, as_rows(x.shape()));
  const Layer layer =
      run_layer(matrix, weight, bias, activation, will_record({x, weight, bias}), false);
  Saved saved(layer.pre);
  if (activation == kernels::Activation::relu) saved = Saved(layer.y);
  return record(
      "linear", reshaped(layer.y, with_features(x.shape(), weight.size(0))), {x, weight, bias},
      [x = requires_grad(weight) ? Saved(matrix) : Saved(),
       w = requires_grad(x) ? Saved(weight) : Saved(), saved = std::move(saved), activation,
       in = matrix.shape(), out = layer.y.shape()](Grads& g) {
        Tensor dy = to_compute(raw::contiguous(reshaped(g.out(), out)));
        Dst db = g.dst(2);
        if (activation != kernels::Activation::none) {
          dy = activation_gradient(db, dy, to_compute(saved.get("linear")), activation);
          db = {};
        }
        if (w.defined()) product_into(g, 0, in, dy, to_compute(w.get("linear")));
        parameter_gradients(g, 1, db, dy, x.defined() ? to_compute(x.get("linear")) : Tensor{});
      });
}

Tensor feed_forward(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                    const Tensor& weight2, const Tensor& bias2, const FeedForwardOptions& options) {
  if (autocast::narrows({x, weight1, bias1, weight2, bias2}))
    return feed_forward(autocast::narrowed(x), autocast::narrowed(weight1),
                        autocast::narrowed(bias1), autocast::narrowed(weight2),
                        autocast::narrowed(bias2), options);
  check_feed_forward(x, weight1, bias1, weight2, bias2, options);
  const kernels::Activation activation = kernel_activation(options.activation);
  const bool relu = activation == kernels::Activation::relu;
  const Tensor matrix = reshaped(x, as_rows(x.shape()));
  const bool through = will_record({x, weight1, bias1});
  const Layer hidden = run_layer(matrix, weight1, bias1, activation, through, true);
  const Tensor y = run_layer(hidden.y, weight2, bias2, kernels::Activation::none, false, true).y;
  return record(
      "feed_forward", reshaped(y, with_features(x.shape(), weight2.size(0))),
      {x, weight1, bias1, weight2, bias2},
      [x = requires_grad(weight1) ? Saved(matrix) : Saved(),
       w1 = requires_grad(x) ? Saved(weight1) : Saved(), w2 = through ? Saved(weight2) : Saved(),
       hidden = requires_grad(weight2) || (through && relu) ? Saved(hidden.y) : Saved(),
       pre = Saved(hidden.pre), mask = Saved(hidden.mask), trains2 = requires_grad(weight2), relu,
       activation, in = matrix.shape(), out = y.shape()](Grads& g) {
        const auto read = [](const Saved& saved) {
          return saved.defined() ? to_compute(saved.get("feed_forward")) : Tensor{};
        };
        const Tensor dy = to_compute(raw::contiguous(reshaped(g.out(), out)));
        const Tensor between = read(hidden);
        parameter_gradients(g, 3, g.dst(4), dy, trains2 ? between : Tensor{});
        if (!w2.defined()) return;
        const Tensor second = read(w2);
        const Tensor dpre = empty({dy.size(0), second.size(1)}, {dy.dtype(), dy.device()});
        const Target db = bias_target(g.dst(2), dy);
        kernels::linear_bwd_input(dy.device(), Dst{dpre, false}, db.place, dy, second,
                                  relu ? between : read(pre), mask.get("feed_forward"), activation);
        db.finish();
        if (w1.defined()) product_into(g, 0, in, dpre, read(w1));
        parameter_gradients(g, 1, {}, dpre, read(x));
      });
}

}  // namespace cairn
