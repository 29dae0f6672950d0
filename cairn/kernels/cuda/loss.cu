// Losses that are sums over elements, and the check of classes.
// Invariant: a class out of range, which check_classes reports at the next wait, counts as ignored
// and touches no memory.
#include <cmath>

#include "cairn/kernels/cuda/finding.cuh"
#include "cairn/kernels/cuda/losses.cuh"

namespace cairn::kernels::cuda {

using namespace losses;

namespace {

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
  nll_loss_fwd.fill(DeviceType::cuda, cuda_nll_loss_fwd);
  nll_loss_bwd.fill(DeviceType::cuda, cuda_nll_loss_bwd);
  mse_loss_fwd.fill(DeviceType::cuda, cuda_mse_loss_fwd);
  mse_loss_bwd.fill(DeviceType::cuda, cuda_mse_loss_bwd);
  bce_with_logits_fwd.fill(DeviceType::cuda, cuda_bce_with_logits_fwd);
  bce_with_logits_bwd.fill(DeviceType::cuda, cuda_bce_with_logits_bwd);
}

}  // namespace cairn::kernels::cuda
