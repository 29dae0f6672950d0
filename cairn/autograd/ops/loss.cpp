// Losses: argument checks, layouts and backward rules.
#include "cairn/autograd/ops/loss.h"

#include "cairn/autograd/autocast.h"
#include "cairn/autograd/record.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/loss.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

using kernels::LossReduction;

LossReduction kernel_reduction(Reduction reduction) {
  switch (reduction) {
    case Reduction::none:
      return LossReduction::none;
    case Reduction::mean:
      return LossReduction::mean;
    default:
      return LossReduction::sum;
  }
}

Tensor loss_memory(const Tensor& x, const Shape& shape, Reduction reduction) {
  return empty(reduction == Reduction::none ? shape : Shape{}, {x.dtype(), x.device()});
}

DType statistics_dtype(const Tensor& x) {
  return x.dtype() == DType::f64 ? DType::f64 : DType::f32;
}

// --- classes
// -----------------------------------------------------------------------------------------

// The shape of one target per prediction: x's without its classes.
Shape without_classes(const Shape& x) {
  Shape out = x;
  out.erase(x.size() == 1 ? 0 : 1);
  return out;
}

int64_t classes_of(const Tensor& x) { return x.dim() == 1 ? x.size(0) : x.size(1); }

void check_scores(const char* op, const char* name, const Tensor& x, const Tensor& target,
                  const Tensor& weight) {
  check(x.defined() && target.defined(), op, ": ", name, " and target must be defined");
  check(x.dim() >= 1, op, ": ", name, " must be [C], [N, C] or [N, C, d1, ...], got ", x.shape());
  check(is_floating(x.dtype()), op, ": ", name, " must be floating, got ", x.dtype());
  check(classes_of(x) >= 1, op, ": ", name, " must have at least 1 class, got ", x.shape());
  check(target.device() == x.device(), op, ": target must be on ", x.device(), ", got ",
        target.device());
  if (!weight.defined()) return;
  check(weight.shape() == Shape{classes_of(x)}, op, ": weight must be of shape ",
        Shape{classes_of(x)}, ", got ", weight.shape());
  check(weight.dtype() == x.dtype(), op, ": weight must be ", x.dtype(), ", got ", weight.dtype());
}

// Class indices as contiguous i64, checked.
Tensor classes_as_i64(const char* op, const Tensor& x, const Tensor& target, int64_t ignore_index) {
  const Shape wanted = without_classes(x.shape());
  check(target.shape() == wanted, op, ": target must be of shape ", wanted, ", got ",
        target.shape());
  check(target.dtype() == DType::i64 || target.dtype() == DType::i32 || target.dtype() == DType::u8,
        op, ": target must be i64, i32 or u8 class indices, got ", target.dtype());
  const Tensor classes = raw::contiguous(raw::to(target, DType::i64));
  kernels::check_classes(x.device(), op, classes, classes_of(x), ignore_index);
  return classes;
}

// The dimensions of x with its classes last.
Shape classes_last(const Tensor& x) {
  Shape dims;
  for (int64_t d = 0; d < x.dim(); ++d)
    if (x.dim() == 1 || d != 1) dims.push_back(d);
  if (x.dim() > 1) dims.push_back(1);
  return dims;
}

Tensor as_rows(const Tensor& x) {
  const int64_t classes = classes_of(x);
  const Tensor moved = raw::contiguous(raw::permute(x, classes_last(x)));
  return raw::view(moved, {x.numel() / classes, classes});
}

// Where a gradient of rows goes: straight into the destination of an [N, C] input, else by way of a
// matrix that deliver() hands over.
class RowsGradient {
 public:
  RowsGradient(Grads& g, size_t input, const Shape& shape, int64_t classes)
      : target_(g.dst(input)) {
    if (!target_) return;
    const Tensor& t = target_.tensor;
    direct_ = shape.size() <= 2 && t.is_contiguous();
    const Shape matrix{t.numel() / classes, classes};
    dst = direct_ ? Dst{raw::view(t, matrix), target_.add}
                  : Dst{empty(matrix, {t.dtype(), t.device()}), false};
  }
  void deliver() const {
    if (direct_) return;
    const Tensor& t = target_.tensor;
    const Shape dims = classes_last(t);
    Shape moved, back;
    moved.resize(dims.size());
    back.resize(dims.size());
    for (size_t i = 0; i < dims.size(); ++i) {
      moved[i] = t.shape()[static_cast<size_t>(dims[i])];
      back[static_cast<size_t>(dims[i])] = static_cast<int64_t>(i);
    }
    kernels::accumulate_to(t.device(), target_, raw::permute(raw::view(dst.tensor, moved), back));
  }
  Dst dst;

