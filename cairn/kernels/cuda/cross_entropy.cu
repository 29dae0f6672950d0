// Cross entropy: a warp or a block a row.
// Invariant: a class out of range, which check_classes reports at the next wait, counts as ignored
// and touches no memory.
#include <cmath>
#include <limits>

#include "cairn/kernels/cuda/losses.cuh"
#include "cairn/kernels/cuda/rows.cuh"

namespace cairn::kernels::cuda {

using namespace losses;

namespace {

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
    Vector<T, kEach> out{};
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

}  // namespace

void fill_cross_entropy() {
  cross_entropy_fwd.fill(DeviceType::cuda, cuda_cross_entropy_fwd);
  cross_entropy_bwd.fill(DeviceType::cuda, cuda_cross_entropy_bwd);
}

}  // namespace cairn::kernels::cuda
