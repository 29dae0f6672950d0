// Losses: small ones in one launch, block and all; else partial totals and their sum.
// Invariant: totals are kept in f64, in an order that depends on the shape alone. A class out of
// range, which check_classes reports at the next wait, counts as ignored and touches no memory.
#include "cairn/kernels/loss.h"

#include <cmath>
#include <limits>

#include "cairn/kernels/cuda/finding.cuh"
#include "cairn/kernels/cuda/rows.cuh"

namespace cairn::kernels::cuda {

using namespace cairn::cuda;

namespace {

constexpr int kThreads = 256;
constexpr int kWholeThreads = 512;  // of a block that does everything
constexpr int64_t kMostBlocks = 1024;

struct BadClass {
  const int64_t* target;
  int64_t classes, ignore_index;
  __device__ int64_t value(int64_t i) const { return target[i]; }
  __device__ bool operator()(int64_t i) const {
    return (target[i] < 0 || target[i] >= classes) && target[i] != ignore_index;
  }
};

void cuda_check_classes(std::string_view op, In target, int64_t classes, int64_t ignore_index) {
  check_elements(target.device(), target.numel(),
                 BadClass{target.data<int64_t>(), classes, ignore_index},
                 report_for(target.device(), op, "target", classes, Shape{target.numel()}));
}

// Whether a target counts, and may be used as an index.
__device__ __forceinline__ bool counts(int64_t target, int64_t classes, int64_t ignore_index) {
  return target >= 0 && target < classes && target != ignore_index;
}

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.raw_data()) : nullptr;
}

// --- totals --------------------------------------------------------------------------------------

// Where a loss goes. reduction none: an element each, and no totals.
template <class T>
struct LossOut {
  T* loss = nullptr;
  double* denominator = nullptr;  // what backward divides by; may be null
  double* partial = nullptr;      // [blocks][2]: sums and weights, for two launches
  double fixed = 0;               // what a mean divides by; 0: the weights' sum
  LossReduction reduction = LossReduction::none;
};

template <class T>
__device__ __forceinline__ void finish_loss(const LossOut<T>& out, double sum, double weight) {
  double divisor = 1;
  if (out.reduction == LossReduction::mean) divisor = out.fixed != 0 ? out.fixed : weight;
  if (out.denominator != nullptr) *out.denominator = divisor;
  if (out.reduction != LossReduction::none)
    *out.loss = narrow<T>(static_cast<Compute<T>>(sum / divisor));
}

// The end of a kernel whose threads hold parts of the totals: the result, or the block's partial.
template <class T>
__device__ __forceinline__ void keep_totals(const LossOut<T>& out, double sum, double weight) {
  if (out.reduction != LossReduction::none) {
    sum = block_reduce(sum, 0.0, Plus());
    weight = block_reduce(weight, 0.0, Plus());
  }
  if (threadIdx.x != 0) return;
  if (out.partial != nullptr) {
    out.partial[2 * int64_t{blockIdx.x}] = sum;
    out.partial[2 * int64_t{blockIdx.x} + 1] = weight;
  } else if (blockIdx.x == 0) {  // one block, or no totals
    finish_loss(out, sum, weight);
  }
}

template <class T>
__global__ void total_kernel(LossOut<T> out, int blocks) {
  double sum = 0, weight = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += static_cast<int>(blockDim.x)) {
    sum += out.partial[2 * i];
    weight += out.partial[2 * i + 1];
  }
  sum = block_reduce(sum, 0.0, Plus());
  weight = block_reduce(weight, 0.0, Plus());
  if (threadIdx.x == 0) finish_loss(out, sum, weight);
}