 private:
  Dst target_;
  bool direct_ = true;
};

// --- elementwise
// -------------------------------------------------------------------------------------

void check_pair(const char* op, const Tensor& input, const Tensor& target) {
  check(input.defined() && target.defined(), op, ": input and target must be defined");
  check(is_floating(input.dtype()), op, ": input must be floating, got ", input.dtype());
  check(target.dtype() == input.dtype(), op, ": target must be ", input.dtype(),
        " like the input, got ", target.dtype());
  check(target.device() == input.device(), op, ": target must be on ", input.device(), ", got ",
        target.device());
}

Tensor expanded(const char* op, const char* name, const Tensor& t, const Tensor& input) {
  if (!t.defined()) return t;
  check(t.dtype() == input.dtype(), op, ": ", name, " must be ", input.dtype(), ", got ",
        t.dtype());
  check(broadcast_shapes(t.shape(), input.shape(), op) == input.shape(), op, ": ", name,
        " must broadcast to ", input.shape(), ", got ", t.shape());
  return raw::contiguous(raw::expand(t, input.shape()));
}

Tensor gradient_memory(const Grads& g, size_t input, const Tensor& like) {
  return g.needs(input) ? empty(like.shape(), {like.dtype(), like.device()}) : Tensor{};
}

}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& target,
                     const CrossEntropyOptions& options) {
  if (autocast::widens({logits, target, options.weight})) {
    CrossEntropyOptions wide = options;
    wide.weight = autocast::widened(options.weight);
    return cross_entropy(autocast::widened(logits), autocast::widened(target), wide);
  }
  const char* op = "cross_entropy";
  check_scores(op, "logits", logits, target, options.weight);
  check(options.label_smoothing >= 0 && options.label_smoothing <= 1, op,
        ": label_smoothing must be in [0, 1], got ", options.label_smoothing);
  Tensor wanted;
  if (is_floating(target.dtype())) {
    check(target.shape() == logits.shape() && target.dtype() == logits.dtype(), op,
          ": target probabilities must be ", logits.dtype(), " ", logits.shape(), ", got ",
          target.dtype(), " ", target.shape());
    wanted = as_rows(target);
  } else {
    wanted = classes_as_i64(op, logits, target, options.ignore_index);
  }
  const kernels::CrossEntropyParams params{options.ignore_index, options.label_smoothing,
                                           kernel_reduction(options.reduction)};
  const Device device = logits.device();
  const Tensor rows = as_rows(logits);
  const Tensor weight = options.weight.defined() ? raw::contiguous(options.weight) : Tensor{};
  const Tensor norms = empty({rows.size(0), 2}, {statistics_dtype(logits), device});
  const Tensor denominator = empty({1}, {DType::f64, device});
  const Tensor loss = loss_memory(logits, without_classes(logits.shape()), options.reduction);
  kernels::cross_entropy_fwd(device, loss, norms, denominator, rows, wanted, weight, params);
  return record(
      op, loss, {logits, target},
      [rows = Saved(rows), wanted = Saved(wanted), weight = Saved(weight), norms = Saved(norms),
       denominator = Saved(denominator), shape = logits.shape(), params](Grads& g) {
        const char* op = "cross_entropy";
        const Tensor& x = rows.get(op);
        // The target first, as the kernel writes it: both may be one tensor.
        const RowsGradient dtarget(g, 1, shape, x.size(1)), dlogits(g, 0, shape, x.size(1));
        kernels::cross_entropy_bwd(x.device(), dlogits.dst, dtarget.dst, raw::contiguous(g.out()),
                                   norms.get(op), denominator.get(op), x, wanted.get(op),
                                   weight.get(op), params);
        dtarget.deliver();
        dlogits.deliver();
      });
}

