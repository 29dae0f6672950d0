// Kernels of the losses. All tensors are contiguous.
// Invariant: totals are kept in f64 over blocks of fixed size, one order for every thread count.
#pragma once

#include <string_view>

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// How the rows' losses become the output: 0-d for mean and sum.
enum class LossReduction { none, mean, sum };

// Throws "op: target must be in [0, C), got T at position P" for the first class of target (i64)
// that lies outside and is not ignore_index. A device that works asynchronously throws it where the
// host next waits for it, and the losses' kernels must stay inside memory until then. op is a
// string literal.
extern Slot<void(std::string_view op, In target, int64_t classes, int64_t ignore_index)>
    check_classes;

struct CrossEntropyParams {
  int64_t ignore_index;
  double label_smoothing;
  LossReduction reduction;
};

// logits [R, C]; target i64 [R], or probabilities [R, C] of logits' dtype; weight [C] of logits'
// dtype or undefined. loss: [R] or one element. For backward: norms [R, 2] (f64 for f64, else f32)
// gets each row's largest logit and the log of the sum of exp(logit - largest); denominator [1] f64
// what the reduction divided by.
extern Slot<void(Out loss, Out norms, Out denominator, In logits, In target, In weight,
                 const CrossEntropyParams& params)>
    cross_entropy_fwd;
// dlogits like logits; dtarget (probabilities only) like target; dloss like loss.
extern Slot<void(const Dst& dlogits, const Dst& dtarget, In dloss, In norms, In denominator,
                 In logits, In target, In weight, const CrossEntropyParams& params)>
    cross_entropy_bwd;

// log_probs [N, C, D]; target i64 [N, D]; weight [C] or undefined; loss [N, D] or one element.
extern Slot<void(Out loss, Out denominator, In log_probs, In target, In weight,
                 int64_t ignore_index, LossReduction reduction)>
    nll_loss_fwd;
// dlog_probs (cleared before) like log_probs.
extern Slot<void(Out dlog_probs, In dloss, In denominator, In target, In weight,
                 int64_t ignore_index, LossReduction reduction)>
    nll_loss_bwd;

// a, b of n elements; loss of n elements or one.
extern Slot<void(Out loss, In a, In b, LossReduction reduction)> mse_loss_fwd;
// da and db = -da, each of n elements; either may be undefined.
extern Slot<void(Out da, Out db, In dloss, In a, In b, LossReduction reduction)> mse_loss_bwd;

// x, target of n elements; weight and pos_weight of n elements or undefined.
extern Slot<void(Out loss, In x, In target, In weight, In pos_weight, LossReduction reduction)>
    bce_with_logits_fwd;
extern Slot<void(Out dx, Out dtarget, In dloss, In x, In target, In weight, In pos_weight,
                 LossReduction reduction)>
    bce_with_logits_bwd;

}  // namespace cairn::kernels