// Calls body(out) to launch `blocks` blocks, and then adds up their partial totals where there are
// several and the loss is one.
template <class T, class Body>
void with_totals(Device device, const char* name, LossOut<T> out, int64_t blocks, Body&& body) {
  if (blocks == 1 || out.reduction == LossReduction::none) return body(out);
  // Scratch of this device alone: the CPU's kernel keeps its partial totals on the stack.
  const Tensor partial = empty({2 * blocks}, {DType::f64, device});
  out.partial = partial.data<double>();
  body(out);
  launch(device, name, total_kernel<T>, {1, kThreads}, out, static_cast<int>(blocks));
}

// --- cross entropy -------------------------------------------------------------------------------

template <class T>
struct CrossEntropy {
  using Acc = Compute<T>;
  int64_t rows, classes;
  const T* logits;
  const int64_t* target;   // null: probabilities
  const T* probabilities;  // null: classes
  const T* weight;         // may be null: 1
  Acc* norms;              // [rows][2]
  Acc keep, smooth;        // target_c becomes keep target_c + smooth
  int64_t ignore_index;

  __device__ __forceinline__ Acc weight_of(int64_t c) const {
    return weight != nullptr ? Acc(widen(weight[c])) : Acc(1);
  }
};

template <class T>
CrossEntropy<T> cross_entropy_of(In logits, In target, In weight, In norms,
                                 const CrossEntropyParams& params) {
  using Acc = Compute<T>;
  const bool by_class = target.dtype() == DType::i64;
  const int64_t classes = logits.size(1);
  return {logits.size(0),
          classes,
          logits.data<T>(),
          by_class ? target.data<int64_t>() : nullptr,
          by_class ? nullptr : target.data<T>(),
          data_or_null<T>(weight),
          norms.data<Acc>(),
          static_cast<Acc>(1 - params.label_smoothing),
          static_cast<Acc>(params.label_smoothing / static_cast<double>(classes)),
          params.ignore_index};
}

struct LargerOrNaN {
  template <class Acc>
  __device__ __forceinline__ Acc operator()(Acc a, Acc b) const {
    return b > a || b != b ? b : a;
  }
};

// One row's loss; every thread of the group gets it.
template <class T, int kSize, int kEach>
__device__ __forceinline__ Compute<T> row_loss(const CrossEntropy<T>& c, int64_t r) {
  using Acc = Compute<T>;
  using G = Group<kSize>;
  const T* const x = c.logits + r * c.classes;
  constexpr Acc kLeast = -std::numeric_limits<Acc>::infinity();
  Acc largest = kLeast;
  over_row<kSize, kEach>(x, c.classes, [&](int64_t, const Vector<T, kEach>& v) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) largest = LargerOrNaN()(largest, Acc(widen(v.value[k])));
  });
  largest = G::reduce(largest, kLeast, LargerOrNaN());
  Acc sum = 0;
  over_row<kSize, kEach>(x, c.classes, [&](int64_t, const Vector<T, kEach>& v) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) sum += std::exp(widen(v.value[k]) - largest);
  });
  sum = G::reduce(sum, Acc(0), Plus());
  const Acc log_sum = std::log(sum);
  if (G::thread() == 0) {
    c.norms[2 * r] = largest;
    c.norms[2 * r + 1] = log_sum;
  }
  Acc loss = 0;
  if (c.target != nullptr) {
    const int64_t hot = c.target[r];
    loss = c.keep * c.weight_of(hot) * (log_sum - (widen(x[hot]) - largest));
    if (c.smooth == 0) return loss;
  }
  Acc all = 0;
  const T* const p = c.probabilities == nullptr ? nullptr : c.probabilities + r * c.classes;
  over_row<kSize, kEach>(x, c.classes, [&](int64_t i, const Vector<T, kEach>& v) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const Acc share = p == nullptr ? c.smooth : c.keep * widen(p[i + k]) + c.smooth;
      all += share * c.weight_of(i + k) * (log_sum - (widen(v.value[k]) - largest));
    }
  });
  return loss + G::reduce(all, Acc(0), Plus());
}

