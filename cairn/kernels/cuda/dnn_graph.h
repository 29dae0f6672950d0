// A graph of cuDNN's operations, and the plans that can run it.
// Invariant: a Plan keeps alive all that the library's plan was made of.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "cairn/kernels/cuda/dnn_api.h"
#include "cairn/kernels/cuda/dnn_plan_store.h"
#include "cairn/tensor/dtype.h"

namespace cairn::kernels::cuda {

// The library's name of a dtype.
cudnnDataType_t dnn_type(DType dtype);

// A tensor of a graph, [a, b, c, d] in memory as [a, c, d, b].
struct DnnTensor {
  // Where a call finds it: in the pointers it is given, there on the host, or nowhere.
  enum class Place : uint8_t { device, host, inside };

  int64_t id;
  DType dtype;
  std::array<int64_t, 4> sizes;
  int64_t alignment = 16;  // bytes
  Place place = Place::device;

  Descriptor make(const DnnApi& api) const;
};

// Which engines may run a graph.
struct DnnRules {
  DType dtype = DType::f32;
  bool tf32 = true;  // f32 may be rounded to TF32
  bool deterministic = false;
};

class DnnGraph {
 public:
  // `parts` are what the operations are made of. Without a handle nothing can run; with
  // `properties`, a finalised DEVICEPROP descriptor that outlives the graph, plans can still be
  // made, for a device that need not be there.
  DnnGraph(const DnnApi& api, cudnnHandle_t handle, const DnnRules& rules,
           std::vector<Descriptor> parts, std::vector<Descriptor> operations,
           const Descriptor* properties = nullptr);

  // Configurations that heuristics recommend, best first; empty where they know none.
  std::vector<Descriptor> recommended(cudnnBackendHeurMode_t mode) const;
  // Whether the rules allow the configuration's engine.
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
  const DnnApi* api_;
  cudnnHandle_t handle_;
  const Descriptor* properties_;
  DnnRules rules_;
  std::vector<Descriptor> parts_;
  Descriptor graph_;
};

}  // namespace cairn::kernels::cuda
