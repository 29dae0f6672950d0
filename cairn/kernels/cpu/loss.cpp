// Losses.
// Invariant: sums run over lanes and blocks whose number depends on the shape alone, so every
// thread count gives the same bits.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/loss.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cairn/kernels/cpu/float_tables.h"
#include "cairn/kernels/fast_math.h"
#include "cairn/kernels/loss.h"
#include "cairn/tensor/parallel.h"

#ifndef CAIRN_KERNELS_CPU_LOSS_ONCE
#define CAIRN_KERNELS_CPU_LOSS_ONCE
namespace cairn::kernels::cpu {

// One row of logits on its way back: out (+)= factor (softmax spread - q), where q is the target's
// distribution times the class weights.
template <class T>
struct SoftmaxGradient {
  using Acc = Accumulate<T>;
  int64_t classes;
  const T* logits;
  const T* weight;         // may be null: 1
  const T* probabilities;  // null: `hot` is the class
  int64_t hot;
  Acc largest, log_sum;
  Acc factor;
  Acc spread;  // the sum of q
  Acc keep;    // q_c = (keep target_c + smooth) weight_c
  Acc smooth;
  T* out;
  bool add;
};

template <class T>
struct LossFns {
  using Acc = Accumulate<T>;
  Acc (*largest)(const T* row, int64_t classes);
  Acc (*sum_exp)(const T* row, int64_t classes, Acc largest);
  void (*softmax_gradient)(const SoftmaxGradient<T>&);
};

}  // namespace cairn::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr int64_t kChains = 32;  // independent sums of a row, whatever the vectors' width

// NaN wins.
template <class T>
Accumulate<T> largest_of(const T* row, int64_t classes) {
  using Acc = Accumulate<T>;
  Acc best[kChains];
  for (Acc& b : best) b = -std::numeric_limits<Acc>::infinity();
  int64_t c = 0;
  for (; c + kChains <= classes; c += kChains)
    for (int64_t l = 0; l < kChains; ++l) {
      const Acc v = static_cast<Acc>(row[c + l]);
      best[l] = v > best[l] || v != v ? v : best[l];
    }
  for (int64_t l = 0; c < classes; ++c, ++l) {
    const Acc v = static_cast<Acc>(row[c]);
    best[l] = v > best[l] || v != v ? v : best[l];
  }
  Acc top = best[0];
  for (const Acc b : best) top = b > top || b != b ? b : top;
  return top;
}

template <class T>
Accumulate<T> sum_exp_of(const T* row, int64_t classes, Accumulate<T> largest) {
  using Acc = Accumulate<T>;
  Acc sum[kChains] = {};
  int64_t c = 0;
  for (; c + kChains <= classes; c += kChains)
    for (int64_t l = 0; l < kChains; ++l)
      sum[l] += fast::exp(static_cast<Acc>(row[c + l]) - largest);
  for (int64_t l = 0; c < classes; ++c, ++l)
    sum[l] += fast::exp(static_cast<Acc>(row[c]) - largest);
  Acc total = 0;
  for (const Acc s : sum) total += s;
  return total;
}

template <class T>
void softmax_gradient_of(const SoftmaxGradient<T>& g) {
  using Acc = Accumulate<T>;
  for (int64_t c = 0; c < g.classes; ++c) {
    const Acc p = fast::exp(static_cast<Acc>(g.logits[c]) - g.largest - g.log_sum);
    const Acc target = g.probabilities ? static_cast<Acc>(g.probabilities[c]) : Acc(c == g.hot);
    const Acc weight = g.weight ? static_cast<Acc>(g.weight[c]) : Acc(1);
    const Acc v = g.factor * (p * g.spread - (g.keep * target + g.smooth) * weight);
    g.out[c] = static_cast<T>(g.add ? static_cast<Acc>(g.out[c]) + v : v);
  }
}

