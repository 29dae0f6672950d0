// Random tensors. Elements are numbered in row-major order whatever the memory layout.
#include "cairn/tensor/random.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

// Reserves the draw's blocks and hands it to the tensor's device. f64 takes a block an element,
// narrower dtypes a word.
void draw_into(const Tensor& t, const char* op, Generator& generator, RandomDraw draw) {
  check(is_floating(t.dtype()), op, ": dtype must be floating, got ", t.dtype());
  for (size_t d = 0; d < t.shape().size(); ++d)
    check(t.strides()[d] != 0 || t.shape()[d] <= 1, op,
          ": tensor must not be expanded, got strides ", t.strides());
  const int64_t n = t.numel();
  draw.offset = generator.reserve(t.dtype() == DType::f64 ? checked_mul(4, n, op) : n);
  draw.seed = generator.seed();
  if (n > 0) backend_of(t.device().type, op).random(t, draw);
  t.bump_version(op);
}

// The largest value of a half type that is not above f.
template <class T>
float at_most(float f) {
  T near(f);
  if (near <= f) return near;
  if ((near.bits & 0x7fff) == 0)
    near.bits = 0x8001;
  else
    near.bits = static_cast<uint16_t>(near.bits + (near.bits & 0x8000 ? 1 : -1));
  return near;
}

// The largest value below `high` that `dtype` holds.
double below(double high, DType dtype) {
  if (dtype == DType::f64) return std::nextafter(high, -HUGE_VAL);
  const auto narrow = static_cast<float>(high);
  const float f = narrow < high ? narrow : std::nextafter(narrow, -HUGE_VALF);
  if (dtype == DType::f32) return f;
  return dtype == DType::bf16 ? at_most<bfloat16>(f) : at_most<float16>(f);
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
  draw_into(t, "uniform_", generator,
            {.kind = RandomDraw::Kind::uniform, .a = low, .b = high, .top = top});
}

void normal_(const Tensor& t, double mean, double std, Generator& generator) {
  check(std >= 0, "normal_: std must not be negative, got ", std);
  draw_into(t, "normal_", generator, {.kind = RandomDraw::Kind::normal, .a = mean, .b = std});
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
