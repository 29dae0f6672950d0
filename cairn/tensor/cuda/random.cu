// The device's draws of random numbers.
// Invariant: element i of the row-major order gets the CPU's number: uniform ones bit for bit (so
// products and sums are rounded one by one), normal ones to rounding.
#include "cairn/tensor/cuda/random.h"

#include <cmath>
#include <numbers>

#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/cuda/graph.h"
#include "cairn/tensor/cuda/philox.cuh"
#include "cairn/tensor/shape.h"

namespace cairn::cuda {
namespace {

struct Draw {
  Stream stream;
  double a, width, top;  // uniform: a + width * u, at most top; normal: mean a, deviation width
  bool normal;
  bool plain;  // uniform in [0, 1): u itself
};

__device__ double wide_number(const Draw& draw, const uint32_t (&w)[4]) {
  const double u = uniform_double(w[0], w[1]);
  if (!draw.normal) {
    const double x = __dadd_rn(draw.a, __dmul_rn(draw.width, u));
    return x < draw.top ? x : draw.top;
  }
  // 1 - u lies in (0, 1], so the logarithm is finite.
  const double radius = std::sqrt(-2.0 * std::log(1.0 - u));
  return draw.a +
         draw.width * radius * std::cos(2.0 * std::numbers::pi * uniform_double(w[2], w[3]));
}

struct Pair {
  float even, odd;
};

// Box and Muller 1958 on a word for the radius and one for the angle. The angle is a whole number
// of quarter turns, exactly, from the word's top bits, and a rest in [-pi/4, pi/4], where Taylor's
// polynomials of these degrees are within 3e-8.
__device__ Pair normal_pair(uint32_t radius_word, uint32_t angle_word) {
  const float u = static_cast<float>(static_cast<int32_t>(radius_word >> 1)) * 0x1p-31f;
  const float radius = std::sqrt(-2.0f * std::log(u > 0x1p-32f ? u : 0x1p-32f));
  constexpr uint32_t kEighth = 0x20000000u;
  const uint32_t shifted = angle_word + kEighth;
  const auto rest = static_cast<int32_t>((shifted & 0x3fffffffu) - kEighth);
  const float x = static_cast<float>(rest) * (0x1p-30f * 1.57079632679489662f);
  const float x2 = x * x;
  float sin = __fmaf_rn(x2, 2.7557319e-6f, -1.9841270e-4f);
  sin = __fmaf_rn(x2, sin, 8.3333333e-3f);
  sin = __fmaf_rn(x2, sin, -1.6666667e-1f);
  sin = __fmaf_rn(x2 * x, sin, x);
  float cos = __fmaf_rn(x2, 2.4801587e-5f, -1.3888889e-3f);
  cos = __fmaf_rn(x2, cos, 4.1666667e-2f);
  cos = __fmaf_rn(x2, cos, -0.5f);
  cos = __fmaf_rn(x2, cos, 1.0f);
  const uint32_t quarter = shifted >> 30;
  const bool swapped = (quarter & 1) != 0;
  const float c = swapped ? sin : cos;
  const float s = swapped ? cos : sin;
  return {radius * (quarter == 1 || quarter == 2 ? -c : c), radius * (quarter >= 2 ? -s : s)};
}

// The numbers of one block, for f32 and narrower.
__device__ void narrow_numbers(const Draw& draw, const uint32_t (&w)[4], float (&out)[4]) {
  if (draw.normal) {
    const auto mean = static_cast<float>(draw.a);
    const auto deviation = static_cast<float>(draw.width);
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const Pair z = normal_pair(w[k], w[k + 1]);
      out[k] = __fmaf_rn(deviation, z.even, mean);
      out[k + 1] = __fmaf_rn(deviation, z.odd, mean);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float u = uniform_float(w[k]);
    const double x = __dadd_rn(draw.a, __dmul_rn(draw.width, static_cast<double>(u)));
    out[k] = draw.plain ? u : static_cast<float>(x < draw.top ? x : draw.top);
  }
}

// walk: the row-major number of an element (operand 0) and its place in memory (operand 1). A
// thread takes one block of words: 4 elements, or one of f64.
template <class T>
__global__ void __launch_bounds__(256) draw_numbers(T* to, Draw draw, Walk<2> walk, bool vectors) {
  constexpr int kEach = sizeof(T) == 8 ? 1 : 4;
  const int64_t first = walk.base[0];
  const int64_t block = first / kEach + global_thread();
  const int64_t at = block * kEach;
  const int64_t end = first + walk.numel;
  if (at >= end) return;
  uint32_t words[4];
  draw.stream.words(static_cast<uint64_t>(block), words);
  Vector<T, kEach> out;
  if constexpr (kEach == 1) {
    out.value[0] = wide_number(draw, words);
  } else {
    float numbers[4];
    narrow_numbers(draw, words, numbers);
#pragma unroll
    for (int k = 0; k < 4; ++k) out.value[k] = narrow<T>(numbers[k]);
  }
  if (vectors && at + kEach <= end) {
    *reinterpret_cast<Vector<T, kEach>*>(to + at) = out;
    return;
  }
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = at + k;
    if (i >= first && i < end)
      to[walk.offsets(static_cast<uint32_t>(i - first)).at[1]] = out.value[k];
  }
}

}  // namespace

void random_on_device(const Tensor& t, const RandomDraw& draw) {
  const bool normal = draw.kind == RandomDraw::Kind::normal;
  const Draw numbers{.stream = {draw.seed, draw.offset, random_shift(t.device())},
                     .a = draw.a,
                     .width = normal ? draw.b : draw.b - draw.a,
                     .top = draw.top,
                     .normal = normal,
                     .plain = t.dtype() == DType::f32 && draw.a == 0 && draw.b == 1};
  const Shape row_major = contiguous_strides(t.shape());
  dispatch_floating(t.dtype(), "random", [&]<class T>() {
    constexpr int64_t kEach = sizeof(T) == 8 ? 1 : 4;
    auto* const to = t.data<T>();
    const bool vectors =
        t.is_contiguous() && reinterpret_cast<uintptr_t>(to) % (kEach * sizeof(T)) == 0;
    for_each_walk<2>(t.shape(), {&row_major, &t.strides()}, [&](const Walk<2>& walk) {
      // One thread more than whole blocks: a later part may begin within a block.
      launch(t.device(), "random", draw_numbers<T>, grid_for(walk.numel + kEach, 256, kEach), to,
             numbers, walk, vectors && walk.base[0] % kEach == 0);
    });
  });
}

}  // namespace cairn::cuda