template <class T>
LossFns<T> loss_fns() {
  return {largest_of<T>, sum_exp_of<T>, softmax_gradient_of<T>};
}
CAIRN_FLOAT_TABLES(LossFns, loss_fns)

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {
namespace {

CAIRN_BEST_FLOAT_TABLES(LossFns, loss_fns)

constexpr int64_t kBlock = 4096;  // elements of a block of a total, at least
constexpr int64_t kMaxBlocks = 64;

// The sum of term(i) for i in [0, n), each term of `cost` elements, in f64 over at most kMaxBlocks
// blocks. Calls term once for each i.
template <class Term>
double total(int64_t n, int64_t cost, Term&& term) {
  const int64_t least = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, cost));
  const int64_t block = std::max(least, (n + kMaxBlocks - 1) / kMaxBlocks);
  const int64_t count = (n + block - 1) / block;
  double partial[kMaxBlocks];
  parallel_for(0, count, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t b = lo; b < hi; ++b) {
      partial[b] = 0;
      for (int64_t i = b * block; i < std::min(n, (b + 1) * block); ++i)
        partial[b] += static_cast<double>(term(i));
    }
  });
  double sum = 0;
  for (int64_t b = 0; b < count; ++b) sum += partial[b];
  return sum;
}

// loss[i] = term(i), or one element: their sum divided by `denominator`.
template <class T, class Term>
void reduce_loss(Out loss, int64_t n, int64_t cost, LossReduction reduction, double denominator,
                 Term&& term) {
  T* out = loss.data<T>();
  if (reduction == LossReduction::none)
    total(n, cost, [&](int64_t i) {
      out[i] = static_cast<T>(term(i));
      return 0.0;
    });
  else
    *out = static_cast<T>(total(n, cost, term) / denominator);
}

template <class T>
const T* data_or_null(In t) {
  return t.defined() ? t.data<T>() : nullptr;
}

// The gradient of a term: of its own loss element, or its share of the one there is.
template <class T>
class LossGradient {
 public:
  LossGradient(In dloss, double denominator, LossReduction reduction)
      : data_(dloss.data<T>()),
        step_(reduction == LossReduction::none ? 1 : 0),
        denominator_(denominator) {}
  Accumulate<T> operator[](int64_t i) const {
    return static_cast<Accumulate<T>>(static_cast<double>(data_[i * step_]) / denominator_);
  }

 private:
  const T* data_;
  int64_t step_;
  double denominator_;
};

void cpu_check_classes(std::string_view op, In target, int64_t classes, int64_t ignore_index) {
  const int64_t* t = target.data<int64_t>();
  for (int64_t i = 0; i < target.numel(); ++i)
    check((t[i] >= 0 && t[i] < classes) || t[i] == ignore_index, op, ": target must be in [0, ",
          classes, "), got ", t[i], " at position ", i);
}

// --- cross entropy
// -----------------------------------------------------------------------------------

template <class T>
struct CrossEntropyRow {
  using Acc = Accumulate<T>;
  int64_t classes;
  const T* weight;
  Acc keep, smooth;  // target_c becomes keep target_c + smooth

  CrossEntropyRow(int64_t c, In w, double label_smoothing)
      : classes(c),
        weight(data_or_null<T>(w)),
        keep(static_cast<Acc>(1 - label_smoothing)),
        smooth(static_cast<Acc>(label_smoothing / static_cast<double>(c))) {}

  Acc weight_of(int64_t c) const { return weight ? static_cast<Acc>(weight[c]) : Acc(1); }

  Acc loss_of_class(const T* row, int64_t hot, Acc largest, Acc log_sum) const {
    const auto surprise = [&](int64_t c) { return log_sum - (static_cast<Acc>(row[c]) - largest); };
    Acc loss = keep * weight_of(hot) * surprise(hot);
    if (smooth != 0) {
      Acc all = 0;
      for (int64_t c = 0; c < classes; ++c) all += weight_of(c) * surprise(c);
      loss += smooth * all;
    }
    return loss;
  }
  Acc loss_of_probabilities(const T* row, const T* p, Acc largest, Acc log_sum) const {
    Acc loss = 0;
    for (int64_t c = 0; c < classes; ++c)
      loss += (keep * static_cast<Acc>(p[c]) + smooth) * weight_of(c) *
              (log_sum - (static_cast<Acc>(row[c]) - largest));
    return loss;
  }
};

// What the mean divides by: the weights of the targets that count, or the rows.
template <class T>
double cross_entropy_denominator(const CrossEntropyRow<T>& row, In target, int64_t rows,
                                 const CrossEntropyParams& params) {
  if (params.reduction != LossReduction::mean) return 1;
  if (target.dtype() != DType::i64) return static_cast<double>(rows);
  const int64_t* t = target.data<int64_t>();
  double sum = 0;
  for (int64_t r = 0; r < rows; ++r)
    if (t[r] != params.ignore_index) sum += static_cast<double>(row.weight_of(t[r]));
  return sum;
}

