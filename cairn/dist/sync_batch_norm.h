// Batch normalisation over the batches of all ranks of a group: what its op asks of one.
// Invariant: all ranks get the same rows in order of rank, so their statistics are the same bits.
#pragma once

#include <memory>

#include "cairn/autograd/ops/norm.h"
#include "cairn/dist/process_group.h"

namespace cairn::dist {

// For BatchNormOptions::replicas and nn::BatchNorm::set_replicas. Every forward and backward in
// training is a collective then, so ranks must run the same model the same number of times.
std::shared_ptr<const BatchReplicas> batch_replicas(std::shared_ptr<ProcessGroup> group);

}  // namespace cairn::dist
