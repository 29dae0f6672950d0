// Batch and layer normalisation: argument checks, memory and backward rules.
#include "cairn/autograd/ops/norm.h"

#include "cairn/autograd/autocast.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/autograd/record.h"
#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/norm.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

// The tensor itself where its channels (dimension 1) are innermost in memory without gaps, else
// such a copy.
Tensor channels_innermost(const Tensor& x) {
  if (x.dim() == 2) return raw::contiguous(x);
  if (x.dim() == 4) return raw::channels_last(x);
  const Tensor moved = raw::contiguous(raw::transpose(x, 1, 2));
  return raw::transpose(moved, 1, 2);
}

Tensor empty_channels_innermost(const Tensor& x) {
  const TensorOptions options{x.dtype(), x.device()};
  if (x.dim() == 2) return empty(x.shape(), options);
  if (x.dim() == 4) return empty_channels_last(x.shape(), options);
  return raw::transpose(empty({x.size(0), x.size(2), x.size(1)}, options), 1, 2);
}

// Whether memory of these strides is what the kernels call channels innermost.
bool is_channels_innermost(const Tensor& t) {
  if (t.dim() == 2) return t.is_contiguous();
  if (t.dim() == 4) return t.is_channels_last();
  return raw::transpose(t, 1, 2).is_contiguous();
}

// A place for a gradient that the kernel can write: the engine's own where its layout suits, else a
// temporary that deliver() hands over.
class ChannelsDst {
 public:
  ChannelsDst(Grads& g, size_t input, const Tensor& like) : target_(g.dst(input)) {
    if (!target_) return;
    direct_ = is_channels_innermost(target_.tensor);
    dst = direct_ ? target_ : Dst{empty_channels_innermost(like), false};
  }
  void deliver() const {
    if (!direct_) kernels::accumulate_to(dst.tensor.device(), target_, dst.tensor);
  }
  Dst dst;

 private:
  Dst target_;
  bool direct_ = true;
};

void check_vector(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  if (!t.defined()) return;
  const Shape wanted{x.size(1)};
  check(t.shape() == wanted, op, ": ", name, " must be of shape ", wanted, ", got ", t.shape());
  check(t.dtype() == x.dtype() || t.dtype() == compute_dtype(x.dtype()), op, ": ", name,
        " must be ", x.dtype(), is_half(x.dtype()) ? " or f32, got " : ", got ", t.dtype());
  check(t.device() == x.device(), op, ": ", name, " must be on ", x.device(), ", got ", t.device());
}

void check_batch_norm(const char* op, const Tensor& x, const Tensor& residual,
                      const Tensor& running_mean, const Tensor& running_var, const Tensor& weight,
                      const Tensor& bias, const BatchNormOptions& options) {
  check(x.defined() && x.dim() >= 2 && x.dim() <= 4, op,
        ": input must be 2-d to 4-d [N, C, ...], got ",
        x.defined() ? cat(x.shape()) : "an undefined tensor");
  check(is_floating(x.dtype()), op, ": input must be floating, got ", x.dtype());
  check_vector(op, "weight", weight, x);
  check_vector(op, "bias", bias, x);
  check_vector(op, "running_mean", running_mean, x);
  check_vector(op, "running_var", running_var, x);
  check(running_mean.defined() == running_var.defined(), op,
        ": running_mean and running_var must be given together, got only ",
        running_mean.defined() ? "running_mean" : "running_var");
  check(options.training || running_mean.defined(), op,
        ": running_mean and running_var must be defined when not training, got none");
  check(!options.training || options.replicas || x.numel() != x.size(1) || x.numel() == 0, op,
        ": input must have more than 1 value per channel when training, got ", x.shape());
  check(options.eps >= 0, op, ": eps must not be negative, got ", options.eps);
  check(options.momentum >= 0 && options.momentum <= 1, op, ": momentum must be in [0, 1], got ",
        options.momentum);
  if (!residual.defined()) return;
  check(residual.shape() == x.shape(), op, ": residual must be of shape ", x.shape(), ", got ",
        residual.shape());
  check(residual.dtype() == x.dtype(), op, ": residual must be ", x.dtype(), ", got ",
        residual.dtype());
  check(residual.device() == x.device(), op, ": residual must be on ", x.device(), ", got ",
        residual.device());
}

Tensor contiguous_or_none(const Tensor& t) { return t.defined() ? raw::contiguous(t) : t; }

Tensor coefficient_memory(const Tensor& x) {
  const DType dtype = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
  return empty({5 * x.size(1)}, {dtype, x.device()});
}

Tensor batch_norm_work_memory(const Tensor& x) {
  const int64_t channels = x.size(1);
  const int64_t rows = channels == 0 ? 0 : x.numel() / channels;
  return empty({kernels::batch_norm_work(rows, channels)}, {DType::f64, x.device()});
}