Tensor nll_loss(const Tensor& log_probs, const Tensor& target, const NllLossOptions& options) {
  if (autocast::widens({log_probs, options.weight})) {
    NllLossOptions wide = options;
    wide.weight = autocast::widened(options.weight);
    return nll_loss(autocast::widened(log_probs), target, wide);
  }
  const char* op = "nll_loss";
  check_scores(op, "log_probs", log_probs, target, options.weight);
  const Tensor classes = classes_as_i64(op, log_probs, target, options.ignore_index);
  const Device device = log_probs.device();
  const int64_t count = classes_of(log_probs);
  const int64_t outer = log_probs.dim() == 1 ? 1 : log_probs.size(0);
  int64_t inner = 1;
  for (size_t d = 2; d < log_probs.shape().size(); ++d) inner *= log_probs.shape()[d];
  const Tensor weight = options.weight.defined() ? raw::contiguous(options.weight) : Tensor{};
  const Tensor denominator = empty({1}, {DType::f64, device});
  const Tensor loss = loss_memory(log_probs, without_classes(log_probs.shape()), options.reduction);
  const LossReduction reduction = kernel_reduction(options.reduction);
  const Shape cube{outer, count, inner};
  kernels::nll_loss_fwd(device, loss, denominator, raw::view(raw::contiguous(log_probs), cube),
                        classes, weight, options.ignore_index, reduction);
  return record(op, loss, {log_probs},
                [classes = Saved(classes), weight = Saved(weight), denominator = Saved(denominator),
                 shape = log_probs.shape(), dtype = log_probs.dtype(), cube,
                 ignore = options.ignore_index, reduction](Grads& g) {
                  const char* op = "nll_loss";
                  const Tensor dx = zeros(cube, {dtype, classes.get(op).device()});
                  kernels::nll_loss_bwd(dx.device(), dx, raw::contiguous(g.out()),
                                        denominator.get(op), classes.get(op), weight.get(op),
                                        ignore, reduction);
                  g.give(0, raw::view(dx, shape));
                });
}

Tensor mse_loss(const Tensor& input, const Tensor& target, Reduction reduction) {
  if (autocast::widens({input, target}))
    return mse_loss(autocast::widened(input), autocast::widened(target), reduction);
  check_pair("mse_loss", input, target);
  const Shape shape = broadcast_shapes(input.shape(), target.shape(), "mse_loss");
  const Tensor a = raw::contiguous(raw::expand(input, shape));
  const Tensor b = raw::contiguous(raw::expand(target, shape));
  const Tensor loss = loss_memory(input, shape, reduction);
  const LossReduction how = kernel_reduction(reduction);
  kernels::mse_loss_fwd(input.device(), loss, a, b, how);
  return record("mse_loss", loss, {input, target}, [a = Saved(a), b = Saved(b), how](Grads& g) {
    const Tensor& x = a.get("mse_loss");
    const Tensor da = gradient_memory(g, 0, x), db = gradient_memory(g, 1, x);
    kernels::mse_loss_bwd(x.device(), da, db, raw::contiguous(g.out()), x, b.get("mse_loss"), how);
    if (da.defined()) g.give(0, da);
    if (db.defined()) g.give(1, db);
  });
}

Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target,
                                        const BceWithLogitsOptions& options) {
  if (autocast::widens({input, target, options.weight, options.pos_weight})) {
    BceWithLogitsOptions wide = options;
    wide.weight = autocast::widened(options.weight);
    wide.pos_weight = autocast::widened(options.pos_weight);
    return binary_cross_entropy_with_logits(autocast::widened(input), autocast::widened(target),
                                            wide);
  }
  const char* op = "binary_cross_entropy_with_logits";
  check_pair(op, input, target);
  check(target.shape() == input.shape(), op, ": target must be of shape ", input.shape(), ", got ",
        target.shape());
  const Tensor x = raw::contiguous(input), t = raw::contiguous(target);
  const Tensor weight = expanded(op, "weight", options.weight, x);
  const Tensor pos_weight = expanded(op, "pos_weight", options.pos_weight, x);
  const Tensor loss = loss_memory(x, x.shape(), options.reduction);
  const LossReduction how = kernel_reduction(options.reduction);
  kernels::bce_with_logits_fwd(x.device(), loss, x, t, weight, pos_weight, how);
  return record(op, loss, {input, target},
                [x = Saved(x), t = Saved(t), weight = Saved(weight), pos_weight = Saved(pos_weight),
                 how](Grads& g) {
                  const char* op = "binary_cross_entropy_with_logits";
                  const Tensor& input = x.get(op);
                  const Tensor dx = gradient_memory(g, 0, input);
                  const Tensor dt = gradient_memory(g, 1, input);
                  kernels::bce_with_logits_bwd(input.device(), dx, dt, raw::contiguous(g.out()),
                                               input, t.get(op), weight.get(op), pos_weight.get(op),
                                               how);
                  if (dx.defined()) g.give(0, dx);
                  if (dt.defined()) g.give(1, dt);
                });
}

}  // namespace cairn
