// The small cache of captured steps.
// Invariant: see step_graph.h.
#include "cairn/trainer/step_graph.h"

#include <algorithm>
#include <utility>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/node.h"

namespace cairn::trainer {

StepKind::StepKind(const Batch& batch) {
  if (batch.input.defined()) {
    input = batch.input.shape();
    input_strides = batch.input.strides();
    input_dtype = batch.input.dtype();
  }
  if (batch.target.defined()) {
    target = batch.target.shape();
    target_strides = batch.target.strides();
    target_dtype = batch.target.dtype();
  }
}

KnownGradients KnownGradients::now(const std::vector<Tensor>& parameters) {
  KnownGradients out;
  for (const Tensor& p : parameters)
    if (const AutogradMeta* meta = autograd_meta(p))
      out.of.push_back({p, meta->has_grad, memory_zeros(p)});
  return out;
}

void KnownGradients::restore() const {
  for (const auto& [p, has, zeros] : of)
    if (AutogradMeta* meta = autograd_meta(p)) {
      meta->has_grad = has;
      set_memory_zeros(p, zeros);
    }
}

void keep_logged(Capture& capture, StepGraph& steps) {
  std::vector<const MetricStore::Entry*> kept;
  for (auto logged = steps.logged.rbegin(); logged != steps.logged.rend(); ++logged)
    for (auto record = logged->rbegin(); record != logged->rend(); ++record) {
      if (std::find(kept.begin(), kept.end(), record->entry) != kept.end()) continue;
      kept.push_back(record->entry);
      record->value = capture.keep(record->value);
    }
}

void StepGraphs::stop() {
  graphs_.clear();
  pool_ = {};
  stopped_ = true;
}

StepGraph* StepGraphs::find(const StepKind& kind, int64_t count) {
  for (const auto& graph : graphs_)
    if (graph->count == count && graph->kind == kind) return graph.get();
  return nullptr;
}

bool StepGraphs::ready(const StepKind& kind) const {
  return steps_ >= kWarmUp && graphs_.size() < kMost &&
         std::find(seen_.begin(), seen_.end(), kind) != seen_.end();
}

StepGraph* StepGraphs::add(std::unique_ptr<StepGraph> graph) {
  graphs_.push_back(std::move(graph));
  return graphs_.back().get();
}

void StepGraphs::drop(const StepGraph* graph) {
  std::erase_if(graphs_, [graph](const auto& other) { return other.get() == graph; });
}

void StepGraphs::count(const StepKind& kind) {
  ++steps_;
  // Shapes that change at every batch must not fill the memory.
  if (seen_.size() < 4 * kMost && std::find(seen_.begin(), seen_.end(), kind) == seen_.end())
    seen_.push_back(kind);
}

void StepGraphs::set_model(uint64_t model) {
  if (model != model_) {
    graphs_.clear();
    pool_ = {};
    seen_.clear();  // the next step makes what the other model needs
  }
  model_ = model;
}

const GraphPool& StepGraphs::pool(Device device) {
  if (!pool_.defined()) pool_ = graph_pool_handle(device);
  return pool_;
}

}  // namespace cairn::trainer
