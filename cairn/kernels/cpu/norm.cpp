// Batch normalisation of a rows x channels matrix: how it is cut, and what happens per channel.
// Invariant: rows are cut into blocks by their number alone, and block results are combined in f64
// and in order, so every thread count gives the same bits.
#include "cairn/kernels/norm.h"

#include <algorithm>
#include <cmath>

#include "cairn/kernels/cpu/norm_tile.h"
#include "cairn/tensor/parallel.h"

namespace cairn::kernels {
namespace cpu {
namespace {

// Elements below which a piece of work is not worth another thread.
constexpr int64_t kGrain = 1 << 14;

// A [C] vector of any floating dtype, read and written as f64; absent ones read as `fallback`.
class ChannelVector {
 public:
  ChannelVector(const Tensor& t, double fallback)
      : t_(t.defined() ? &t : nullptr), fallback_(fallback) {}
  double operator[](int64_t c) const {
    if (t_ == nullptr) return fallback_;
    return dispatch_floating(t_->dtype(), "batch_norm", [&]<class T>() {
      return static_cast<double>(static_cast<const T*>(t_->raw_data())[c * t_->strides()[0]]);
    });
  }
  void set(int64_t c, double value) const {
    dispatch_floating(t_->dtype(), "batch_norm", [&]<class T>() {
      static_cast<T*>(t_->raw_data())[c * t_->strides()[0]] = static_cast<T>(value);
    });
  }

