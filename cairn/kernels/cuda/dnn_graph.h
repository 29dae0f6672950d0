// A convolution as cuDNN's graph of one operation, and the plans that can run it.
// Invariant: a Plan keeps alive all that the library's plan was made of.
#pragma once

#include <memory>

#include "cairn/kernels/cuda/conv.h"
#include "cairn/kernels/cuda/dnn_api.h"
#include "cairn/kernels/cuda/dnn_plan_store.h"
#include "cairn/tensor/dtype.h"

namespace cairn::kernels::cuda {

// Names of the tensors in a graph and in a call.
enum DnnTensor : int64_t { kDnnX = 1, kDnnW = 2, kDnnY = 3 };

struct DnnProblem {
  ConvKind kind = ConvKind::fwd;
  ConvShape shape{};
  DType dtype = DType::f32;
  bool add = false;        // to what the result holds
  int64_t alignment = 16;  // bytes, of all three tensors
  bool tf32 = true;        // f32 may be rounded to TF32
  bool deterministic = false;
};

class DnnGraph {
 public:
  // Without a handle nothing can run; with `properties`, a finalised DEVICEPROP descriptor that
  // outlives the graph, plans can still be made, for a device that need not be there.
  DnnGraph(const DnnApi& api, cudnnHandle_t handle, const DnnProblem& problem,
           const Descriptor* properties = nullptr);

  // Configurations that heuristics recommend, best first; empty where they know none.
  std::vector<Descriptor> recommended(cudnnBackendHeurMode_t mode) const;
  // Whether the settings of the problem allow the configuration's engine.
  bool allowed(const Descriptor& config) const;
  PlanChoice choice_of(const Descriptor& config) const;

  struct Plan {
    std::vector<Descriptor> parts;  // of a configuration that was put together here
    Descriptor config, plan;
    int64_t workspace = 0;
  };
  // Null where the library cannot build it, or it needs more workspace than is given.
  std::unique_ptr<Plan> build(Descriptor config, std::vector<Descriptor> parts = {}) const;
  std::unique_ptr<Plan> build(const PlanChoice& choice) const;

 private:
  const DnnApi& api_;
  cudnnHandle_t handle_;
  const Descriptor* properties_;
  DnnProblem problem_;
  std::vector<Descriptor> parts_;
  Descriptor graph_;
};

}  // namespace cairn::kernels::cuda
