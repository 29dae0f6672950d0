// Embedding rows and dropout.
// Invariant: a row of the weight's gradient is summed by one thread in order of the indices; a
// dropped element depends on seed, offset and its own number alone.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/embedding.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cairn/kernels/cpu/float_tables.h"
#include "cairn/kernels/embedding.h"
#include "cairn/tensor/parallel.h"

#ifndef CAIRN_KERNELS_CPU_EMBEDDING_ONCE
#define CAIRN_KERNELS_CPU_EMBEDDING_ONCE
namespace cairn::kernels::cpu {
constexpr int64_t kDropoutBlocks = 32;  // Philox blocks computed side by side
constexpr int64_t kDropoutWords = 4 * kDropoutBlocks;

// Up to kDropoutWords elements, from a whole number of Philox blocks on.
template <class T>
struct DropoutPiece {
  const T* x;
  T* out;
  int64_t count;
  uint64_t seed, counter;
  uint32_t threshold;  // kept where the upper 24 bits of the word reach it
  Accumulate<T> scale;
  bool add;
};
template <class T>
using DropoutFn = void (*)(const DropoutPiece<T>&);
}  // namespace cairn::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

// The upper 24 bits of the words of blocks counter … counter + kDropoutBlocks - 1, in order. The
// same ten rounds as philox(), laid out so that the loop over blocks becomes vectors.
inline void philox_words(uint64_t seed, uint64_t counter, uint32_t* out) {
  alignas(64) uint32_t words[4][kDropoutBlocks];
  for (int64_t b = 0; b < kDropoutBlocks; ++b) {
    const uint64_t c = counter + static_cast<uint64_t>(b);
    words[0][b] = static_cast<uint32_t>(c);
    words[1][b] = static_cast<uint32_t>(c >> 32);
    words[2][b] = words[3][b] = 0;
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t b = 0; b < kDropoutBlocks; ++b) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * words[0][b];
      const uint64_t p1 = uint64_t{0xCD9E8D57u} * words[2][b];
      const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ words[1][b] ^ k0;
      const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ words[3][b] ^ k1;
      words[1][b] = static_cast<uint32_t>(p1);
      words[3][b] = static_cast<uint32_t>(p0);
      words[0][b] = n0;
      words[2][b] = n2;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int64_t b = 0; b < kDropoutBlocks; ++b)
    for (int64_t w = 0; w < 4; ++w) out[4 * b + w] = words[w][b] >> 8;
}

// No branch on the random bit: it would be mispredicted half the time.
template <class T>
void dropout_piece(const DropoutPiece<T>& p) {
  using Acc = Accumulate<T>;
  alignas(64) uint32_t words[kDropoutWords];
  philox_words(p.seed, p.counter, words);
  const T* x = p.x;
  T* out = p.out;
  const uint32_t threshold = p.threshold;
  const Acc scale = p.scale;
  if (p.add) {
    for (int64_t i = 0; i < p.count; ++i) {
      const Acc v = static_cast<Acc>(x[i]) * scale;
      out[i] = static_cast<T>(static_cast<Acc>(out[i]) + (words[i] >= threshold ? v : Acc(0)));
    }
  } else {
    for (int64_t i = 0; i < p.count; ++i) {
      const Acc v = static_cast<Acc>(x[i]) * scale;
      out[i] = static_cast<T>(words[i] >= threshold ? v : Acc(0));
    }
  }
}
template <class T>
DropoutFn<T> dropout_fn() {
  return dropout_piece<T>;
}
CAIRN_FLOAT_TABLES(DropoutFn, dropout_fn)

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
namespace cpu {
namespace {

CAIRN_BEST_FLOAT_TABLES(DropoutFn, dropout_fn)

constexpr int64_t kGrain = 1 << 14;  // elements worth another thread

void cpu_embedding_fwd(Out out, In weight, In index) {
  const int64_t rows = weight.size(0), width = weight.size(1), n = index.numel();
  const int64_t* at = index.data<int64_t>();
  for (int64_t i = 0; i < n; ++i)
    check(at[i] >= 0 && at[i] < rows, "embedding: index must be in [0, ", rows, "), got ", at[i],
          " at position ", i);
  dispatch(weight.dtype(), [&]<class T>() {
    const T* from = weight.data<T>();
    T* to = out.data<T>();
    const int64_t row_stride = weight.stride(0), step = weight.stride(1);
    parallel_for(0, n, 1 + kGrain / std::max<int64_t>(1, width), [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        const T* row = from + at[i] * row_stride;
        if (step == 1 || width == 1)
          std::memcpy(to + i * width, row, static_cast<size_t>(width) * sizeof(T));
        else
          for (int64_t c = 0; c < width; ++c) to[i * width + c] = row[c * step];
      }
    });
  });
}

void cpu_embedding_bwd(Out dweight, In dout, In index, int64_t skip) {
  const int64_t rows = dweight.size(0), width = dweight.size(1), n = index.numel();
  const int64_t* at = index.data<int64_t>();
  dispatch_floating(dweight.dtype(), "embedding", [&]<class T>() {
    T* to = dweight.data<T>();
    const T* from = dout.data<T>();
    const int64_t row_stride = dweight.stride(0), step = dweight.stride(1);
    // Each piece of the vocabulary reads all indices and takes its own: one writer per row.
    const int64_t grain = n * width < kGrain ? rows : std::max<int64_t>(1, rows / 16);
    parallel_for(0, rows, grain, [&](int64_t lo, int64_t hi) {
      for (int64_t i = 0; i < n; ++i) {
        if (at[i] < lo || at[i] >= hi || at[i] == skip) continue;
        T* row = to + at[i] * row_stride;
        const T* add = from + i * width;
        if (step == 1)
          for (int64_t c = 0; c < width; ++c) row[c] = static_cast<T>(row[c] + add[c]);
        else
          for (int64_t c = 0; c < width; ++c)
            row[c * step] = static_cast<T>(row[c * step] + add[c]);
      }
    });
  });
}

void cpu_dropout_apply(const Dst& out, In x_tensor, const DropoutParams& params) {
  dispatch_floating(x_tensor.dtype(), "dropout", [&]<class T>() {
    const int64_t n = x_tensor.numel();
    const T* x = x_tensor.data<T>();
    T* y = out.tensor.data<T>();
    const auto fn = best_dropout_fn<T>();
    // A word counts as its upper 24 bits over 2^24, as uniform_float has it.
    const auto threshold = static_cast<uint32_t>(std::ceil(params.p * 0x1p24));
    parallel_for(0, (n + kDropoutWords - 1) / kDropoutWords, 32, [&](int64_t lo, int64_t hi) {
      for (int64_t piece = lo; piece < hi; ++piece) {
        const int64_t start = piece * kDropoutWords;
        fn({x + start, y + start, std::min(kDropoutWords, n - start), params.seed,
            params.offset + static_cast<uint64_t>(piece * kDropoutBlocks), threshold,
            static_cast<Accumulate<T>>(params.scale), out.add});
      }
    });
  });
}

}  // namespace
}  // namespace cpu

Slot<void(Out, In, In)> embedding_fwd{"embedding_fwd", cpu::cpu_embedding_fwd};
Slot<void(Out, In, In, int64_t)> embedding_bwd{"embedding_bwd", cpu::cpu_embedding_bwd};
Slot<void(const Dst&, In, const DropoutParams&)> dropout_apply{"dropout_apply",
                                                               cpu::cpu_dropout_apply};

}  // namespace cairn::kernels
#endif  // HWY_ONCE
