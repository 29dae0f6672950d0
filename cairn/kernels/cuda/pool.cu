// Pooling over channels-last images: a thread makes some channels of one pixel.
// Invariant: forward and backward both gather: each pixel is written once, from its own sources in
// row-major order, so results repeat bit for bit.
#include "cairn/kernels/pool.h"

#include <cmath>
#include <limits>

#include "cairn/tensor/cuda/device.cuh"

namespace cairn::kernels::cuda {

using namespace cairn::cuda;

namespace {

// The images whose pixels are made (`h`, `w`) from those of size (`from_h`, `from_w`).
struct Images {
  int64_t items = 0;  // threads with work: below 2^31
  Divisor vectors, across, down;
  int channels = 0, h = 0, w = 0, from_h = 0, from_w = 0;
};

// The pixel of one thread.
struct Pixel {
  int y, x;
  int64_t offset;  // of its first channel in the result
  int64_t from;    // the same of its image in the source
};
template <int kEach>
__device__ __forceinline__ Pixel pixel_of(const Images& images, int64_t item) {
  const auto i = static_cast<uint32_t>(item);
  const uint32_t place = images.vectors.quotient(i);
  const int channel = static_cast<int>(i - place * images.vectors.value) * kEach;
  const uint32_t line = images.across.quotient(place);
  const uint32_t image = images.down.quotient(line);
  return {static_cast<int>(line - image * images.down.value),
          static_cast<int>(place - line * images.across.value),
          int64_t{place} * images.channels + channel,
          int64_t{image} * images.from_h * images.from_w * images.channels + channel};
}
__device__ __forceinline__ int64_t source_offset(const Images& images, const Pixel& p, int y,
                                                 int x) {
  return p.from + (int64_t{y} * images.from_w + x) * images.channels;
}

template <class T, int kEach>
__device__ __forceinline__ Vector<T, kEach> read(const T* p) {
  return *reinterpret_cast<const Vector<T, kEach>*>(p);
}
template <class T, int kEach>
__device__ __forceinline__ void write(T* p, const Vector<T, kEach>& v) {
  *reinterpret_cast<Vector<T, kEach>*>(p) = v;
}

// --- maximum -------------------------------------------------------------------------------------

struct MaxAxis {
  int kernel, stride, pad, dilation;
};

// Taps of one axis that meet the image at an output that starts at `start`: [first, last).
struct TapRange {
  int first, last;
  __device__ __forceinline__ TapRange(int start, const MaxAxis& axis, int size) {
    first = start >= 0 ? 0 : (-start + axis.dilation - 1) / axis.dilation;
    last = start >= size ? 0 : std::min(axis.kernel, (size - 1 - start) / axis.dilation + 1);
  }
};

template <class T, class I, int kEach>
__global__ void max_forward_kernel(T* y, I* index, const T* x, Images images, MaxAxis down,
                                   MaxAxis across) {
  using Acc = Compute<T>;
  const int64_t item = global_thread();
  if (item >= images.items) return;
  const Pixel p = pixel_of<kEach>(images, item);
  const int y0 = p.y * down.stride - down.pad, x0 = p.x * across.stride - across.pad;
  const TapRange rows(y0, down, images.from_h), cols(x0, across, images.from_w);
  const bool any = rows.first < rows.last && cols.first < cols.last;
  Acc best[kEach];
  int tap[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    best[k] = -std::numeric_limits<Acc>::infinity();  // dilation can step over a small image
    tap[k] = any ? rows.first * across.kernel + cols.first : 0;
  }
  for (int ty = rows.first; ty < rows.last; ++ty) {
#pragma unroll 3
    for (int tx = cols.first; tx < cols.last; ++tx) {
      const auto in = read<T, kEach>(
          x + source_offset(images, p, y0 + ty * down.dilation, x0 + tx * across.dilation));
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        const Acc v = widen(in.value[k]);
        const bool wins = v > best[k] || v != v;
        best[k] = wins ? v : best[k];
        tap[k] = wins ? ty * across.kernel + tx : tap[k];
      }
    }
  }
  Vector<T, kEach> out;
  Vector<I, kEach> taps;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    out.value[k] = narrow<T>(best[k]);
    taps.value[k] = static_cast<I>(tap[k]);
  }
  write(y + p.offset, out);
  if (index != nullptr) write(index + p.offset, taps);
}