void cpu_cross_entropy_fwd(Out loss, Out norms, Out denominator, In logits, In target, In weight,
                           const CrossEntropyParams& params) {
  dispatch_floating(logits.dtype(), "cross_entropy", [&]<class T>() {
    using Acc = Accumulate<T>;
    const int64_t rows = logits.size(0), classes = logits.size(1);
    const CrossEntropyRow<T> row(classes, weight, params.label_smoothing);
    const T* x = logits.data<T>();
    Acc* kept = norms.data<Acc>();
    const bool by_class = target.dtype() == DType::i64;
    const int64_t* hot = by_class ? target.data<int64_t>() : nullptr;
    const T* p = by_class ? nullptr : target.data<T>();
    const double divisor = cross_entropy_denominator(row, target, rows, params);
    *denominator.data<double>() = divisor;
    const LossFns<T> fns = best_loss_fns<T>();
    reduce_loss<T>(loss, rows, 4 * classes, params.reduction, divisor, [&](int64_t r) -> Acc {
      if (hot && hot[r] == params.ignore_index) {
        kept[2 * r] = kept[2 * r + 1] = 0;
        return 0;
      }
      const Acc largest = fns.largest(x + r * classes, classes);
      const Acc log_sum = std::log(fns.sum_exp(x + r * classes, classes, largest));
      kept[2 * r] = largest;
      kept[2 * r + 1] = log_sum;
      if (hot) return row.loss_of_class(x + r * classes, hot[r], largest, log_sum);
      return row.loss_of_probabilities(x + r * classes, p + r * classes, largest, log_sum);
    });
  });
}

// dtarget_c (+)= factor keep weight_c (-log softmax_c).
template <class T>
void probability_gradient(const CrossEntropyRow<T>& row, const T* x, const Accumulate<T>* norm,
                          Accumulate<T> factor, const Dst& dst, int64_t r) {
  using Acc = Accumulate<T>;
  T* out = dst.tensor.data<T>() + r * row.classes;
  for (int64_t c = 0; c < row.classes; ++c) {
    const Acc surprise = norm[1] - (static_cast<Acc>(x[c]) - norm[0]);
    const Acc v = factor * row.keep * row.weight_of(c) * surprise;
    out[c] = static_cast<T>(dst.add ? static_cast<Acc>(out[c]) + v : v);
  }
}

void cpu_cross_entropy_bwd(const Dst& dlogits, const Dst& dtarget, In dloss, In norms,
                           In denominator, In logits, In target, In weight,
                           const CrossEntropyParams& params) {
  dispatch_floating(logits.dtype(), "cross_entropy", [&]<class T>() {
    using Acc = Accumulate<T>;
    const int64_t rows = logits.size(0), classes = logits.size(1);
    const CrossEntropyRow<T> row(classes, weight, params.label_smoothing);
    const T* x = logits.data<T>();
    const Acc* kept = norms.data<Acc>();
    const bool by_class = target.dtype() == DType::i64;
    const int64_t* hot = by_class ? target.data<int64_t>() : nullptr;
    const T* p = by_class ? nullptr : target.data<T>();
    const LossGradient<T> gradient(dloss, *denominator.data<double>(), params.reduction);
    Acc all_weights = 0;
    for (int64_t c = 0; c < classes; ++c) all_weights += row.weight_of(c);
    const LossFns<T> fns = best_loss_fns<T>();
    parallel_for(
        0, rows, std::max<int64_t>(1, kBlock / (4 * classes)), [&](int64_t lo, int64_t hi) {
          for (int64_t r = lo; r < hi; ++r) {
            const Acc factor = gradient[r];
            if (dtarget)
              probability_gradient(row, x + r * classes, kept + 2 * r, factor, dtarget, r);
            if (!dlogits) continue;
            T* out = dlogits.tensor.data<T>() + r * classes;
            if (hot && hot[r] == params.ignore_index) {
              if (!dlogits.add) std::fill_n(out, classes, T(0));
              continue;
            }
            Acc spread = row.smooth * all_weights;
            if (hot) {
              spread += row.keep * row.weight_of(hot[r]);
            } else {
              for (int64_t c = 0; c < classes; ++c)
                spread += row.keep * static_cast<Acc>(p[r * classes + c]) * row.weight_of(c);
            }
            fns.softmax_gradient({classes, x + r * classes, row.weight,
                                  p ? p + r * classes : nullptr, hot ? hot[r] : 0, kept[2 * r],
                                  kept[2 * r + 1], factor, spread, row.keep, row.smooth, out,
                                  dlogits.add});
          }
        });
  });
}