// `each` rows a group, one after the other.
template <class T, int kSize, int kEach>
__global__ void __launch_bounds__(kSize == kWarp ? kWholeThreads : kRowThreads)
    cross_entropy_forward_kernel(CrossEntropy<T> c, LossOut<T> out, int64_t each) {
  using Acc = Compute<T>;
  using G = Group<kSize>;
  double sum = 0, weight = 0;
  const int64_t first = G::number() * each;
  for (int64_t r = first; r < first + each && r < c.rows; ++r) {
    Acc loss = 0;
    if (c.target == nullptr || counts(c.target[r], c.classes, c.ignore_index)) {
      loss = row_loss<T, kSize, kEach>(c, r);
      if (G::thread() == 0 && c.target != nullptr)
        weight += static_cast<double>(c.weight_of(c.target[r]));
    } else if (G::thread() == 0) {
      c.norms[2 * r] = c.norms[2 * r + 1] = 0;
    }
    if (G::thread() != 0) continue;
    if (out.reduction == LossReduction::none)
      out.loss[r] = narrow<T>(loss);
    else
      sum += static_cast<double>(loss);
  }
  keep_totals(out, sum, weight);
}

void cuda_cross_entropy_fwd(Out loss, Out norms, Out denominator, In logits, In target, In weight,
                            const CrossEntropyParams& params) {
  dispatch_floating(logits.dtype(), "cross_entropy", [&]<class T>() {
    const CrossEntropy<T> c = cross_entropy_of<T>(logits, target, weight, norms, params);
    LossOut<T> out;
    out.loss = loss.data<T>();
    out.denominator = denominator.data<double>();
    out.reduction = params.reduction;
    out.fixed = c.target == nullptr ? static_cast<double>(c.rows) : 0;
    with_rows<T>(c.classes, {c.logits}, [&]<int kSize, int kEach>() {
      // Rows that one block takes as fast as two launches would.
      constexpr int64_t kWholeRows = kSize == kWarp ? 256 : 1;
      const bool whole = c.rows <= kWholeRows;
      const int threads = whole && kSize == kWarp ? kWholeThreads : kRowThreads;
      const int64_t groups = threads / kSize;
      const int64_t most = whole ? 1 : kMostBlocks;
      const int64_t blocks = std::clamp<int64_t>((c.rows + groups - 1) / groups, 1, most);
      const int64_t each = (c.rows + blocks * groups - 1) / (blocks * groups);
      with_totals(logits.device(), "cross_entropy_fwd", out, blocks, [&](const LossOut<T>& to) {
        launch(logits.device(), "cross_entropy_fwd", cross_entropy_forward_kernel<T, kSize, kEach>,
               {static_cast<unsigned>(blocks), static_cast<unsigned>(threads)}, c, to, each);
      });
    });
  });
}

// The gradient of a term: of its own loss element, or its share of the one there is.
template <class T>
struct LossGradient {
  const T* data;
  int64_t step;
  const double* denominator;  // null: `fixed`
  double fixed;
  __device__ __forceinline__ Compute<T> operator()(int64_t i) const {
    const double divisor = denominator != nullptr ? *denominator : fixed;
    return static_cast<Compute<T>>(static_cast<double>(widen(data[i * step])) / divisor);
  }
};
template <class T>
LossGradient<T> loss_gradient(In dloss, const double* denominator, double fixed,
                              LossReduction reduction) {
  return {dloss.data<T>(), reduction == LossReduction::none ? 1 : 0, denominator, fixed};
}

template <class T>
struct CrossEntropyGradient {
  T* dlogits;
  T* dtarget;
  bool dlogits_add, dtarget_add;
  LossGradient<T> dloss;
};

