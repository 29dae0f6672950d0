// Convolution by plain loops, one thread an output: for f64, for filters of one channel (where
// neighbouring threads read neighbouring channels), and where cuDNN is not there.
#include <algorithm>

#include "cairn/kernels/cuda/conv.h"
#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {
namespace {

using cairn::cuda::Divisor;
using cairn::cuda::Grid;
using cairn::cuda::launch;
using cairn::cuda::narrow;
using cairn::cuda::widen;

// Sizes in 32 bits, and what splits a flat index.
struct Direct {
  int h, w, ci, oh, ow, co, kh, kw;
  int depth, width;  // input and output channels of a group
  int stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  Divisor by_co, by_ow, by_oh, by_ci, by_w, by_h, by_width, by_depth, by_stride_h, by_stride_w;
};

Direct direct_of(const ConvShape& s) {
  const auto i = [](int64_t v) { return static_cast<int>(v); };
  const auto by = [](int64_t v) { return Divisor(std::max<int64_t>(v, 1)); };
  const int64_t depth = s.depth(), width = s.co / s.p.groups;
  return {.h = i(s.h),
          .w = i(s.w),
          .ci = i(s.ci),
          .oh = i(s.oh),
          .ow = i(s.ow),
          .co = i(s.co),
          .kh = i(s.kh),
          .kw = i(s.kw),
          .depth = i(depth),
          .width = i(width),
          .stride_h = i(s.p.stride_h),
          .stride_w = i(s.p.stride_w),
          .pad_h = i(s.p.pad_h),
          .pad_w = i(s.p.pad_w),
          .dil_h = i(s.p.dil_h),
          .dil_w = i(s.p.dil_w),
          .by_co = by(s.co),
          .by_ow = by(s.ow),
          .by_oh = by(s.oh),
          .by_ci = by(s.ci),
          .by_w = by(s.w),
          .by_h = by(s.h),
          .by_width = by(width),
          .by_depth = by(depth),
          .by_stride_h = by(s.p.stride_h),
          .by_stride_w = by(s.p.stride_w)};
}

__device__ __forceinline__ int split(int* index, const Divisor& by) {
  const uint32_t rest = by.quotient(static_cast<uint32_t>(*index));
  const int inner = *index - static_cast<int>(rest * by.value);
  *index = static_cast<int>(rest);
  return inner;
}
__device__ __forceinline__ int divide(int value, const Divisor& by) {
  return static_cast<int>(by.quotient(static_cast<uint32_t>(value)));
}

// y, x: of the first image of this launch; numel elements of y, fewer than 2^31.
template <class T>
__global__ void conv_fwd(T* y, const T* x, const T* w, Direct g, int64_t numel) {
  const int64_t thread = cairn::cuda::global_thread();
  if (thread >= numel) return;
  int rest = static_cast<int>(thread);
  const int o = split(&rest, g.by_co);
  const int ox = split(&rest, g.by_ow);
  const int oy = split(&rest, g.by_oh);
  const int64_t image = static_cast<int64_t>(rest) * g.h;
  const int first = divide(o, g.by_width) * g.depth;  // input channel of the group
  const int y0 = oy * g.stride_h - g.pad_h, x0 = ox * g.stride_w - g.pad_w;
  const T* filter = w + static_cast<int64_t>(o) * g.kh * g.kw * g.depth;
  Compute<T> sum = 0;
  for (int ty = 0; ty < g.kh; ++ty) {
    const int iy = y0 + ty * g.dil_h;
    if (iy < 0 || iy >= g.h) continue;
    for (int tx = 0; tx < g.kw; ++tx) {
      const int ix = x0 + tx * g.dil_w;
      if (ix < 0 || ix >= g.w) continue;
      const T* const in = x + ((image + iy) * g.w + ix) * g.ci + first;
      const T* const taps = filter + (ty * g.kw + tx) * g.depth;
      for (int c = 0; c < g.depth; ++c) sum += widen(in[c]) * widen(taps[c]);
    }
  }
  y[thread] = narrow<T>(sum);
}

// The output that tap t of an axis leads to from input i; -1 where there is none.
__device__ __forceinline__ int output_of(int i, int t, int dil, int pad, int stride,
                                         const Divisor& by_stride, int size) {
  const int shifted = i + pad - t * dil;
  if (shifted < 0) return -1;
  const int out = divide(shifted, by_stride);
  return out * stride == shifted && out < size ? out : -1;
}

template <class T>
__global__ void conv_bwd_data(T* dx, bool add, const T* dy, const T* w, Direct g, int64_t numel) {
  const int64_t thread = cairn::cuda::global_thread();
  if (thread >= numel) return;
  int rest = static_cast<int>(thread);
  const int c = split(&rest, g.by_ci);
  const int ix = split(&rest, g.by_w);
  const int iy = split(&rest, g.by_h);
  const int64_t image = static_cast<int64_t>(rest) * g.oh;
  const int group = divide(c, g.by_depth);
  const int first = group * g.width;  // output channel of the group
  const int64_t filter = static_cast<int64_t>(g.kh) * g.kw * g.depth;
  const T* const taps = w + first * filter + (c - group * g.depth);
  Compute<T> sum = 0;
  for (int ty = 0; ty < g.kh; ++ty) {
    const int oy = output_of(iy, ty, g.dil_h, g.pad_h, g.stride_h, g.by_stride_h, g.oh);
    if (oy < 0) continue;
    for (int tx = 0; tx < g.kw; ++tx) {
      const int ox = output_of(ix, tx, g.dil_w, g.pad_w, g.stride_w, g.by_stride_w, g.ow);
      if (ox < 0) continue;
      const T* const out = dy + ((image + oy) * g.ow + ox) * g.co + first;
      const T* const tap = taps + static_cast<int64_t>(ty * g.kw + tx) * g.depth;
      for (int o = 0; o < g.width; ++o) sum += widen(out[o]) * widen(tap[o * filter]);
    }
  }
  if (add) sum += widen(dx[thread]);
  dx[thread] = narrow<T>(sum);
}

// A block's neighbouring weights, and the pixels it looks at side by side.
constexpr int kWeights = 32;
constexpr int kPixels = 8;

// One block: 32 weights of one tap over one chunk of dy's pixels. They are neighbours in c, or in o
// where a filter has one channel, so that a warp reads neighbouring elements either way.
template <class T>
__global__ void conv_bwd_weight(Compute<T>* partial, const T* x, const T* dy, Direct g,
                                bool across_o, int64_t pixels, int64_t chunk) {
  __shared__ Compute<T> sums[kPixels][kWeights];
  const int taps = g.kh * g.kw;
  const int fast_size = across_o ? g.co : g.depth;
  const int tiles = (fast_size + kWeights - 1) / kWeights;
  const int fast = static_cast<int>(blockIdx.x) % tiles * kWeights + static_cast<int>(threadIdx.x);
  const int slow = static_cast<int>(blockIdx.x) / tiles;
  const int tap = slow % taps;
  const int o = across_o ? fast : slow / taps;
  const int c = across_o ? 0 : fast;
  const bool mine = fast < fast_size;
  const int ty = tap / g.kw, tx = tap % g.kw;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * chunk;
  const int64_t end = begin + chunk < pixels ? begin + chunk : pixels;
  Compute<T> sum = 0;
  if (mine) {
    const int channel = divide(o, g.by_width) * g.depth + c;
    for (int64_t pixel = begin + threadIdx.y; pixel < end; pixel += kPixels) {
      int rest = static_cast<int>(pixel);
      const int ox = split(&rest, g.by_ow);
      const int oy = split(&rest, g.by_oh);
      const int iy = oy * g.stride_h - g.pad_h + ty * g.dil_h;
      const int ix = ox * g.stride_w - g.pad_w + tx * g.dil_w;
      if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
      sum += widen(dy[pixel * g.co + o]) *
             widen(x[((static_cast<int64_t>(rest) * g.h + iy) * g.w + ix) * g.ci + channel]);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || !mine) return;
  Compute<T> total = 0;
  for (int lane = 0; lane < kPixels; ++lane) total += sums[lane][threadIdx.x];
  const int64_t filter = static_cast<int64_t>(taps) * g.depth;
  partial[static_cast<int64_t>(blockIdx.y) * g.co * filter + o * filter +
          static_cast<int64_t>(tap) * g.depth + c] = total;
}

template <class T>
__global__ void add_parts(T* dw, bool add, const Compute<T>* partial, int64_t parts,
                          int64_t numel) {
  const int64_t i = cairn::cuda::global_thread();
  if (i >= numel) return;
  Compute<T> sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += partial[part * numel + i];
  if (add) sum += widen(dw[i]);
  dw[i] = narrow<T>(sum);
}

// Calls body(first image, images) for runs of images whose elements an int can count.
template <class Body>
void for_each_run(int64_t images, int64_t per_image, Body&& body) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  check(per_image <= kMost, "conv2d: elements of an image must be fewer than 2^31, got ",
        per_image);
  const int64_t step = std::max<int64_t>(1, kMost / std::max<int64_t>(1, per_image));
  for (int64_t n = 0; n < images; n += step) body(n, std::min(step, images - n));
}

}  // namespace