// --- negative log likelihood
// -------------------------------------------------------------------------

void cpu_nll_loss_fwd(Out loss, Out denominator, In log_probs, In target, In weight,
                      int64_t ignore_index, LossReduction reduction) {
  dispatch_floating(log_probs.dtype(), "nll_loss", [&]<class T>() {
    using Acc = Accumulate<T>;
    const int64_t classes = log_probs.size(1), inner = log_probs.size(2);
    const T* x = log_probs.data<T>();
    const T* w = data_or_null<T>(weight);
    const int64_t* t = target.data<int64_t>();
    const auto weight_of = [&](int64_t c) { return w ? static_cast<Acc>(w[c]) : Acc(1); };
    double divisor = 1;
    if (reduction == LossReduction::mean) {
      divisor = 0;
      for (int64_t i = 0; i < target.numel(); ++i)
        if (t[i] != ignore_index) divisor += static_cast<double>(weight_of(t[i]));
    }
    *denominator.data<double>() = divisor;
    reduce_loss<T>(loss, target.numel(), 1, reduction, divisor, [&](int64_t i) -> Acc {
      if (t[i] == ignore_index) return 0;
      const int64_t n = i / inner, d = i % inner;
      return -weight_of(t[i]) * static_cast<Acc>(x[(n * classes + t[i]) * inner + d]);
    });
  });
}

void cpu_nll_loss_bwd(Out dlog_probs, In dloss, In denominator, In target, In weight,
                      int64_t ignore_index, LossReduction reduction) {
  dispatch_floating(dlog_probs.dtype(), "nll_loss", [&]<class T>() {
    using Acc = Accumulate<T>;
    const int64_t classes = dlog_probs.size(1), inner = dlog_probs.size(2);
    T* out = dlog_probs.data<T>();
    const T* w = data_or_null<T>(weight);
    const int64_t* t = target.data<int64_t>();
    const LossGradient<T> gradient(dloss, *denominator.data<double>(), reduction);
    parallel_for(0, target.numel(), kBlock, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        if (t[i] == ignore_index) continue;
        const Acc weight_here = w ? static_cast<Acc>(w[t[i]]) : Acc(1);
        out[(i / inner * classes + t[i]) * inner + i % inner] =
            static_cast<T>(-weight_here * gradient[i]);
      }
    });
  });
}

// --- elementwise losses
// ------------------------------------------------------------------------------

double mean_divisor(LossReduction reduction, int64_t n) {
  return reduction == LossReduction::mean ? static_cast<double>(n) : 1.0;
}

void cpu_mse_loss_fwd(Out loss, In a_tensor, In b_tensor, LossReduction reduction) {
  dispatch_floating(a_tensor.dtype(), "mse_loss", [&]<class T>() {
    using Acc = Accumulate<T>;
    const T* a = a_tensor.data<T>();
    const T* b = b_tensor.data<T>();
    const int64_t n = a_tensor.numel();
    reduce_loss<T>(loss, n, 1, reduction, mean_divisor(reduction, n), [&](int64_t i) {
      const Acc d = static_cast<Acc>(a[i]) - static_cast<Acc>(b[i]);
      return d * d;
    });
  });
}

void cpu_mse_loss_bwd(Out da_tensor, Out db_tensor, In dloss, In a_tensor, In b_tensor,
                      LossReduction reduction) {
  dispatch_floating(a_tensor.dtype(), "mse_loss", [&]<class T>() {
    using Acc = Accumulate<T>;
    const T* a = a_tensor.data<T>();
    const T* b = b_tensor.data<T>();
    T* da = da_tensor.defined() ? da_tensor.data<T>() : nullptr;
    T* db = db_tensor.defined() ? db_tensor.data<T>() : nullptr;
    const int64_t n = a_tensor.numel();
    const LossGradient<T> gradient(dloss, mean_divisor(reduction, n), reduction);
    parallel_for(0, n, kBlock, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        const Acc v = 2 * gradient[i] * (static_cast<Acc>(a[i]) - static_cast<Acc>(b[i]));
        if (da) da[i] = static_cast<T>(v);
        if (db) db[i] = static_cast<T>(-v);
      }
    });
  });
}