 private:
  const Tensor* t_;
  double fallback_;
};

// Calls body(block, first row, rows, first channel, channels) on the grid of row blocks and channel
// groups.
template <class Body>
void over_grid(const NormBlocks& blocks, int64_t channels, Body&& body) {
  const int64_t groups = (channels + kNormChannels - 1) / kNormChannels;
  const int64_t unit = blocks.block * std::min(channels, kNormChannels);
  parallel_for(0, blocks.count * groups, std::max<int64_t>(1, kGrain / unit),
               [&](int64_t lo, int64_t hi) {
                 for (int64_t u = lo; u < hi; ++u) {
                   const int64_t block = u / groups, c = u % groups * kNormChannels;
                   const int64_t r = block * blocks.block;
                   body(block, r, std::min(blocks.block, blocks.rows - r), c,
                        std::min(kNormChannels, channels - c));
                 }
               });
}

// Calls body(piece) on runs of rows; pointers of the piece are moved to its first row.
template <class T, class Body>
void over_rows(NormPiece<T> whole, Body&& body) {
  const int64_t ld = whole.ld;
  parallel_for(0, whole.rows, std::max<int64_t>(1, kGrain / ld), [&](int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; r += kNormRows) {
      NormPiece<T> p = whole;
      p.rows = std::min(kNormRows, hi - r);
      for (const T** pointer : {&p.x, &p.dy, &p.y, &p.residual})
        if (*pointer) *pointer += r * ld;
      p.out += r * ld;
      body(p);
    }
  });
}

template <class T>
NormPiece<T> whole_piece(In x) {
  const int64_t channels = x.size(1);
  NormPiece<T> p{};
  p.channels = p.ld = channels;
  p.rows = channels == 0 ? 0 : x.numel() / channels;
  p.x = x.data<T>();
  return p;
}

void batch_statistics(Out mean, Out rstd, Out running_mean, Out running_var, Out work, In x,
                      double momentum, double eps) {
  const int64_t channels = x.size(1);
  const NormBlocks blocks(x.numel() / std::max<int64_t>(1, channels));
  double* partial = work.data<double>();
  dispatch_floating(x.dtype(), "batch_norm", [&]<class T>() {
    over_grid(blocks, channels,
              [&](int64_t block, int64_t r, int64_t rows, int64_t c, int64_t width) {
                NormPiece<T> p = whole_piece<T>(x);
                p.x += r * channels + c;
                p.rows = rows;
                p.channels = width;
                p.sum[0] = partial + 2 * block * channels + c;
                p.sum[1] = p.sum[0] + channels;
                best_norm_fns<T>().stats(p);
              });
  });
  double* m = mean.data<double>();
  double* m2 = rstd.data<double>();
  std::copy_n(partial, channels, m);
  std::copy_n(partial + channels, channels, m2);
  for (int64_t block = 1; block < blocks.count; ++block) {
    const double before = static_cast<double>(block * blocks.block);
    const double count =
        static_cast<double>(std::min(blocks.block, blocks.rows - block * blocks.block));
    const double share = count / (before + count), cross = before * share;
    const double* block_mean = partial + 2 * block * channels;
    const double* block_m2 = block_mean + channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double delta = block_mean[c] - m[c];
      m[c] += delta * share;
      m2[c] += block_m2[c] + delta * delta * cross;
    }
  }
  const double rows = static_cast<double>(blocks.rows);
  if (running_mean.defined()) {
    const ChannelVector kept_mean(running_mean, 0), kept_var(running_var, 0);
    for (int64_t c = 0; c < channels; ++c) {
      kept_mean.set(c, (1 - momentum) * kept_mean[c] + momentum * m[c]);
      kept_var.set(c, (1 - momentum) * kept_var[c] + momentum * (m2[c] / (rows - 1)));
    }
  }
  for (int64_t c = 0; c < channels; ++c) m2[c] = 1 / std::sqrt(std::max(m2[c] / rows, 0.0) + eps);
}

void running_statistics(Out mean, Out rstd, In running_mean, In running_var, double eps) {
  const ChannelVector from_mean(running_mean, 0), from_var(running_var, 1);
  for (int64_t c = 0; c < mean.numel(); ++c) {
    mean.data<double>()[c] = from_mean[c];
    rstd.data<double>()[c] = 1 / std::sqrt(from_var[c] + eps);
  }
}

// The mean as the vectors' type holds it; what is cut off goes into the offsets, so that a small
// spread around a large mean stays exact.
template <class Acc>
double split_mean(double mean, Acc* high) {
  *high = static_cast<Acc>(mean);
  return mean - static_cast<double>(*high);
}

// The coefficients of y into `coef`, one array of [C] after another, and into the piece.
template <class T>
void set_output_coefficients(NormPiece<T>& p, Accumulate<T>* coef, In w, In b, In mean, In rstd) {
  using Acc = Accumulate<T>;
  const ChannelVector weight(w, 1), bias(b, 0);
  for (int i = 0; i < kNormCoefs; ++i) p.coef[i] = coef + i * p.channels;
  for (int64_t c = 0; c < p.channels; ++c) {
    const double low = split_mean(mean.data<double>()[c], coef + c);
    const double factor = weight[c] * rstd.data<double>()[c];
    coef[kFactor * p.channels + c] = static_cast<Acc>(factor);
    coef[kOffset * p.channels + c] = static_cast<Acc>(bias[c] - low * factor);
  }
}

void apply(Out y, Out coef, In x, In residual, In w, In b, In mean, In rstd, bool relu) {
  dispatch_floating(x.dtype(), "batch_norm", [&]<class T>() {
    NormPiece<T> p = whole_piece<T>(x);
    set_output_coefficients(p, coef.data<Accumulate<T>>(), w, b, mean, rstd);
    p.out = y.data<T>();
    p.residual = residual.defined() ? residual.data<T>() : nullptr;
    p.relu = relu;
    over_rows(p, best_norm_fns<T>().apply);
  });
}

void cpu_batch_norm_fwd(Out y, Out mean, Out rstd, Out running_mean, Out running_var, Out work,
                        Out coef, In x, In residual, In w, In b, double momentum, double eps,
                        bool relu) {
  batch_statistics(mean, rstd, running_mean, running_var, work, x, momentum, eps);
  apply(y, coef, x, residual, w, b, mean, rstd, relu);
}

void cpu_batch_norm_eval(Out y, Out mean, Out rstd, Out coef, In x, In residual, In w, In b,
                         In running_mean, In running_var, double eps, bool relu) {
  running_statistics(mean, rstd, running_mean, running_var, eps);
  apply(y, coef, x, residual, w, b, mean, rstd, relu);
}

// x is read twice: no element of y is known before the statistics of all of x are.
void batch_norm_cost(profiler::Work& work, Out, Out, Out, Out, Out, Out, Out, In x, In, In, In,
                     double, double, bool) {
  work.bytes += x.nbytes();
}

// The coefficients of dx from the sums; in evaluation dy alone counts.
template <class T>
void set_gradient_coefficients(const NormPiece<T>& p, Accumulate<T>* coef, const double* sum_dy,
                               const double* sum_dy_x, In w, In mean, In rstd, bool training) {
  using Acc = Accumulate<T>;
  const ChannelVector weight(w, 1);
  const double rows = static_cast<double>(p.rows);
  for (int64_t c = 0; c < p.channels; ++c) {
    double slope = 0, shift = 0;
    if (training) {
      const double r = rstd.data<double>()[c];
      const double factor = weight[c] * r;
      const double low = mean.data<double>()[c] - static_cast<double>(coef[c]);
      const double covariance = sum_dy_x[c] - low * sum_dy[c];
      slope = factor * r * r * covariance / rows;
      shift = factor * sum_dy[c] / rows - low * slope;
    }
    coef[kSlope * p.channels + c] = static_cast<Acc>(slope);
    coef[kShift * p.channels + c] = static_cast<Acc>(shift);
  }
}

void add_to(const Dst& dst, int64_t c, double value) {
  const ChannelVector out(dst.tensor, 0);
  out.set(c, dst.add ? out[c] + value : value);
}

template <class T>
void batch_norm_bwd_as(const Dst& dx, const Dst& dresidual, const Dst& dw, const Dst& db, Out work,
                       Out coef_tensor, In dy, In x, In y, In w, In b, In mean, In rstd, bool relu,
                       bool training) {
  using Acc = Accumulate<T>;
  NormPiece<T> whole = whole_piece<T>(x);
  whole.dy = dy.data<T>();
  whole.y = y.defined() ? y.data<T>() : nullptr;
  whole.relu = relu;
  const int64_t channels = whole.channels;
  Acc* coef = coef_tensor.data<Acc>();
  set_output_coefficients(whole, coef, w, b, mean, rstd);
  const NormBlocks blocks(whole.rows);
  double* partial = work.data<double>();
  T* residual = dresidual ? dresidual.tensor.data<T>() : nullptr;
  over_grid(blocks, channels,
            [&](int64_t block, int64_t r, int64_t rows, int64_t c, int64_t width) {
              NormPiece<T> p = whole;
              p.rows = rows;
              p.channels = width;
              p.x += r * channels + c;
              p.dy += r * channels + c;
              if (p.y) p.y += r * channels + c;
              if (residual) p.dresidual = residual + r * channels + c;
              p.add = dresidual.add;
              for (const Acc*& array : p.coef) array += c;
              p.sum[0] = partial + 2 * block * channels + c;
              p.sum[1] = p.sum[0] + channels;
              best_norm_fns<T>().reduce(p);
            });
  double* sum_dy = partial;
  double* sum_dy_x = partial + channels;
  for (int64_t block = 1; block < blocks.count; ++block)
    for (int64_t i = 0; i < 2 * channels; ++i) partial[i] += partial[2 * block * channels + i];
  if (blocks.count == 0) std::fill_n(partial, 2 * channels, 0.0);
  for (int64_t c = 0; c < channels; ++c) {
    const double low = mean.data<double>()[c] - static_cast<double>(coef[c]);
    if (dw) add_to(dw, c, (sum_dy_x[c] - low * sum_dy[c]) * rstd.data<double>()[c]);
    if (db) add_to(db, c, sum_dy[c]);
  }
  if (!dx) return;
  set_gradient_coefficients(whole, coef, sum_dy, sum_dy_x, w, mean, rstd, training);
  // The residual's gradient, when it is fresh, is dy with the mask applied: one array less to read.
  if (residual && !dresidual.add) {
    whole.dy = residual;
    whole.relu = false;
  }
  whole.out = dx.tensor.data<T>();
  whole.add = dx.add;
  over_rows(whole, best_norm_fns<T>().dx);
}

void cpu_batch_norm_bwd(const Dst& dx, const Dst& dresidual, const Dst& dw, const Dst& db, Out work,
                        Out coef, In dy, In x, In y, In w, In b, In mean, In rstd, bool relu,
                        bool training) {
  dispatch_floating(x.dtype(), "batch_norm", [&]<class T>() {
    batch_norm_bwd_as<T>(dx, dresidual, dw, db, work, coef, dy, x, y, w, b, mean, rstd, relu,
                         training);
  });
}

}  // namespace
}  // namespace cpu

Slot<void(Out, Out, Out, Out, Out, Out, Out, In, In, In, In, double, double, bool)> batch_norm_fwd{
    "batch_norm_fwd", cpu::cpu_batch_norm_fwd, cpu::batch_norm_cost};
Slot<void(Out, Out, Out, Out, In, In, In, In, In, In, double, bool)> batch_norm_eval{
    "batch_norm_eval", cpu::cpu_batch_norm_eval};
Slot<void(const Dst&, const Dst&, const Dst&, const Dst&, Out, Out, In, In, In, In, In, In, In,
          bool, bool)>
    batch_norm_bwd{"batch_norm_bwd", cpu::cpu_batch_norm_bwd};

}  // namespace cairn::kernels