// Outputs [first, last] of one axis whose windows may hold input i.
struct WindowRange {
  int first, last;
  __device__ __forceinline__ WindowRange(int i, const MaxAxis& axis, int outputs) {
    const int place = i + axis.pad, reach = (axis.kernel - 1) * axis.dilation;
    first = place <= reach ? 0 : (place - reach + axis.stride - 1) / axis.stride;
    last = std::min(place / axis.stride, outputs - 1);
  }
};
// Which tap of output o is input i; -1: none.
__device__ __forceinline__ int tap_of(int i, int o, const MaxAxis& axis) {
  const int distance = i + axis.pad - o * axis.stride;
  if (axis.dilation == 1) return distance;
  return distance % axis.dilation == 0 ? distance / axis.dilation : -1;
}

template <class T, class I, int kEach>
__global__ void max_backward_kernel(T* dx, bool add, const T* dy, const I* index, Images images,
                                    MaxAxis down, MaxAxis across) {
  using Acc = Compute<T>;
  const int64_t item = global_thread();
  if (item >= images.items) return;
  const Pixel p = pixel_of<kEach>(images, item);
  const WindowRange rows(p.y, down, images.from_h), cols(p.x, across, images.from_w);
  Acc sum[kEach] = {};
  if (add) {
    const auto before = read<T, kEach>(dx + p.offset);
#pragma unroll
    for (int k = 0; k < kEach; ++k) sum[k] = widen(before.value[k]);
  }
  for (int oy = rows.first; oy <= rows.last; ++oy) {
    const int ty = tap_of(p.y, oy, down);
    if (ty < 0) continue;
#pragma unroll 2
    for (int ox = cols.first; ox <= cols.last; ++ox) {
      const int tx = tap_of(p.x, ox, across);
      if (tx < 0) continue;
      const int64_t from = source_offset(images, p, oy, ox);
      const auto taken = read<I, kEach>(index + from);
      const auto g = read<T, kEach>(dy + from);
      const int tap = ty * across.kernel + tx;
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (static_cast<int>(taken.value[k]) == tap) sum[k] += widen(g.value[k]);
    }
  }
  Vector<T, kEach> out;
#pragma unroll
  for (int k = 0; k < kEach; ++k) out.value[k] = narrow<T>(sum[k]);
  write(dx + p.offset, out);
}

// --- average -------------------------------------------------------------------------------------

template <class Acc>
__device__ __forceinline__ Acc average_scale(const AveragePoolParams& params, int64_t oy,
                                             int64_t ox) {
  if (params.divisor != 0) return Acc(1) / static_cast<Acc>(params.divisor);
  return Acc(1) / static_cast<Acc>((params.h.end(oy) - params.h.begin(oy)) *
                                   (params.w.end(ox) - params.w.begin(ox)));
}

template <class T, int kEach>
__global__ void average_forward_kernel(T* y, const T* x, Images images, AveragePoolParams params) {
  using Acc = Compute<T>;
  const int64_t item = global_thread();
  if (item >= images.items) return;
  const Pixel p = pixel_of<kEach>(images, item);
  const int top = static_cast<int>(params.h.begin(p.y));
  const int bottom = static_cast<int>(params.h.end(p.y));
  const int left = static_cast<int>(params.w.begin(p.x));
  const int right = static_cast<int>(params.w.end(p.x));
  const Acc scale = average_scale<Acc>(params, p.y, p.x);
  Acc sum[kEach] = {};
  for (int iy = top; iy < bottom; ++iy) {
#pragma unroll 4
    for (int ix = left; ix < right; ++ix) {
      const auto in = read<T, kEach>(x + source_offset(images, p, iy, ix));
#pragma unroll
      for (int k = 0; k < kEach; ++k) sum[k] = std::fma(widen(in.value[k]), scale, sum[k]);
    }
  }
  Vector<T, kEach> out;
#pragma unroll
  for (int k = 0; k < kEach; ++k) out.value[k] = narrow<T>(sum[k]);
  write(y + p.offset, out);
}

