// Random tensors. Elements are numbered in row-major order whatever the memory layout.
#include "cairn/tensor/random.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <numeric>

#include "cairn/tensor/parallel.h"
#include "cairn/tensor/random_fill.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

constexpr int64_t kGrain = 1 << 13;

// 53 bits in [0, 1) from two words.
double uniform_double(uint32_t high, uint32_t low) {
  return static_cast<double>((uint64_t{high} << 21) ^ (low >> 11)) * 0x1p-53;
}

// Draws into t: f64 from value(four words of block i) for element i; narrower dtypes from
// fill(out, begin, end, seed, offset), a stretch of f32 numbers made from a word each.
template <class Value, class Fill>
void draw(const Tensor& t, const char* op, Generator& generator, Value&& value, Fill&& fill) {
  check(is_floating(t.dtype()), op, ": dtype must be floating, got ", t.dtype());
  for (size_t d = 0; d < t.shape().size(); ++d)
    check(t.strides()[d] != 0 || t.shape()[d] <= 1, op,
          ": tensor must not be expanded, got strides ", t.strides());
  const int64_t n = t.numel();
  const bool wide = t.dtype() == DType::f64;
  const uint64_t offset = generator.reserve(wide ? checked_mul(4, n, op) : n);
  const uint64_t seed = generator.seed();
  // Elements [lo, hi) in row-major order; lo is a multiple of 4, the start of a block of words.
  const auto stretch = [&](const Tensor& out, int64_t at, int64_t lo, int64_t hi) {
    if (wide) {
      double* const to = out.data<double>() + at;
      for (int64_t i = lo; i < hi; ++i)
        to[i - lo] = value(philox(seed, offset + static_cast<uint64_t>(i)));
    } else if (t.dtype() == DType::f32) {
      fill(out.data<float>() + at, lo, hi, seed, offset);
    } else {
      constexpr int64_t kBlock = 1024;
      float block[kBlock];
      bfloat16* const to = out.data<bfloat16>() + at;
      for (int64_t i = lo; i < hi; i += kBlock) {
        const int64_t end = std::min(i + kBlock, hi);
        fill(block, i, end, seed, offset);
        for (int64_t j = i; j < end; ++j) to[j - lo] = bfloat16(block[j - i]);
      }
    }
  };
  if (t.device() == kCPU && !t.is_contiguous()) {
    // By rows of the first dimension, through a piece that stays in cache.
    constexpr int64_t kRows = 16;
    const int64_t rows = t.size(0);
    parallel_for(0, (rows + kRows - 1) / kRows, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t lo = i * kRows, hi = std::min(lo + kRows, rows);
        const Tensor place = raw::slice(t, 0, lo, hi);
        const Tensor piece = empty(place.shape(), {t.dtype()});
        stretch(piece, 0, lo * (n / rows), hi * (n / rows));
        raw::copy_(place, piece);
      }
    });
  } else {
    const Tensor host = t.device() == kCPU ? t : empty(t.shape(), {t.dtype()});
    parallel_for(0, (n + 3) / 4, kGrain / 4, [&](int64_t first, int64_t last) {
      stretch(host, 4 * first, 4 * first, std::min(4 * last, n));
    });
    if (!host.same_as(t)) raw::copy_(t, host);
  }
  t.bump_version(op);
}

// The largest value below `high` that `dtype` holds.
double below(double high, DType dtype) {
  if (dtype == DType::f64) return std::nextafter(high, -HUGE_VAL);
  const auto narrow = static_cast<float>(high);
  const float f = narrow < high ? narrow : std::nextafter(narrow, -HUGE_VALF);
  if (dtype == DType::f32) return f;
  const auto cut = std::bit_cast<float>(std::bit_cast<uint32_t>(f) & 0xffff0000u);  // towards 0
  if (cut <= f) return cut;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(cut) + 0x10000u);  // negative: away from 0
}

}  // namespace

