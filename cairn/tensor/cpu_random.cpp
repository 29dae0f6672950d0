// The CPU's draws of random numbers.
// Invariant: a draw is cut at multiples of 4 elements, the start of a block of words, so that the
// numbers do not depend on the cut.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "cairn/tensor/cpu_backend.h"
#include "cairn/tensor/parallel.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/random_fill.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

constexpr int64_t kGrain = 1 << 13;

// One element of f64 from the four words of its block.
double wide_number(const RandomDraw& draw, const std::array<uint32_t, 4>& w) {
  const double u = uniform_double(w[0], w[1]);
  if (draw.kind == RandomDraw::Kind::uniform)
    return std::min(draw.top, draw.a + (draw.b - draw.a) * u);
  // 1 - u lies in (0, 1], so the logarithm is finite.
  const double radius = std::sqrt(-2.0 * std::log(1.0 - u));
  return draw.a + draw.b * radius * std::cos(2.0 * std::numbers::pi * uniform_double(w[2], w[3]));
}

// Elements [begin, end) as f32 numbers, on the way to `dtype`.
void fill_narrow(const RandomDraw& draw, DType dtype, float* out, int64_t begin, int64_t end) {
  if (draw.kind == RandomDraw::Kind::normal)
    return detail::fill_normal(out, begin, end, draw.seed, draw.offset, static_cast<float>(draw.a),
                               static_cast<float>(draw.b));
  detail::fill_uniform(out, begin, end, draw.seed, draw.offset);
  if (draw.a == 0 && draw.b == 1 && dtype == DType::f32) return;
  for (int64_t i = 0; i < end - begin; ++i)
    out[i] = static_cast<float>(
        std::min(draw.top, draw.a + (draw.b - draw.a) * static_cast<double>(out[i])));
}

// Elements [lo, hi) of the row-major order to element `at` of `out` on; lo is a multiple of 4.
void fill_stretch(const RandomDraw& draw, const Tensor& out, int64_t at, int64_t lo, int64_t hi) {
  if (out.dtype() == DType::f64) {
    double* const to = out.data<double>() + at;
    for (int64_t i = lo; i < hi; ++i)
      to[i - lo] = wide_number(draw, philox(draw.seed, draw.offset + static_cast<uint64_t>(i)));
  } else if (out.dtype() == DType::f32) {
    fill_narrow(draw, DType::f32, out.data<float>() + at, lo, hi);
  } else {
    constexpr int64_t kBlock = 1024;
    float block[kBlock];
    for (int64_t i = lo; i < hi; i += kBlock) {
      const int64_t end = std::min(i + kBlock, hi);
      fill_narrow(draw, out.dtype(), block, i, end);
      dispatch_floating(out.dtype(), "random", [&]<class T>() {
        T* const to = out.data<T>() + at;
        for (int64_t j = i; j < end; ++j) to[j - lo] = static_cast<T>(block[j - i]);
      });
    }
  }
}

// By rows of the first dimension, a few at a time.
void fill_by_rows(const RandomDraw& draw, const Tensor& t) {
  constexpr int64_t kRows = 16;
  const int64_t rows = t.size(0);
  const int64_t row = t.numel() / rows;
  parallel_for(0, (rows + kRows - 1) / kRows, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t lo = i * kRows, hi = std::min(lo + kRows, rows);
      const Tensor place = raw::slice(t, 0, lo, hi);
      const Tensor piece = empty(place.shape(), {t.dtype()});
      fill_stretch(draw, piece, 0, lo * row, hi * row);
      raw::copy_(place, piece);
    }
  });
}

// Where the first dimension lies innermost, as in the weights of convolutions: all of it at once,
// so that whole lines of memory are written, and a little of the second.
void fill_by_columns(const RandomDraw& draw, const Tensor& t) {
  constexpr int64_t kPiece = 1 << 16;  // elements that stay in a core's second-level cache
  const int64_t rows = t.size(0), columns = t.size(1);
  const int64_t row = t.numel() / rows, column = row / columns;
  // Multiples of 4 columns start at multiples of 4 elements.
  const int64_t width = std::max<int64_t>(kPiece / (rows * column) / 4 * 4, 4);
  parallel_for(0, (columns + width - 1) / width, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t lo = i * width, hi = std::min(lo + width, columns);
      const Tensor place = raw::slice(t, 1, lo, hi);
      const Tensor piece = empty(place.shape(), {t.dtype()});
      for (int64_t r = 0; r < rows; ++r)
        fill_stretch(draw, piece, r * (hi - lo) * column, r * row + lo * column,
                     r * row + hi * column);
      raw::copy_(place, piece);
    }
  });
}

}  // namespace

void cpu_random(const Tensor& t, const RandomDraw& draw) {
  const int64_t n = t.numel();
  if (t.is_contiguous()) {
    parallel_for(0, (n + 3) / 4, kGrain / 4, [&](int64_t first, int64_t last) {
      fill_stretch(draw, t, 4 * first, 4 * first, std::min(4 * last, n));
    });
    return;
  }
  // Through pieces that stay in cache.
  const bool upright = t.dim() > 1 && t.stride(0) == 1 && n / t.size(0) % 4 == 0;
  upright ? fill_by_columns(draw, t) : fill_by_rows(draw, t);
}

}  // namespace cairn