// The sum of what row r's target distribution times the weights holds.
template <class T, int kSize>
__device__ __forceinline__ Compute<T> target_mass(const CrossEntropy<T>& c, int64_t r) {
  using Acc = Compute<T>;
  if (c.target != nullptr) {
    const Acc hot = c.keep * c.weight_of(c.target[r]);
    if (c.smooth == 0) return hot;
    if (c.weight == nullptr) return hot + c.smooth * static_cast<Acc>(c.classes);
  }
  Acc sum = 0;
  const T* const p = c.probabilities == nullptr ? nullptr : c.probabilities + r * c.classes;
  for (int64_t i = Group<kSize>::thread(); i < c.classes; i += kSize) {
    const Acc share = p == nullptr ? c.smooth : c.keep * widen(p[i]) + c.smooth;
    sum += share * c.weight_of(i);
  }
  sum = Group<kSize>::reduce(sum, Acc(0), Plus());
  return c.target != nullptr ? sum + c.keep * c.weight_of(c.target[r]) : sum;
}

// dlogits_c (+)= factor (softmax_c spread - q_c) and dtarget_c (+)= factor keep weight_c
// (-log softmax_c), where q is the target's distribution times the weights and spread its sum.
template <class T, int kSize, int kEach>
__device__ __forceinline__ void row_gradient(const CrossEntropy<T>& c,
                                             const CrossEntropyGradient<T>& g, int64_t r) {
  using Acc = Compute<T>;
  const bool counted = c.target == nullptr || counts(c.target[r], c.classes, c.ignore_index);
  const Acc factor = counted ? g.dloss(r) : Acc(0);
  const Acc spread = counted ? target_mass<T, kSize>(c, r) : Acc(0);
  const Acc largest = c.norms[2 * r], log_sum = c.norms[2 * r + 1];
  const int64_t hot = c.target != nullptr ? c.target[r] : -1;
  const int64_t row = r * c.classes;
  over_row<kSize, kEach>(c.logits + row, c.classes, [&](int64_t i, const Vector<T, kEach>& x) {
    Vector<T, kEach> out;
    T* const to = g.dlogits + row + i;
    if (g.dlogits != nullptr && g.dlogits_add) out = *reinterpret_cast<Vector<T, kEach>*>(to);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const Acc centered = widen(x.value[k]) - largest;
      const int64_t at = i + k;
      if (g.dlogits != nullptr) {
        const Acc p = std::exp(centered - log_sum);
        const Acc target =
            c.probabilities != nullptr ? Acc(widen(c.probabilities[row + at])) : Acc(at == hot);
        const Acc v = counted
                          ? factor * (p * spread - (c.keep * target + c.smooth) * c.weight_of(at))
                          : Acc(0);
        out.value[k] = narrow<T>(g.dlogits_add ? widen(out.value[k]) + v : v);
      }
      if (g.dtarget != nullptr) {
        const Acc v = factor * c.keep * c.weight_of(at) * (log_sum - centered);
        T& place = g.dtarget[row + at];
        place = narrow<T>(g.dtarget_add ? widen(place) + v : v);
      }
    }
    if (g.dlogits != nullptr) *reinterpret_cast<Vector<T, kEach>*>(to) = out;
  });
}

template <class T, int kSize, int kEach>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_backward_kernel(CrossEntropy<T> c, CrossEntropyGradient<T> g) {
  for (int64_t r = Group<kSize>::number(); r < c.rows; r += Group<kSize>::count())
    row_gradient<T, kSize, kEach>(c, g, r);
}

void cuda_cross_entropy_bwd(const Dst& dlogits, const Dst& dtarget, In dloss, In norms,
                            In denominator, In logits, In target, In weight,
                            const CrossEntropyParams& params) {
  for (const Dst* dst : {&dlogits, &dtarget})
    if (dst->zeros != nullptr) dst->zeros->clear();
  if (logits.numel() == 0) return;
  dispatch_floating(logits.dtype(), "cross_entropy", [&]<class T>() {
    const CrossEntropy<T> c = cross_entropy_of<T>(logits, target, weight, norms, params);
    const CrossEntropyGradient<T> g{
        data_or_null<T>(dlogits.tensor), data_or_null<T>(dtarget.tensor), dlogits.add, dtarget.add,
        loss_gradient<T>(dloss, denominator.data<double>(), 1, params.reduction)};
    with_rows<T>(c.classes, {c.logits, g.dlogits}, [&]<int kSize, int kEach>() {
      launch(logits.device(), "cross_entropy_bwd", cross_entropy_backward_kernel<T, kSize, kEach>,
             grid_for(c.rows * kSize, kRowThreads, 1, 1 << 16), c, g);
    });
  });
}

