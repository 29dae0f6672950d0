// Embedding and Dropout.
#include "cairn/nn/embedding.h"

#include "cairn/autograd/ops/embedding.h"
#include "cairn/nn/init.h"
#include "cairn/tensor/raw.h"

namespace cairn::nn {
namespace {

Tensor make_table(int64_t rows, int64_t columns, const EmbeddingOptions& options) {
  check(rows >= 0 && columns >= 0,
        "embedding: num_embeddings and embedding_dim must not be negative, got ", rows, " and ",
        columns);
  const Tensor table = empty({rows, columns}, {options.dtype});
  init::normal_(table);
  if (options.padding_idx) {
    const int64_t row = *options.padding_idx;
    check(row >= -rows && row < rows, "embedding: padding_idx must lie in [", -rows, ", ", rows,
          "), got ", row);
    raw::fill_(raw::select(table, 0, row), 0);
  }
  return table;
}

}  // namespace

Embedding::Embedding(const Child& place, int64_t num_embeddings, int64_t embedding_dim,
                     const EmbeddingOptions& options)
    : Layer(place),
      weight(parameter("weight", make_table(num_embeddings, embedding_dim, options))),
      padding_idx_(options.padding_idx) {}

Tensor Embedding::forward(const Tensor& indices) {
  return embedding(weight, indices, padding_idx_);
}

Dropout::Dropout(const Child& place, double p) : Layer(place), p_(p) {
  check(p >= 0 && p <= 1, "dropout: p must lie in [0, 1], got ", p);
}

Tensor Dropout::forward(const Tensor& x) { return dropout(x, p_, training()); }

}  // namespace cairn::nn