// --- batches of several replicas taken as one ---------------------------------------------------

// A vector [C] in f64 where the kernel gives none.
Tensor f64_vector(const Tensor& x, double value) {
  return full({x.size(1)}, value, {DType::f64, x.device()});
}

// Mean and biased variance of all replicas' batches, [C] f64, and the number of their rows, 0-d.
struct JoinedStatistics {
  Tensor mean, var, rows;
};

// Each replica gives its number of rows, its means and its sums of squared differences from them;
// these are joined by Chan's formula, so that nothing is lost to a large mean.
JoinedStatistics join_statistics(const Tensor& x, const BatchNormOptions& options) {
  const int64_t channels = x.size(1);
  const double rows = channels == 0 ? 0 : static_cast<double>(x.numel() / channels);
  Tensor mean = f64_vector(x, 0), squares = f64_vector(x, 0);
  if (x.numel() > 0) {
    // The kernel that also writes y, which nobody reads.
    const Tensor rstd = f64_vector(x, 0), none;
    kernels::batch_norm_fwd(x.device(), empty_channels_innermost(x), mean, rstd, none, none,
                            batch_norm_work_memory(x), coefficient_memory(x), x, none, none, none,
                            0, options.eps, false);
    const Tensor var = sub(reciprocal(square(rstd)), options.eps);
    squares = mul(clamp(var, 0.0, {}), rows);
  }
  const Tensor count = full({1}, rows, {DType::f64, x.device()});
  const Tensor all = options.replicas->gather(cairn::cat({count, mean, squares}, 0));
  const Tensor counts = raw::slice(all, 1, 0, 1);
  const Tensor means = raw::slice(all, 1, 1, 1 + channels);
  const Tensor spreads = raw::slice(all, 1, 1 + channels, 1 + 2 * channels);
  JoinedStatistics joined;
  joined.rows = clamp(sum(counts), 1.0, {});
  joined.mean = div(sum(mul(counts, means), {0}), joined.rows);
  const Tensor between = mul(counts, square(sub(means, joined.mean)));
  joined.var = div(sum(add(spreads, between), {0}), joined.rows);
  return joined;
}

// (1 - momentum) old + momentum new, with the unbiased variance.
void update_running(const char* op, const Tensor& running_mean, const Tensor& running_var,
                    const JoinedStatistics& joined, double momentum) {
  const auto move = [&](const Tensor& kept, const Tensor& fresh) {
    raw::copy_(kept, add(mul(raw::to(kept, DType::f64), 1 - momentum), mul(fresh, momentum)));
    kept.bump_version(op);
  };
  const Tensor unbiased = mul(joined.var, div(joined.rows, clamp(sub(joined.rows, 1.0), 1.0, {})));
  move(running_mean, joined.mean);
  move(running_var, unbiased);
}

// dx = w rstd (dy - mean(dy) - xhat mean(dy xhat)) with the means over all replicas: what the
// kernel of evaluation gives, w rstd dy, and a line in xhat, which is another normalisation of x.
void joined_backward(Grads& g, const Tensor& x, const Tensor& y, const Tensor& w, const Tensor& b,
                     const JoinedStatistics& joined, const Tensor& mean, const Tensor& rstd,
                     bool relu, const BatchNormOptions& options) {
  const NoGrad no_grad;
  const ChannelsDst dresidual(g, 1, x);
  const Dst dx = g.dst(0), dw = g.dst(2), db = g.dst(3);
  const Tensor own_dw = f64_vector(x, 0), own_db = f64_vector(x, 0);
  const Tensor direct = empty_channels_innermost(x);
  if (x.numel() > 0)
    kernels::batch_norm_bwd(x.device(), Dst{direct, false}, dresidual.dst, Dst{own_dw, false},
                            Dst{own_db, false}, batch_norm_work_memory(x), coefficient_memory(x),
                            channels_innermost(g.out()), x, y, w, b, mean, rstd, relu, false);
  dresidual.deliver();
  if (dw) kernels::accumulate_to(x.device(), dw, raw::to(own_dw, dw.tensor.dtype()));
  if (db) kernels::accumulate_to(x.device(), db, raw::to(own_db, db.tensor.dtype()));
  const Tensor sums = sum(options.replicas->gather(cairn::cat({own_dw, own_db}, 0)), {0});
  if (!dx || x.numel() == 0) {
    if (dx && !dx.add) raw::fill_(dx.tensor, 0);
    return;
  }
  const int64_t channels = x.size(1);
  Tensor factor = div(mul(rstd, -1.0), joined.rows);
  if (w.defined()) factor = mul(factor, raw::to(w, DType::f64));
  const Tensor slope = mul(factor, raw::slice(sums, 0, 0, channels));
  const Tensor shift = mul(factor, raw::slice(sums, 0, channels, 2 * channels));
  const Tensor whole = empty_channels_innermost(x);
  kernels::batch_norm_eval(x.device(), whole, f64_vector(x, 0), f64_vector(x, 0),
                           coefficient_memory(x), x, direct, slope, shift, joined.mean, joined.var,
                           options.eps, false);
  kernels::accumulate_to(x.device(), dx, whole);
}

