// Convolutions in which each image is one row of a matrix, as products over the taps that meet
// data. With channels-last images and [O, KH, KW, C] filters a row of taps side by side is one
// stretch of both, so a product reads it where it lies.
#include <algorithm>
#include <vector>

#include "cairn/kernels/cuda/blas.h"
#include "cairn/kernels/cuda/conv.h"
#include "cairn/kernels/cuda/rows.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/raw.h"

namespace cairn::kernels::cuda {
namespace {

// A stretch of `length` elements that an image and a filter share, from these offsets.
struct Stretch {
  int64_t x, w, length;
};

struct Rows {
  int64_t images = 0;
  int64_t image = 0;   // elements from one to the next
  int64_t filter = 0;  // of one output channel
  std::vector<Stretch> stretches;
};

// More products than this take longer than one convolution that also multiplies padding.
constexpr size_t kMostProducts = 4;

void append(std::vector<Stretch>* stretches, const Stretch& next) {
  if (!stretches->empty()) {
    Stretch& last = stretches->back();
    if (last.x + last.length == next.x && last.w + last.length == next.w) {
      last.length += next.length;
      return;
    }
  }
  stretches->push_back(next);
}

// Null where the shape is another. The result is this thread's, and keeps its capacity.
const Rows* rows_of(const ConvShape& s) {
  thread_local Rows rows;
  rows.stretches.clear();
  if (s.p.groups != 1) return nullptr;
  rows.filter = s.filter();
  const bool pointwise = s.kh == 1 && s.kw == 1 && s.p.stride_h == 1 && s.p.stride_w == 1 &&
                         s.p.pad_h == 0 && s.p.pad_w == 0;
  if (pointwise) {
    rows.images = s.n * s.h * s.w;
    rows.image = s.ci;
    rows.stretches.push_back({0, 0, s.ci});
    return &rows;
  }
  if (s.oh != 1 || s.ow != 1) return nullptr;
  rows.images = s.n;
  rows.image = s.h * s.w * s.ci;
  for (int64_t ty = 0; ty < s.kh; ++ty)
    for (int64_t tx = 0; tx < s.kw; ++tx) {
      const int64_t iy = ty * s.p.dil_h - s.p.pad_h, ix = tx * s.p.dil_w - s.p.pad_w;
      if (iy >= 0 && iy < s.h && ix >= 0 && ix < s.w)
        append(&rows.stretches, {(iy * s.w + ix) * s.ci, (ty * s.kw + tx) * s.ci, s.ci});
    }
  return rows.stretches.size() <= kMostProducts ? &rows : nullptr;
}

Gemm start(const Tensor& operand) {
  Gemm g;
  g.dtype = g.c_dtype = operand.dtype();
  g.tf32 = cairn::cuda::settings().conv_allow_tf32;
  return g;
}

const void* at(const Tensor& t, int64_t offset) {
  return static_cast<const std::byte*>(t.raw_data()) + offset * item_size(t.dtype());
}
void* to(const Tensor& t, int64_t offset) { return const_cast<void*>(at(t, offset)); }

// Dead taps hold zeros already, get them, or, when adding, keep what they have.
void settle_dead(const Dst& dw, const ConvShape& s) {
  thread_local ZeroPattern dead;
  find_dead_taps(s, &dead);
  const int64_t numel = dw.tensor.numel();
  if (dw.zeros != nullptr && *dw.zeros == dead) return;
  const bool known = dw.zeros != nullptr && contains(*dw.zeros, dead, numel);
  if (!dw.add && !known && !dead.empty()) raw::fill_(dw.tensor, 0);  // all of it: one call, once
  if (dw.zeros != nullptr) *dw.zeros = dw.add ? intersection(*dw.zeros, dead, numel) : dead;
}

}  // namespace

bool gemm_fwd(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& bias,
              const ConvShape& s) {
  const Rows* const rows = rows_of(s);
  if (rows == nullptr) return false;
  Gemm g = start(x);
  g.m = rows->images;
  g.n = g.ldc = s.co;
  g.c = y.raw_data();
  g.a.ld = rows->image;
  g.b.ld = rows->filter;
  g.b.transposed = true;
  if (rows->stretches.empty()) raw::fill_(y, 0);
  bool biased = false;
  for (const Stretch& stretch : rows->stretches) {
    g.k = stretch.length;
    g.a.data = at(x, stretch.x);
    g.b.data = at(w, stretch.w);
    if (bias.defined() && rows->stretches.size() == 1 && x.dtype() != DType::f64) {
      Gemm fused = g;
      fused.epilogue = Epilogue::bias;
      fused.bias = bias.raw_data();
      biased = gemm(y.device(), fused, "conv2d");
    }
    if (!biased) gemm(y.device(), g, "conv2d");
    g.add = true;
  }
  if (bias.defined() && !biased) {
    const Tensor matrix = raw::as_strided(y, {rows->images, s.co}, {s.co, 1}, y.offset());
    finish_rows(matrix, {}, bias, Activation::none);
  }
  return true;
}

bool gemm_bwd_data(const Dst& dx, const Tensor& dy, const Tensor& w, const ConvShape& s) {
  const Rows* const rows = rows_of(s);
  if (rows == nullptr) return false;
  int64_t covered = 0;
  for (const Stretch& stretch : rows->stretches) covered += stretch.length;
  if (!dx.add && covered < rows->image) raw::fill_(dx.tensor, 0);  // pixels that no tap meets
  Gemm g = start(dy);
  g.add = dx.add;
  g.m = rows->images;
  g.k = s.co;
  g.a.data = dy.raw_data();
  g.a.ld = s.co;
  g.b.ld = rows->filter;
  g.ldc = rows->image;
  for (const Stretch& stretch : rows->stretches) {
    g.n = stretch.length;
    g.b.data = at(w, stretch.w);
    g.c = to(dx.tensor, stretch.x);
    gemm(dy.device(), g, "conv2d");
  }
  return true;
}

bool gemm_bwd_weight(const Dst& dw, const Tensor& x, const Tensor& dy, const ConvShape& s) {
  const Rows* const rows = rows_of(s);
  if (rows == nullptr) return false;
  settle_dead(dw, s);
  Gemm g = start(dy);
  g.add = dw.add;
  g.m = s.co;
  g.k = rows->images;
  g.a.data = dy.raw_data();
  g.a.ld = s.co;
  g.a.transposed = true;
  g.b.ld = rows->image;
  g.ldc = rows->filter;
  for (const Stretch& stretch : rows->stretches) {
    g.n = stretch.length;
    g.b.data = at(x, stretch.x);
    g.c = to(dw.tensor, stretch.w);
    gemm(dy.device(), g, "conv2d");
  }
  return true;
}

}  // namespace cairn::kernels::cuda