void direct_fwd(const Tensor& y, const Tensor& x, const Tensor& w, const ConvShape& s) {
  const Direct g = direct_of(s);
  const int64_t in = s.h * s.w * s.ci, out = s.oh * s.ow * s.co;
  dispatch_floating(y.dtype(), "conv2d", [&]<class T>() {
    for_each_run(s.n, std::max(in, out), [&](int64_t first, int64_t images) {
      launch(y.device(), "conv2d_fwd", conv_fwd<T>, cairn::cuda::grid_for(images * out),
             y.data<T>() + first * out, x.data<T>() + first * in, w.data<T>(), g, images * out);
    });
  });
}

void direct_bwd_data(const Dst& dx, const Tensor& dy, const Tensor& w, const ConvShape& s) {
  const Direct g = direct_of(s);
  const int64_t in = s.h * s.w * s.ci, out = s.oh * s.ow * s.co;
  dispatch_floating(dy.dtype(), "conv2d", [&]<class T>() {
    for_each_run(s.n, std::max(in, out), [&](int64_t first, int64_t images) {
      launch(dy.device(), "conv2d_bwd_data", conv_bwd_data<T>, cairn::cuda::grid_for(images * in),
             dx.tensor.data<T>() + first * in, dx.add, dy.data<T>() + first * out, w.data<T>(), g,
             images * in);
    });
  });
}