template <class T, int kEach>
__global__ void average_backward_kernel(T* dx, bool add, const T* dy, Images images,
                                        AveragePoolParams params) {
  using Acc = Compute<T>;
  const int64_t item = global_thread();
  if (item >= images.items) return;
  const Pixel p = pixel_of<kEach>(images, item);
  const int top = static_cast<int>(params.h.first(p.y));
  const int bottom = static_cast<int>(params.h.last(p.y));
  const int left = static_cast<int>(params.w.first(p.x));
  const int right = static_cast<int>(params.w.last(p.x));
  Acc sum[kEach] = {};
  if (add) {
    const auto before = read<T, kEach>(dx + p.offset);
#pragma unroll
    for (int k = 0; k < kEach; ++k) sum[k] = widen(before.value[k]);
  }
  for (int oy = top; oy < bottom; ++oy) {
    for (int ox = left; ox < right; ++ox) {
      const auto in = read<T, kEach>(dy + source_offset(images, p, oy, ox));
      const Acc scale = average_scale<Acc>(params, oy, ox);
#pragma unroll
      for (int k = 0; k < kEach; ++k) sum[k] = std::fma(widen(in.value[k]), scale, sum[k]);
    }
  }
  Vector<T, kEach> out;
#pragma unroll
  for (int k = 0; k < kEach; ++k) out.value[k] = narrow<T>(sum[k]);
  write(dx + p.offset, out);
}

// --- launches ------------------------------------------------------------------------------------

// Calls body(images, grid, first element of the result, of the source) for runs of images that a
// launch can take (nearly always all), each thread making kEach channels.
template <int kEach, class Body>
void for_images(In result, In source, Body&& body) {
  const int64_t count = result.size(0), channels = result.size(1);
  Images images;
  images.channels = static_cast<int>(channels);
  images.h = static_cast<int>(result.size(2));
  images.w = static_cast<int>(result.size(3));
  images.from_h = static_cast<int>(source.size(2));
  images.from_w = static_cast<int>(source.size(3));
  images.vectors = Divisor(channels / kEach);
  images.across = Divisor(images.w);
  images.down = Divisor(images.h);
  const int64_t each = channels / kEach * images.h * images.w;
  const int64_t most = ((int64_t{1} << 31) - 1) / each;
  check(most > 0, "pool: an image must have fewer than 2^31 elements, got ", each);
  const int64_t result_size = channels * images.h * images.w;
  const int64_t source_size = channels * images.from_h * images.from_w;
  for (int64_t n = 0; n < count; n += most) {
    images.items = std::min(most, count - n) * each;
    body(images, grid_for(images.items, 128), n * result_size, n * source_size);
  }
}

// Calls body.operator()<kEach>(): vectors of channels where memory allows and enough threads
// remain to fill the device, else single channels.
template <class T, class Body>
void with_vectors(In result, std::initializer_list<const void*> pointers, Body&& body) {
  constexpr int kEach = kVector<T>;
  const int64_t threads = result.numel() / kEach;
  bool wide = result.size(1) % kEach == 0 &&
              threads >= 64 * int64_t{limits_of(result.device()).multiprocessors};
  for (const void* p : pointers) wide = wide && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  wide ? body.template operator()<kEach>() : body.template operator()<1>();
}

MaxAxis down_of(const MaxPoolParams& p) {
  return {static_cast<int>(p.kernel_h), static_cast<int>(p.stride_h), static_cast<int>(p.pad_h),
          static_cast<int>(p.dil_h)};
}
MaxAxis across_of(const MaxPoolParams& p) {
  return {static_cast<int>(p.kernel_w), static_cast<int>(p.stride_w), static_cast<int>(p.pad_w),
          static_cast<int>(p.dil_w)};
}

template <class T, class I, int kEach>
void max_forward(Out y, Out index, In x, const MaxPoolParams& p) {
  I* const taps = index.defined() ? index.data<I>() : nullptr;
  for_images<kEach>(y, x, [&](const Images& images, const Grid& grid, int64_t to, int64_t from) {
    launch(y.device(), "max_pool2d_fwd", max_forward_kernel<T, I, kEach>, grid, y.data<T>() + to,
           taps == nullptr ? nullptr : taps + to, x.data<T>() + from, images, down_of(p),
           across_of(p));
  });
}

