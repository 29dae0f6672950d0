// Captured steps of a fit: which there are, and when another may be captured.
// Invariant: a launch does what the same steps do one by one, bit for bit; what the host does for a
// step (progress, schedule, hooks, log entries) is done beside it by the trainer.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cairn/data/batch.h"
#include "cairn/kernels/zero_ranges.h"
#include "cairn/tensor/capture.h"
#include "cairn/trainer/metrics.h"

namespace cairn::trainer {

// Steps that run the same kernels.
struct StepKind {
  Shape input, input_strides, target, target_strides;
  DType input_dtype = DType::f32, target_dtype = DType::f32;
  bool opens = true;   // the accumulation window: the gradient is written, not added to
  bool closes = true;  // the optimizer steps
  bool makes_batch = false;

  StepKind() = default;
  explicit StepKind(const Batch& batch);
  bool operator==(const StepKind&) const = default;
};

// What the host knows of a model's gradients.
struct KnownGradients {
  struct Of {
    Tensor parameter;
    bool has;
    kernels::ZeroPattern zeros;  // in their memory
  };
  std::vector<Of> of;
  static KnownGradients now(const std::vector<Tensor>& parameters);
  void restore() const;
};

struct StepGraph {
  StepKind kind;
  int64_t count = 1;   // steps in a launch
  int64_t number = 0;  // of the fit's captures, from 1
  Batch batch;         // where the step reads its batch, or makes it; the last step's
  Tensor loss;         // the last step's, until the next launch
  std::vector<std::vector<MetricStore::Record>> logged;  // by step; keep_logged() has run
  KnownGradients after;                                  // what the last step leaves
  CapturedGraph graph;
};

// Values that somebody may ask for after other graphs were launched: of each name the last.
void keep_logged(Capture& capture, StepGraph& steps);

class StepGraphs {
 public:
  static constexpr int64_t kWarmUp =
      3;                              // steps before anything is captured, one at least of a kind
  static constexpr size_t kMost = 4;  // graphs
  static constexpr int64_t kCounts[] = {16, 4, 1};

  // For the next capture.
  int64_t next_number() { return ++captures_; }

  // Steps run one by one from now on.
  void stop();
  bool stopped() const { return stopped_; }

  // Null where there is none of that kind and count.
  StepGraph* find(const StepKind& kind, int64_t count);
  // Whether a graph of this kind may be captured now.
  bool ready(const StepKind& kind) const;
  StepGraph* add(std::unique_ptr<StepGraph> graph);
  void drop(const StepGraph* graph);
  // A step of this kind ran by itself.
  void count(const StepKind& kind);

  // The state of the model that kernels depend on without reading it from the device: where its
  // tensors lie, what is trained, what is in training mode. Graphs of another one are dropped.
  void set_model(uint64_t model);

  // The memory of all graphs: they are launched one after another.
  const GraphPool& pool(Device device);

 private:
  std::vector<std::unique_ptr<StepGraph>> graphs_;
  GraphPool pool_;
  std::vector<StepKind> seen_;
  int64_t steps_ = 0, captures_ = 0;
  uint64_t model_ = 0;
  bool stopped_ = false;
};

}  // namespace cairn::trainer
