// Random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC11). Invariant: element i of a draw depends on seed, offset, dtype and i alone, so the numbers
// are the same for every thread count and device; normal ones to rounding between instruction sets.
#pragma once

#include <array>
#include <cstdint>

#include "cairn/tensor/factory.h"
#include "cairn/tensor/tensor.h"

namespace cairn {

// Ten rounds of Philox on one counter: four independent 32-bit numbers.
constexpr std::array<uint32_t, 4> philox(uint64_t seed, uint64_t counter, uint64_t stream = 0) {
  uint32_t c[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                   static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[1] = static_cast<uint32_t>(p1);
    c[3] = static_cast<uint32_t>(p0);
    c[0] = n0;
    c[2] = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c[0], c[1], c[2], c[3]};
}

// Number i (any i >= 0) of the stream that starts at `offset`: word i % 4 of block offset + i / 4.
constexpr uint32_t philox_word(uint64_t seed, uint64_t offset, uint64_t i) {
  return philox(seed, offset + i / 4)[i % 4];
}

// 24 random bits as a float in [0, 1).
constexpr float uniform_float(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }
// 53 bits of two words as a double in [0, 1).
constexpr double uniform_double(uint32_t high, uint32_t low) {
  return static_cast<double>((uint64_t{high} << 21) ^ (low >> 11)) * 0x1p-53;
}

// A seed and the number of blocks already used.
class Generator {
 public:
  explicit Generator(uint64_t seed = 0) : seed_(seed) {}

  uint64_t seed() const { return seed_; }
  uint64_t offset() const { return offset_; }
  void set_state(uint64_t seed, uint64_t offset) {
    seed_ = seed;
    offset_ = offset;
  }
  // Reserves blocks for `count` words and returns the first one's offset.
  uint64_t reserve(int64_t count) {
    const uint64_t start = offset_;
    offset_ += (static_cast<uint64_t>(count) + 3) / 4;
    return start;
  }

 private:
  uint64_t seed_;
  uint64_t offset_ = 0;
};

// The calling thread's generator, used where none is given.
Generator& default_generator();
// Seeds it and sets its offset to 0.
void manual_seed(uint64_t seed);

// In place; floating dtypes only. uniform_: [low, high). normal_: Box-Muller on pairs of words. f64
// takes four words an element (53-bit numbers), f32, bf16 and f16 one (24 bits; radius and angle
// 32).
void uniform_(const Tensor& t, double low = 0, double high = 1,
              Generator& generator = default_generator());
void normal_(const Tensor& t, double mean = 0, double std = 1,
             Generator& generator = default_generator());

Tensor rand(const Shape& shape, const TensorOptions& options = {},
            Generator& generator = default_generator());
Tensor randn(const Shape& shape, const TensorOptions& options = {},
             Generator& generator = default_generator());
// Integers in [low, high).
Tensor randint(int64_t low, int64_t high, const Shape& shape,
               const TensorOptions& options = {.dtype = DType::i64},
               Generator& generator = default_generator());
// A permutation of 0 … n-1 (Fisher-Yates), i64.
Tensor randperm(int64_t n, Generator& generator = default_generator());

}  // namespace cairn