// --- losses that are sums over elements ----------------------------------------------------------

// term(i, weight) gives element i's loss, and its share of the weights where those make the
// denominator.
template <class T, class Term>
__global__ void __launch_bounds__(kWholeThreads)
    elements_kernel(Term term, LossOut<T> out, int64_t n, int64_t each) {
  double sum = 0, weight = 0;
  const int64_t first = blockIdx.x * each;
  const int64_t last = first + each < n ? first + each : n;
#pragma unroll 4
  for (int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
    const Compute<T> loss = term(i, weight);
    if (out.reduction == LossReduction::none)
      out.loss[i] = narrow<T>(loss);
    else
      sum += static_cast<double>(loss);
  }
  keep_totals(out, sum, weight);
}

template <class T, class Term>
void elements_loss(Device device, const char* name, const LossOut<T>& out, int64_t n,
                   const Term& term) {
  constexpr int64_t kWhole =
      32 * kWholeThreads;  // elements one block takes as fast as two launches
  const int64_t blocks =
      n <= kWhole ? 1 : std::min<int64_t>(kMostBlocks, (n + 4 * kThreads - 1) / (4 * kThreads));
  const int64_t each = (n + blocks - 1) / blocks;
  const int threads = blocks == 1 ? kWholeThreads : kThreads;
  with_totals(device, name, out, blocks, [&](const LossOut<T>& to) {
    launch(device, name, elements_kernel<T, Term>,
           {static_cast<unsigned>(blocks), static_cast<unsigned>(threads)}, term, to, n, each);
  });
}

template <class T>
LossOut<T> loss_out(Out loss, LossReduction reduction, int64_t n) {
  LossOut<T> out;
  out.loss = loss.data<T>();
  out.reduction = reduction;
  out.fixed = static_cast<double>(n);  // 0 / 0 where there are none
  return out;
}

double mean_divisor(LossReduction reduction, int64_t n) {
  return reduction == LossReduction::mean ? static_cast<double>(n) : 1.0;
}

template <class Body>
__global__ void each_kernel(Body body, int64_t n) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) body(i);
}
template <class Body>
void for_each_element(Device device, const char* name, int64_t n, const Body& body) {
  if (n > 0) launch(device, name, each_kernel<Body>, grid_for(n, kThreads, 4), body, n);
}

// --- negative log likelihood ---------------------------------------------------------------------

template <class T>
struct LikelihoodTerm {
  const T* log_probs;
  const int64_t* target;
  const T* weights;
  int64_t classes, inner, ignore_index;

  __device__ __forceinline__ bool counted(int64_t i) const {
    return counts(target[i], classes, ignore_index);
  }
  __device__ __forceinline__ Compute<T> weight_of(int64_t c) const {
    return weights != nullptr ? Compute<T>(widen(weights[c])) : Compute<T>(1);
  }
  __device__ __forceinline__ int64_t place(int64_t i) const {
    return (i / inner * classes + target[i]) * inner + i % inner;
  }
  __device__ __forceinline__ Compute<T> operator()(int64_t i, double& weight) const {
    if (!counted(i)) return 0;
    const Compute<T> w = weight_of(target[i]);
    weight += static_cast<double>(w);
    return -w * widen(log_probs[place(i)]);
  }
};