void cuda_max_pool2d_fwd(Out y, Out index, In x, const MaxPoolParams& params) {
  if (y.numel() == 0) return;
  dispatch_floating(x.dtype(), "max_pool2d", [&]<class T>() {
    // Kernels of more than 256 taps are rare.
    if (params.kernel_h * params.kernel_w > 256)
      return max_forward<T, int32_t, 1>(y, index, x, params);
    const void* const taps = index.defined() ? index.raw_data() : nullptr;
    with_vectors<T>(y, {y.raw_data(), x.raw_data(), taps},
                    [&]<int kEach>() { max_forward<T, uint8_t, kEach>(y, index, x, params); });
  });
}

template <class T, class I, int kEach>
void max_backward(const Dst& dx, In dy, In index, const MaxPoolParams& p) {
  for_images<kEach>(dx.tensor, dy,
                    [&](const Images& images, const Grid& grid, int64_t to, int64_t from) {
                      launch(dy.device(), "max_pool2d_bwd", max_backward_kernel<T, I, kEach>, grid,
                             dx.tensor.data<T>() + to, dx.add, dy.data<T>() + from,
                             index.data<I>() + from, images, down_of(p), across_of(p));
                    });
}

void cuda_max_pool2d_bwd(const Dst& dx, In dy, In index, const MaxPoolParams& params) {
  if (dx.zeros != nullptr) dx.zeros->clear();
  if (dx.tensor.numel() == 0) return;
  dispatch_floating(dy.dtype(), "max_pool2d", [&]<class T>() {
    if (index.dtype() == DType::i32) return max_backward<T, int32_t, 1>(dx, dy, index, params);
    with_vectors<T>(dx.tensor, {dx.tensor.raw_data(), dy.raw_data(), index.raw_data()},
                    [&]<int kEach>() { max_backward<T, uint8_t, kEach>(dx, dy, index, params); });
  });
}

void cuda_avg_pool2d_fwd(Out y, In x, const AveragePoolParams& params) {
  if (y.numel() == 0) return;
  dispatch_floating(x.dtype(), "avg_pool2d", [&]<class T>() {
    with_vectors<T>(y, {y.raw_data(), x.raw_data()}, [&]<int kEach>() {
      for_images<kEach>(y, x,
                        [&](const Images& images, const Grid& grid, int64_t to, int64_t from) {
                          launch(y.device(), "avg_pool2d_fwd", average_forward_kernel<T, kEach>,
                                 grid, y.data<T>() + to, x.data<T>() + from, images, params);
                        });
    });
  });
}

void cuda_avg_pool2d_bwd(const Dst& dx, In dy, const AveragePoolParams& params) {
  if (dx.zeros != nullptr) dx.zeros->clear();
  if (dx.tensor.numel() == 0) return;
  dispatch_floating(dy.dtype(), "avg_pool2d", [&]<class T>() {
    with_vectors<T>(dx.tensor, {dx.tensor.raw_data(), dy.raw_data()}, [&]<int kEach>() {
      for_images<kEach>(
          dx.tensor, dy, [&](const Images& images, const Grid& grid, int64_t to, int64_t from) {
            launch(dy.device(), "avg_pool2d_bwd", average_backward_kernel<T, kEach>, grid,
                   dx.tensor.data<T>() + to, dx.add, dy.data<T>() + from, images, params);
          });
    });
  });
}

}  // namespace

void fill_pool() {
  max_pool2d_fwd.fill(DeviceType::cuda, cuda_max_pool2d_fwd);
  max_pool2d_bwd.fill(DeviceType::cuda, cuda_max_pool2d_bwd);
  avg_pool2d_fwd.fill(DeviceType::cuda, cuda_avg_pool2d_fwd);
  avg_pool2d_bwd.fill(DeviceType::cuda, cuda_avg_pool2d_bwd);
}

}  // namespace cairn::kernels::cuda