Generator& default_generator() {
  thread_local Generator generator;
  return generator;
}

void manual_seed(uint64_t seed) { default_generator().set_state(seed, 0); }

void uniform_(const Tensor& t, double low, double high, Generator& generator) {
  check(std::isfinite(low) && std::isfinite(high) && low <= high,
        "uniform_: low and high must be finite with low <= high, got ", low, " and ", high);
  // Rounding to the dtype must not reach `high`.
  const double top = std::max(low, below(high, t.dtype()));
  draw(
      t, "uniform_", generator,
      [&](const std::array<uint32_t, 4>& w) {
        return std::min(top, low + (high - low) * uniform_double(w[0], w[1]));
      },
      [&](float* out, int64_t begin, int64_t end, uint64_t seed, uint64_t offset) {
        detail::fill_uniform(out, begin, end, seed, offset);
        if (low == 0 && high == 1 && t.dtype() == DType::f32) return;
        for (int64_t i = 0; i < end - begin; ++i)
          out[i] =
              static_cast<float>(std::min(top, low + (high - low) * static_cast<double>(out[i])));
      });
}

void normal_(const Tensor& t, double mean, double std, Generator& generator) {
  check(std >= 0, "normal_: std must not be negative, got ", std);
  draw(
      t, "normal_", generator,
      [&](const std::array<uint32_t, 4>& w) {
        // 1 - u lies in (0, 1], so the logarithm is finite.
        const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform_double(w[0], w[1])));
        return mean + std * radius * std::cos(2.0 * std::numbers::pi * uniform_double(w[2], w[3]));
      },
      [&](float* out, int64_t begin, int64_t end, uint64_t seed, uint64_t offset) {
        detail::fill_normal(out, begin, end, seed, offset, static_cast<float>(mean),
                            static_cast<float>(std));
      });
}

Tensor rand(const Shape& shape, const TensorOptions& options, Generator& generator) {
  Tensor out = empty(shape, options);
  uniform_(out, 0, 1, generator);
  return out;
}

Tensor randn(const Shape& shape, const TensorOptions& options, Generator& generator) {
  Tensor out = empty(shape, options);
  normal_(out, 0, 1, generator);
  return out;
}

Tensor randint(int64_t low, int64_t high, const Shape& shape, const TensorOptions& options,
               Generator& generator) {
  check(low < high, "randint: low must be below high, got ", low, " and ", high);
  Tensor host = empty(shape, {DType::i64});
  int64_t* out = host.data<int64_t>();
  const uint64_t offset = generator.reserve(4 * host.numel());
  const uint64_t range = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
  for (int64_t i = 0; i < host.numel(); ++i) {
    const auto w = philox(generator.seed(), offset + static_cast<uint64_t>(i));
    const uint64_t bits = (uint64_t{w[0]} << 32) | w[1];
    // The high half of a 128-bit product maps 64 bits to [0, range) with a bias below 2^-64 range.
    const auto value = static_cast<uint64_t>((static_cast<unsigned __int128>(bits) * range) >> 64);
    out[i] = static_cast<int64_t>(static_cast<uint64_t>(low) + value);
  }
  return raw::to(host, options.dtype, options.device);
}

Tensor randperm(int64_t n, Generator& generator) {
  check(n >= 0, "randperm: n must not be negative, got ", n);
  Tensor out = empty({n}, {DType::i64});
  int64_t* p = out.data<int64_t>();
  std::iota(p, p + n, int64_t{0});
  const uint64_t offset = generator.reserve(4 * n);
  for (int64_t i = n - 1; i > 0; --i) {
    const auto w = philox(generator.seed(), offset + static_cast<uint64_t>(i));
    const uint64_t bits = (uint64_t{w[0]} << 32) | w[1];
    const auto j = static_cast<int64_t>(
        (static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(i + 1)) >> 64);
    std::swap(p[i], p[j]);
  }
  return out;
}

}  // namespace cairn
