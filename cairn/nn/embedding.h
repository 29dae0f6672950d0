// Embedding and Dropout.
#pragma once

#include <optional>

#include "cairn/nn/container.h"

namespace cairn::nn {

struct EmbeddingOptions {
  // A row that is zero at first and gets no gradient; negative counts from the end.
  std::optional<int64_t> padding_idx = {};
  DType dtype = DType::f32;
};

// Indices (i64 or i32) of any shape -> [..., embedding_dim].
class Embedding final : public Layer {
 public:
  Embedding(int64_t num_embeddings, int64_t embedding_dim, const EmbeddingOptions& options = {})
      : Embedding(Child{}, num_embeddings, embedding_dim, options) {}
  Embedding(const Child& place, int64_t num_embeddings, int64_t embedding_dim,
            const EmbeddingOptions& options = {});
  Tensor forward(const Tensor& indices) override;

  const Tensor weight;  // [num_embeddings, embedding_dim], standard normal

 private:
  std::optional<int64_t> padding_idx_;
};

// In training zeroes elements with probability p and scales the rest by 1 / (1 - p).
class Dropout final : public Layer {
 public:
  explicit Dropout(double p = 0.5) : Dropout(Child{}, p) {}
  explicit Dropout(const Child& place, double p = 0.5);
  Tensor forward(const Tensor& x) override;

 private:
  double p_;
};

}  // namespace cairn::nn