void direct_bwd_weight(const Dst& dw, const Tensor& x, const Tensor& dy, const ConvShape& s) {
  constexpr int64_t kBlocks = 1024;  // several for each multiprocessor of the largest devices
  const Direct g = direct_of(s);
  const bool across_o = s.depth() == 1;
  const int64_t fast = across_o ? s.co : s.depth();
  const int64_t blocks = (fast + kWeights - 1) / kWeights * s.kh * s.kw * (across_o ? 1 : s.co);
  const int64_t pixels = s.n * s.oh * s.ow;
  check(pixels < (int64_t{1} << 31), "conv2d: output pixels must be fewer than 2^31, got ", pixels);
  const int64_t wanted =
      std::clamp<int64_t>(std::min(pixels / (kPixels * 16), kBlocks / blocks), 1, 256);
  const int64_t chunk = std::max<int64_t>(1, (pixels + wanted - 1) / wanted);
  const int64_t parts = std::max<int64_t>(1, (pixels + chunk - 1) / chunk);
  const int64_t numel = dw.tensor.numel();
  const Device device = dy.device();
  dispatch_floating(dy.dtype(), "conv2d", [&]<class T>() {
    // Scratch of the caching allocator: a device has none of a thread's own.
    const Tensor partial = empty({parts, numel}, {dtype_of<Compute<T>>(), device});
    const Grid grid{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)),
                    dim3(kWeights, kPixels)};
    launch(device, "conv2d_bwd_weight", conv_bwd_weight<T>, grid, partial.data<Compute<T>>(),
           x.data<T>(), dy.data<T>(), g, across_o, pixels, chunk);
    launch(device, "conv2d_bwd_weight", add_parts<T>, cairn::cuda::grid_for(numel),
           dw.tensor.data<T>(), dw.add, partial.data<Compute<T>>(), parts, numel);
  });
}

}  // namespace cairn::kernels::cuda