template <class T>
struct LikelihoodGradient {
  LikelihoodTerm<T> term;
  T* out;
  LossGradient<T> dloss;
  __device__ __forceinline__ void operator()(int64_t i) const {
    if (term.counted(i)) out[term.place(i)] = narrow<T>(-term.weight_of(term.target[i]) * dloss(i));
  }
};

template <class T>
LikelihoodTerm<T> likelihood_term(In values, In target, In weight, int64_t ignore_index) {
  return {values.data<T>(), target.data<int64_t>(), data_or_null<T>(weight),
          values.size(1),   values.size(2),         ignore_index};
}

void cuda_nll_loss_fwd(Out loss, Out denominator, In log_probs, In target, In weight,
                       int64_t ignore_index, LossReduction reduction) {
  dispatch_floating(log_probs.dtype(), "nll_loss", [&]<class T>() {
    LossOut<T> out = loss_out<T>(loss, reduction, 0);
    out.denominator = denominator.data<double>();
    elements_loss(log_probs.device(), "nll_loss_fwd", out, target.numel(),
                  likelihood_term<T>(log_probs, target, weight, ignore_index));
  });
}

void cuda_nll_loss_bwd(Out dlog_probs, In dloss, In denominator, In target, In weight,
                       int64_t ignore_index, LossReduction reduction) {
  dispatch_floating(dlog_probs.dtype(), "nll_loss", [&]<class T>() {
    for_each_element(
        dlog_probs.device(), "nll_loss_bwd", target.numel(),
        LikelihoodGradient<T>{likelihood_term<T>(dlog_probs, target, weight, ignore_index),
                              dlog_probs.data<T>(),
                              loss_gradient<T>(dloss, denominator.data<double>(), 1, reduction)});
  });
}

// --- squared error -------------------------------------------------------------------------------

template <class T>
struct SquaredTerm {
  const T* a;
  const T* b;
  __device__ __forceinline__ Compute<T> difference(int64_t i) const {
    return widen(a[i]) - widen(b[i]);
  }
  __device__ __forceinline__ Compute<T> operator()(int64_t i, double&) const {
    const Compute<T> d = difference(i);
    return d * d;
  }
};

template <class T>
struct SquaredGradient {
  SquaredTerm<T> term;
  T* da;
  T* db;
  LossGradient<T> dloss;
  __device__ __forceinline__ void operator()(int64_t i) const {
    const Compute<T> v = 2 * dloss(i) * term.difference(i);
    if (da != nullptr) da[i] = narrow<T>(v);
    if (db != nullptr) db[i] = narrow<T>(-v);
  }
};

void cuda_mse_loss_fwd(Out loss, In a, In b, LossReduction reduction) {
  dispatch_floating(a.dtype(), "mse_loss", [&]<class T>() {
    elements_loss(a.device(), "mse_loss_fwd", loss_out<T>(loss, reduction, a.numel()), a.numel(),
                  SquaredTerm<T>{a.data<T>(), b.data<T>()});
  });
}

void cuda_mse_loss_bwd(Out da, Out db, In dloss, In a, In b, LossReduction reduction) {
  dispatch_floating(a.dtype(), "mse_loss", [&]<class T>() {
    for_each_element(
        a.device(), "mse_loss_bwd", a.numel(),
        SquaredGradient<T>{
            {a.data<T>(), b.data<T>()},
            data_or_null<T>(da),
            data_or_null<T>(db),
            loss_gradient<T>(dloss, nullptr, mean_divisor(reduction, a.numel()), reduction)});
  });
}

// --- binary cross entropy ------------------------------------------------------------------------

// (1 - t) x + (1 + (pos_weight - 1) t) log(1 + exp(-x)), times weight; the logarithm in the form
// that cannot overflow.
template <class T>
struct BinaryTerm {
  using Acc = Compute<T>;
  const T *x, *t, *weights, *pos_weights;

