// The models that the library does not have: a multi-layer perceptron and a transformer encoder.
// Invariant: names, order and arithmetic are those of bench/peer_models.py.
#pragma once

#include <cairn/cairn.h>

#include <cmath>

namespace cairn::bench {

struct Mlp final : nn::Layer {
  nn::Linear fc1{child("fc1"), 784, 1024};
  nn::Linear fc2{child("fc2"), 1024, 1024};
  nn::Linear fc3{child("fc3"), 1024, 10};

  Tensor forward(const Tensor& x) override { return fc3(relu(fc2(relu(fc1(flatten(x, 1)))))); }
};

inline constexpr int64_t kWidth = 256, kHeads = 8, kInner = 1024, kBlocks = 4;

// A pre-norm block: x + attention(norm1(x)), then x + mlp(norm2(x)).
struct EncoderBlock final : nn::Layer {
  explicit EncoderBlock(const nn::Child& place) : nn::Layer(place) {}

  nn::LayerNorm norm1{child("norm1"), Shape{kWidth}};
  nn::Linear qkv{child("qkv"), kWidth, 3 * kWidth};
  nn::Linear proj{child("proj"), kWidth, kWidth};
  nn::LayerNorm norm2{child("norm2"), Shape{kWidth}};
  nn::Linear up{child("up"), kWidth, kInner};
  nn::Linear down{child("down"), kInner, kWidth};

  Tensor forward(const Tensor& x) override {
    const Tensor y = add(x, attention(norm1(x)));
    return add(y, down(gelu(up(norm2(y)))));
  }

  // Every token attends to every token. x [batch, tokens, width].
  Tensor attention(const Tensor& x) {
    const int64_t batch = x.size(0), tokens = x.size(1), depth = kWidth / kHeads;
    // [3, batch, heads, tokens, depth]
    const Tensor parts = permute(view(qkv(x), {batch, tokens, 3, kHeads, depth}), {2, 0, 3, 1, 4});
    const Tensor q = select(parts, 0, 0), k = select(parts, 0, 1), v = select(parts, 0, 2);
    const double scale = 1.0 / std::sqrt(static_cast<double>(depth));
    const Tensor weights = softmax(mul(matmul(q, transpose(k, -2, -1)), scale), -1);
    return proj(reshape(transpose(matmul(weights, v), 1, 2), {batch, tokens, kWidth}));
  }
};

// x [batch, tokens, width] -> logits [batch, 10], from the mean over the tokens.
struct Encoder final : nn::Layer {
  nn::ModuleList<EncoderBlock> blocks{child("blocks")};
  nn::LayerNorm norm{child("norm"), Shape{kWidth}};
  nn::Linear head{child("head"), kWidth, 10};

  Encoder() {
    for (int64_t i = 0; i < kBlocks; ++i) blocks.emplace();
  }

  Tensor forward(const Tensor& x) override {
    Tensor y = x;
    for (size_t i = 0; i < blocks.size(); ++i) y = blocks[i](y);
    return head(mean(norm(y), {1}));
  }
};

}  // namespace cairn::bench
