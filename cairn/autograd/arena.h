// ParameterArena: the parameters of one dtype and device in one block of memory, and their
// gradients in another, so that optimizers, clipping, buckets and checkpoints are ranges.
// Invariant: a parameter and its gradient lie at the same offset of their blocks, which is a
// multiple of 64 bytes; the gaps between parameters are shorter than that and zero in both blocks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cairn/tensor/tensor.h"

namespace cairn {

// Alignment of a parameter inside an arena: a cache line, and the widest vector register.
constexpr int64_t kArenaAlignment = 64;

class ParameterArena {
 public:
  // A stretch of neighbouring parameters, in elements of data() and grads().
  struct Run {
    int64_t offset = 0;
    int64_t numel = 0;
  };

  // Moves the parameters (leaves that require a gradient; of one dtype and device) into fresh
  // blocks in the order given, with their values and gradients. Dense strides are kept, others
  // become row-major; the tensors stay the same handles. Where all of them lie in one arena already
  // (all of it or a part), nothing moves and this is another view of it. Doubled parameters and
  // parameters that share memory throw Error.
  explicit ParameterArena(std::span<const Tensor> parameters);

  size_t size() const { return parameters_.size(); }
  const Tensor& parameter(size_t i) const { return parameters_[i]; }
  // Element of data() where parameter i starts.
  int64_t offset(size_t i) const { return offsets_[i]; }

  // From the first parameter in memory to the last: 1-d, gaps included. A view of a part of a
  // bigger arena may cover parameters that were not given; runs() does not.
  const Tensor& data() const { return data_; }
  // Whoever writes into grads() by pointer or raw:: calls its bump_version: parts may be trusted to
  // hold zeros.
  const Tensor& grads() const { return grads_; }
  // Whether data() is a whole block, so that grads() can be given other memory.
  bool is_whole() const;
  // Moves the gradients to `memory`, which holds zeros: 1-d, of data()'s size, dtype and device,
  // aligned to 64 bytes. The arena must be whole.
  void set_grads_memory(const Tensor& memory);
  // The parameters given as maximal stretches in order of memory; one where they are neighbours.
  const std::vector<Run>& runs() const { return runs_; }

 private:
  bool adopt();
  void pack();
  void find_runs();

  std::vector<Tensor> parameters_;
  std::vector<int64_t> offsets_;
  Tensor data_;
  Tensor grads_;
  std::vector<Run> runs_;
};

// One arena for each dtype and device among the parameters that require a gradient, in order of
// first appearance. Frozen parameters stay where they are. Where parameters move, their device's
// cached memory goes back to the system.
std::vector<ParameterArena> pack_parameters(std::span<const Tensor> parameters);

}  // namespace cairn