  // log(1 + exp(v)); NaN stays.
  __device__ __forceinline__ static Acc softplus(Acc v) {
    return (v < 0 ? Acc(0) : v) + std::log1p(std::exp(-std::abs(v)));
  }
  __device__ __forceinline__ Acc weight_of(int64_t i) const {
    return weights != nullptr ? Acc(widen(weights[i])) : Acc(1);
  }
  __device__ __forceinline__ Acc positive(int64_t i) const {
    return pos_weights != nullptr ? widen(pos_weights[i]) - 1 : Acc(0);
  }
  __device__ __forceinline__ Acc operator()(int64_t i, double&) const {
    const Acc xi = widen(x[i]), ti = widen(t[i]);
    return weight_of(i) * ((1 - ti) * xi + (1 + positive(i) * ti) * softplus(-xi));
  }
  __device__ __forceinline__ Acc dx(int64_t i) const {
    const Acc xi = widen(x[i]), ti = widen(t[i]);
    return weight_of(i) * ((1 - ti) - (1 + positive(i) * ti) / (1 + std::exp(xi)));
  }
  __device__ __forceinline__ Acc dtarget(int64_t i) const {
    const Acc xi = widen(x[i]);
    return weight_of(i) * (positive(i) * softplus(-xi) - xi);
  }
};

template <class T>
struct BinaryGradient {
  BinaryTerm<T> term;
  T* dx;
  T* dtarget;
  LossGradient<T> dloss;
  __device__ __forceinline__ void operator()(int64_t i) const {
    const Compute<T> g = dloss(i);
    if (dx != nullptr) dx[i] = narrow<T>(g * term.dx(i));
    if (dtarget != nullptr) dtarget[i] = narrow<T>(g * term.dtarget(i));
  }
};

template <class T>
BinaryTerm<T> binary_term(In x, In target, In weight, In pos_weight) {
  return {x.data<T>(), target.data<T>(), data_or_null<T>(weight), data_or_null<T>(pos_weight)};
}

void cuda_bce_with_logits_fwd(Out loss, In x, In target, In weight, In pos_weight,
                              LossReduction reduction) {
  dispatch_floating(x.dtype(), "binary_cross_entropy_with_logits", [&]<class T>() {
    elements_loss(x.device(), "bce_with_logits_fwd", loss_out<T>(loss, reduction, x.numel()),
                  x.numel(), binary_term<T>(x, target, weight, pos_weight));
  });
}

void cuda_bce_with_logits_bwd(Out dx, Out dtarget, In dloss, In x, In target, In weight,
                              In pos_weight, LossReduction reduction) {
  dispatch_floating(x.dtype(), "binary_cross_entropy_with_logits", [&]<class T>() {
    for_each_element(
        x.device(), "bce_with_logits_bwd", x.numel(),
        BinaryGradient<T>{
            binary_term<T>(x, target, weight, pos_weight), data_or_null<T>(dx),
            data_or_null<T>(dtarget),
            loss_gradient<T>(dloss, nullptr, mean_divisor(reduction, x.numel()), reduction)});
  });
}

}  // namespace

void fill_loss() {
  check_classes.fill(DeviceType::cuda, cuda_check_classes);
  cross_entropy_fwd.fill(DeviceType::cuda, cuda_cross_entropy_fwd);
  cross_entropy_bwd.fill(DeviceType::cuda, cuda_cross_entropy_bwd);
  nll_loss_fwd.fill(DeviceType::cuda, cuda_nll_loss_fwd);
  nll_loss_bwd.fill(DeviceType::cuda, cuda_nll_loss_bwd);
  mse_loss_fwd.fill(DeviceType::cuda, cuda_mse_loss_fwd);
  mse_loss_bwd.fill(DeviceType::cuda, cuda_mse_loss_bwd);
  bce_with_logits_fwd.fill(DeviceType::cuda, cuda_bce_with_logits_fwd);
  bce_with_logits_bwd.fill(DeviceType::cuda, cuda_bce_with_logits_bwd);
}

}  // namespace cairn::kernels::cuda
