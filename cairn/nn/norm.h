// Batch and layer normalisation with their weights and running statistics.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "cairn/autograd/ops/norm.h"
#include "cairn/nn/container.h"

namespace cairn::nn {

struct BatchNormOptions {
  double eps = 1e-5;
  // Share of the new batch in the running statistics; absent: the plain average of all batches.
  std::optional<double> momentum = 0.1;
  bool affine = true;
  // Off: no running statistics; evaluation uses the batch's own as well.
  bool track_running_stats = true;
  DType dtype = DType::f32;
};

class BatchNorm : public Layer {
 public:
  Tensor forward(const Tensor& x) override;
  // relu(forward(x) + residual) in one pass over memory; residual may be undefined.
  Tensor forward_relu(const Tensor& x, const Tensor& residual = {});

  // From now on, statistics in training are of all replicas' batches; null: of one's own.
  void set_replicas(std::shared_ptr<const BatchReplicas> replicas) {
    replicas_ = std::move(replicas);
  }

  const Tensor weight;               // [C], 1; undefined when not affine
  const Tensor bias;                 // [C], 0; undefined when not affine
  const Tensor running_mean;         // [C], 0; undefined without running statistics
  const Tensor running_var;          // [C], 1; likewise
  const Tensor num_batches_tracked;  // 0-d i64; likewise

 protected:
  BatchNorm(const Child& place, const char* op, int64_t features, const BatchNormOptions& options);
  virtual bool accepts(int64_t rank) const = 0;

 private:
  // Counts a training batch and returns the momentum it has.
  double begin(const Tensor& x);
  bool batch_statistics() const { return training() || !running_mean.defined(); }

  const char* op_;
  BatchNormOptions options_;
  std::shared_ptr<const BatchReplicas> replicas_;
};

// Over [N, C] or [N, C, L], per channel.
class BatchNorm1d final : public BatchNorm {
 public:
  explicit BatchNorm1d(int64_t features, const BatchNormOptions& options = {})
      : BatchNorm1d(Child{}, features, options) {}
  BatchNorm1d(const Child& place, int64_t features, const BatchNormOptions& options = {})
      : BatchNorm(place, "batch_norm1d", features, options) {}

 private:
  bool accepts(int64_t rank) const override { return rank == 2 || rank == 3; }
};

// Over [N, C, H, W], per channel.
class BatchNorm2d final : public BatchNorm {
 public:
  explicit BatchNorm2d(int64_t features, const BatchNormOptions& options = {})
      : BatchNorm2d(Child{}, features, options) {}
  BatchNorm2d(const Child& place, int64_t features, const BatchNormOptions& options = {})
      : BatchNorm(place, "batch_norm2d", features, options) {}

 private:
  bool accepts(int64_t rank) const override { return rank == 4; }
};

struct LayerNormOptions {
  double eps = 1e-5;
  bool elementwise_affine = true;
  bool bias = true;
  DType dtype = DType::f32;
};

// Over the last dimensions, whose sizes are normalized_shape.
class LayerNorm final : public Layer {
 public:
  explicit LayerNorm(const Shape& normalized_shape, const LayerNormOptions& options = {})
      : LayerNorm(Child{}, normalized_shape, options) {}
  LayerNorm(const Child& place, const Shape& normalized_shape,
            const LayerNormOptions& options = {});
  Tensor forward(const Tensor& x) override;

  const Tensor weight;  // normalized_shape, 1; undefined when not affine
  const Tensor bias;    // normalized_shape, 0; undefined when not wanted

 private:
  Shape normalized_shape_;
  double eps_;
};

}  // namespace cairn::nn