Tensor joined_batch_norm(const char* op, const Tensor& input, const Tensor& residual_input,
                         bool relu, const Tensor& running_mean, const Tensor& running_var,
                         const Tensor& weight, const Tensor& bias,
                         const BatchNormOptions& options) {
  const Device device = input.device();
  const Tensor x = channels_innermost(input);
  const Tensor residual = residual_input.defined() ? channels_innermost(residual_input) : Tensor{};
  const Tensor w = contiguous_or_none(weight), b = contiguous_or_none(bias);
  const Tensor y = empty_channels_innermost(x);
  const Tensor mean = f64_vector(x, 0), rstd = f64_vector(x, 1);
  JoinedStatistics joined;
  {
    const NoGrad no_grad;
    joined = join_statistics(x, options);
    if (running_mean.defined())
      update_running(op, running_mean, running_var, joined, options.momentum);
  }
  if (x.numel() > 0)
    kernels::batch_norm_eval(device, y, mean, rstd, coefficient_memory(x), x, residual, w, b,
                             joined.mean, joined.var, options.eps, relu);
  return record(op, y, {input, residual_input, weight, bias},
                [op, x = Saved(x), y = residual.defined() ? Saved(y) : Saved(), w = Saved(w),
                 b = Saved(b), joined, mean, rstd, relu, options](Grads& g) {
                  joined_backward(g, x.get(op), y.get(op), w.get(op), b.get(op), joined, mean, rstd,
                                  relu, options);
                });
}

Tensor batch_norm_op(const char* op, const Tensor& input, const Tensor& residual_input, bool relu,
                     const Tensor& running_mean, const Tensor& running_var, const Tensor& weight,
                     const Tensor& bias, const BatchNormOptions& options) {
  check_batch_norm(op, input, residual_input, running_mean, running_var, weight, bias, options);
  if (options.training && options.replicas)
    return joined_batch_norm(op, input, residual_input, relu, running_mean, running_var, weight,
                             bias, options);
  const Device device = input.device();
  const Tensor x = channels_innermost(input);
  const Tensor residual = residual_input.defined() ? channels_innermost(residual_input) : Tensor{};
  const Tensor w = contiguous_or_none(weight), b = contiguous_or_none(bias);
  const Tensor y = empty_channels_innermost(x);
  const Tensor mean = empty({x.size(1)}, {DType::f64, device});
  const Tensor rstd = empty({x.size(1)}, {DType::f64, device});
  if (x.numel() > 0) {
    if (options.training) {
      kernels::batch_norm_fwd(device, y, mean, rstd, running_mean, running_var,
                              batch_norm_work_memory(x), coefficient_memory(x), x, residual, w, b,
                              options.momentum, options.eps, relu);
      if (running_mean.defined()) {
        running_mean.bump_version(op);
        running_var.bump_version(op);
      }
    } else {
      kernels::batch_norm_eval(device, y, mean, rstd, coefficient_memory(x), x, residual, w, b,
                               running_mean, running_var, options.eps, relu);
    }
  } else {
    raw::fill_(mean, 0);
    raw::fill_(rstd, 1);
  }
  return record(
      op, y, {input, residual_input, weight, bias},
      [op, x = Saved(x), y = residual.defined() ? Saved(y) : Saved(), w = Saved(w), b = Saved(b),
       mean = Saved(mean), rstd = Saved(rstd), relu, training = options.training](Grads& g) {
        const Tensor& saved = x.get(op);
        // The residual first, as the kernel writes it: both may be one tensor.
        const ChannelsDst dresidual(g, 1, saved), dx(g, 0, saved);
        const Dst dw = g.dst(2), db = g.dst(3);
        kernels::batch_norm_bwd(saved.device(), dx.dst, dresidual.dst, dw, db,
                                batch_norm_work_memory(saved), coefficient_memory(saved),
                                channels_innermost(g.out()), saved, y.get(op), w.get(op), b.get(op),
                                mean.get(op), rstd.get(op), relu, training);
        dresidual.deliver();
        dx.deliver();
      });
}

// layer_norm sees a matrix: leading dimensions by normalised ones.
Tensor as_rows(const Tensor& t, int64_t rows, int64_t width) {
  return raw::view(raw::contiguous(t), {rows, width});
}

