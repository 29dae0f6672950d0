// Finding and running cuDNN's plans: one table of them, whatever the operation.
// Invariant: a problem's plan is searched for once per device, in memory, then on disk, then by the
// library's heuristics; that there is none, or that an own kernel is faster, is remembered too.
#pragma once

#include <array>
#include <span>
#include <string>

#include "cairn/kernels/cuda/dnn_graph.h"
#include "cairn/tensor/device.h"

namespace cairn::kernels::cuda {

struct DnnContext {
  const DnnApi& api;
  Device device;
  cudnnHandle_t handle;
};

// Runs a plan on the device's current stream; pointers[i] belongs to the tensor ids[i].
void execute(const DnnContext& context, const DnnGraph::Plan& plan, std::span<const int64_t> ids,
             std::span<void* const> pointers, void* workspace);

// All that a plan depends on; the first number tells the operation.
using DnnKey = std::array<int64_t, 21>;

// One call of an operation, as the search sees it.
class DnnCall {
 public:
  virtual DnnKey key() const = 0;
  // The same in one line of text.
  virtual std::string line() const = 0;
  virtual DnnGraph graph(const DnnContext& context) const = 0;
  // Queues the whole operation by this plan.
  virtual void run(const DnnContext& context, const DnnGraph::Plan& plan, void* workspace) = 0;

  // Whether cuDNN is taken where nothing is timed.
  virtual bool by_guess() const { return true; }

  // --- where candidates are timed ---
  // Between these, run() and run_own() write to memory that nobody sees.
  virtual void start_trials() = 0;
  virtual void end_trials() = 0;
  // How many of the library's candidates are tried: heuristics are right about the rest.
  virtual int candidates() const { return 8; }
  // Whether an own kernel competes; then run_own() queues it.
  virtual bool competes() const { return false; }
  virtual void run_own() {}

 protected:
  ~DnnCall() = default;
};

// False, having done nothing that counts, where cuDNN is not there, has no plan for the call that
// runs, or where an own kernel was faster.
bool run_by_dnn(Device device, DnnCall& call);

// The largest power of two, at most 16, that divides all addresses: the most that kernels ask for.
int64_t alignment_of(std::span<void* const> pointers);

}  // namespace cairn::kernels::cuda