// (1 - t) x + (1 + (pos_weight - 1) t) log(1 + exp(-x)), times weight; the logarithm in the form
// that cannot overflow.
template <class T>
struct BceElement {
  using Acc = Accumulate<T>;
  const T *x, *t, *w, *pos;
  BceElement(In input, In target, In weight, In pos_weight)
      : x(input.data<T>()),
        t(target.data<T>()),
        w(data_or_null<T>(weight)),
        pos(data_or_null<T>(pos_weight)) {}
  static Acc softplus(Acc v) {  // log(1 + exp(v))
    return std::max(v, Acc(0)) + std::log1p(fast::exp(-std::abs(v)));
  }
  Acc weight(int64_t i) const { return w ? static_cast<Acc>(w[i]) : Acc(1); }
  Acc positive(int64_t i) const { return pos ? static_cast<Acc>(pos[i]) - 1 : Acc(0); }
  Acc loss(int64_t i) const {
    const Acc xi = static_cast<Acc>(x[i]), ti = static_cast<Acc>(t[i]);
    return weight(i) * ((1 - ti) * xi + (1 + positive(i) * ti) * softplus(-xi));
  }
  Acc dx(int64_t i) const {
    const Acc xi = static_cast<Acc>(x[i]), ti = static_cast<Acc>(t[i]);
    return weight(i) * ((1 - ti) - (1 + positive(i) * ti) * fast::sigmoid(-xi));
  }
  Acc dtarget(int64_t i) const {
    const Acc xi = static_cast<Acc>(x[i]);
    return weight(i) * (positive(i) * softplus(-xi) - xi);
  }
};

void cpu_bce_with_logits_fwd(Out loss, In x, In target, In weight, In pos_weight,
                             LossReduction reduction) {
  dispatch_floating(x.dtype(), "binary_cross_entropy_with_logits", [&]<class T>() {
    const BceElement<T> element(x, target, weight, pos_weight);
    const int64_t n = x.numel();
    reduce_loss<T>(loss, n, 16, reduction, mean_divisor(reduction, n),
                   [&](int64_t i) { return element.loss(i); });
  });
}

void cpu_bce_with_logits_bwd(Out dx_tensor, Out dtarget_tensor, In dloss, In x, In target,
                             In weight, In pos_weight, LossReduction reduction) {
  dispatch_floating(x.dtype(), "binary_cross_entropy_with_logits", [&]<class T>() {
    const BceElement<T> element(x, target, weight, pos_weight);
    T* dx = dx_tensor.defined() ? dx_tensor.data<T>() : nullptr;
    T* dtarget = dtarget_tensor.defined() ? dtarget_tensor.data<T>() : nullptr;
    const int64_t n = x.numel();
    const LossGradient<T> gradient(dloss, mean_divisor(reduction, n), reduction);
    parallel_for(0, n, kBlock / 16, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        if (dx) dx[i] = static_cast<T>(gradient[i] * element.dx(i));
        if (dtarget) dtarget[i] = static_cast<T>(gradient[i] * element.dtarget(i));
      }
    });
  });
}

}  // namespace
}  // namespace cpu

Slot<void(std::string_view, In, int64_t, int64_t)> check_classes{"check_classes",
                                                                 cpu::cpu_check_classes};
Slot<void(Out, Out, Out, In, In, In, const CrossEntropyParams&)> cross_entropy_fwd{
    "cross_entropy_fwd", cpu::cpu_cross_entropy_fwd};
Slot<void(const Dst&, const Dst&, In, In, In, In, In, In, const CrossEntropyParams&)>
    cross_entropy_bwd{"cross_entropy_bwd", cpu::cpu_cross_entropy_bwd};
Slot<void(Out, Out, In, In, In, int64_t, LossReduction)> nll_loss_fwd{"nll_loss_fwd",
                                                                      cpu::cpu_nll_loss_fwd};
Slot<void(Out, In, In, In, In, int64_t, LossReduction)> nll_loss_bwd{"nll_loss_bwd",
                                                                     cpu::cpu_nll_loss_bwd};
Slot<void(Out, In, In, LossReduction)> mse_loss_fwd{"mse_loss_fwd", cpu::cpu_mse_loss_fwd};
Slot<void(Out, Out, In, In, In, LossReduction)> mse_loss_bwd{"mse_loss_bwd", cpu::cpu_mse_loss_bwd};
Slot<void(Out, In, In, In, In, LossReduction)> bce_with_logits_fwd{"bce_with_logits_fwd",
                                                                   cpu::cpu_bce_with_logits_fwd};
Slot<void(Out, Out, In, In, In, In, In, LossReduction)> bce_with_logits_bwd{
    "bce_with_logits_bwd", cpu::cpu_bce_with_logits_bwd};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