void check_layer_norm(const Tensor& x, const Shape& normalized, const Tensor& weight,
                      const Tensor& bias, double eps) {
  check(x.defined(), "layer_norm: input must be defined");
  check(is_floating(x.dtype()), "layer_norm: input must be floating, got ", x.dtype());
  check(!normalized.empty(), "layer_norm: normalized_shape must have at least one size, got []");
  const size_t count = normalized.size();
  check(x.shape().size() >= count && std::equal(normalized.begin(), normalized.end(),
                                                x.shape().end() - static_cast<int64_t>(count)),
        "layer_norm: input must end in the sizes ", normalized, ", got ", x.shape());
  check(eps >= 0, "layer_norm: eps must not be negative, got ", eps);
  for (const auto& [name, t] : {std::pair{"weight", &weight}, std::pair{"bias", &bias}}) {
    if (!t->defined()) continue;
    check(t->shape() == normalized, "layer_norm: ", name, " must be of shape ", normalized,
          ", got ", t->shape());
    check(t->dtype() == x.dtype(), "layer_norm: ", name, " must be ", x.dtype(), ", got ",
          t->dtype());
    check(t->device() == x.device(), "layer_norm: ", name, " must be on ", x.device(), ", got ",
          t->device());
  }
}

// As ChannelsDst, for a contiguous tensor seen as `matrix`.
class RowsDst {
 public:
  RowsDst(Grads& g, size_t input, const Shape& matrix) : target_(g.dst(input)) {
    if (!target_) return;
    const Tensor& t = target_.tensor;
    direct_ = t.is_contiguous();
    memory_ = direct_ ? t : empty(t.shape(), {t.dtype(), t.device()});
    dst = {raw::view(memory_, matrix), direct_ && target_.add};
  }
  void deliver() const {
    if (!direct_) kernels::accumulate_to(memory_.device(), target_, memory_);
  }
  Dst dst;

 private:
  Dst target_;
  Tensor memory_;
  bool direct_ = true;
};

}  // namespace

Tensor batch_norm(const Tensor& x, const Tensor& running_mean, const Tensor& running_var,
                  const Tensor& weight, const Tensor& bias, const BatchNormOptions& options) {
  return batch_norm_op("batch_norm", x, {}, false, running_mean, running_var, weight, bias,
                       options);
}

Tensor batch_norm_relu(const Tensor& x, const Tensor& residual, const Tensor& running_mean,
                       const Tensor& running_var, const Tensor& weight, const Tensor& bias,
                       const BatchNormOptions& options) {
  return batch_norm_op("batch_norm_relu", x, residual, true, running_mean, running_var, weight,
                       bias, options);
}

Tensor layer_norm(const Tensor& x, const Shape& normalized_shape, const Tensor& weight,
                  const Tensor& bias, double eps) {
  if (autocast::widens({x, weight, bias}))
    return layer_norm(autocast::widened(x), normalized_shape, autocast::widened(weight),
                      autocast::widened(bias), eps);
  check_layer_norm(x, normalized_shape, weight, bias, eps);
  const int64_t width = numel_of(normalized_shape, "layer_norm");
  const int64_t rows = width == 0 ? 0 : x.numel() / width;
  const Device device = x.device();
  const DType statistics = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const Tensor matrix = as_rows(x, rows, width);
  const Tensor w = weight.defined() ? as_rows(weight, 1, width) : weight;
  const Tensor b = bias.defined() ? as_rows(bias, 1, width) : bias;
  const Tensor y = empty(x.shape(), {x.dtype(), device});
  const Tensor mean = empty({rows}, {statistics, device});
  const Tensor rstd = empty({rows}, {statistics, device});
  if (x.numel() > 0)
    kernels::layer_norm_fwd(device, raw::view(y, {rows, width}), mean, rstd, matrix, w, b, eps);
  return record(
      "layer_norm", y, {x, weight, bias},
      [matrix = Saved(matrix), w = Saved(w), mean = Saved(mean), rstd = Saved(rstd)](Grads& g) {
        const Tensor& saved = matrix.get("layer_norm");
        const int64_t rows = saved.size(0), width = saved.size(1);
        const RowsDst dx(g, 0, {rows, width}), dw(g, 1, {width}), db(g, 2, {width});
        const Tensor work = empty({2 * width * kernels::NormBlocks(rows).count},
                                  {mean.get("layer_norm").dtype(), saved.device()});
        kernels::layer_norm_bwd(saved.device(), dx.dst, dw.dst, db.dst, work,
                                as_rows(g.out(), rows, width), saved, w.get("layer_norm"),
                                mean.get("layer_norm"), rstd.get("layer_norm"));
        dx.deliver();
        dw.deliver();
        db.deliver();
      });
}

}  // namespace cairn
