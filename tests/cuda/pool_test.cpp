// Pooling on the emulated GPU against the CPU's.
#include "cairn/kernels/pool.h"

#include <vector>

#include "tests/cuda/both.h"

using namespace cairn;
using namespace cairn::both;
using namespace cairn::kernels;

namespace {

Tensor image(const Shape& shape, DType dtype, uint64_t seed, double scale = 1) {
  return raw::channels_last(noise(shape, dtype, seed, scale));
}
Tensor moved(const Tensor& t, Device device) { return raw::to(raw::clone(t), t.dtype(), device); }

int64_t outputs(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return (in + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
}

struct MaxCase {
  Shape x;
  MaxPoolParams params;
};
// Vectors of channels, single ones, dilation, gaps between windows, padding, more than 256 taps.
const std::vector<MaxCase> kMaxCases = {{{2, 16, 14, 14}, {3, 3, 2, 2, 1, 1, 1, 1}},
                                        {{3, 5, 7, 6}, {2, 2, 2, 2, 0, 0, 1, 1}},
                                        {{1, 8, 9, 11}, {3, 2, 1, 2, 1, 1, 2, 3}},
                                        {{2, 64, 8, 8}, {2, 2, 3, 3, 0, 0, 1, 1}},
                                        {{1, 2, 20, 20}, {17, 16, 1, 1, 0, 0, 1, 1}}};

template <class Body>
void for_dtypes(Body&& body) {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (bool backwards : {false, true}) {
      const Backwards order(backwards);
      INFO(name_of(dtype));
      body(dtype);
    }
  CHECK(emulator::guard_violations() == 0);
}

}  // namespace

TEST_CASE("cuda: max pooling is the CPU's") {
  for_dtypes([](DType dtype) {
    for (const auto& [shape, p] : kMaxCases) {
      INFO(shape[1] << " channels, kernel " << p.kernel_h);
      // Few different values, so that taps tie; a NaN, and a window of nothing but -infinity.
      Tensor x = image(shape, DType::i64, 1, 4);
      x = raw::to(x, dtype);
      raw::fill_(raw::slice(raw::slice(raw::slice(x, 1, 0, 1), 2, 3, 4), 3, 3, 4), NAN);
      raw::fill_(raw::slice(raw::slice(x, 2, 0, 3), 3, 0, 3), -INFINITY);
      const Shape out{shape[0], shape[1],
                      outputs(shape[2], p.kernel_h, p.stride_h, p.pad_h, p.dil_h),
                      outputs(shape[3], p.kernel_w, p.stride_w, p.pad_w, p.dil_w)};
      const DType taps = p.kernel_h * p.kernel_w <= 256 ? DType::u8 : DType::i32;
      const Tensor dy = image(out, dtype, 2);
      Tensor y[2], index[2], dx[2];
      for (int i : {0, 1}) {
        const Device device = i == 0 ? kCPU : kGpu;
        y[i] = empty_channels_last(out, {dtype, device});
        index[i] = empty_channels_last(out, {taps, device});
        max_pool2d_fwd(device, y[i], index[i], moved(x, device), p);
        dx[i] = moved(image(shape, dtype, 3), device);
        for (bool add : {true, false, true}) {
          ZeroPattern zeros{{{0, 1}}};
          max_pool2d_bwd(device, Dst{dx[i], add, add ? nullptr : &zeros}, moved(dy, device),
                         index[i], p);
          CHECK(zeros.ranges.size() == (add || i == 0 ? 1 : 0));
        }
      }
      CHECK(difference(y[1], y[0]) == 0);
      CHECK(difference(index[1], index[0]) == 0);
      CHECK(difference(dx[1], dx[0]) <= roundings(dtype));
      const Tensor alone = empty_channels_last(out, {dtype, kGpu});
      max_pool2d_fwd(kGpu, alone, Tensor{}, moved(x, kGpu), p);
      CHECK(difference(alone, y[0]) == 0);
    }
  });
}

TEST_CASE("cuda: average pooling is the CPU's") {
  struct Case {
    Shape x;
    AveragePoolParams params;
  };
  const std::vector<Case> cases = {
      {{2, 16, 7, 7}, {{7, 1, 0}, {7, 1, 0}}},                 // adaptive: the whole image
      {{2, 6, 7, 9}, {{7, 3, 0}, {9, 4, 0}}},                  // adaptive, overlapping
      {{2, 64, 8, 8}, {{8, 4, 2, 2, 0}, {8, 4, 2, 2, 0}, 4}},  // tiles
      {{1, 16, 9, 9}, {{9, 5, 3, 2, 1}, {9, 5, 3, 2, 1}, 0}},  // only what is inside counts
      {{1, 5, 9, 9}, {{9, 5, 3, 2, 1}, {9, 9, 3, 1, 1}, 9}}};  // padding counts
  for_dtypes([&](DType dtype) {
    for (const auto& [shape, p] : cases) {
      INFO(shape[1] << " channels of " << shape[2] << " x " << shape[3]);
      const Tensor x = image(shape, dtype, 1);
      const Shape out{shape[0], shape[1], p.h.out, p.w.out};
      const Tensor dy = image(out, dtype, 2);
      Tensor y[2], dx[2];
      for (int i : {0, 1}) {
        const Device device = i == 0 ? kCPU : kGpu;
        y[i] = empty_channels_last(out, {dtype, device});
        avg_pool2d_fwd(device, y[i], moved(x, device), p);
        dx[i] = moved(image(shape, dtype, 3), device);
        for (bool add : {false, true})
          avg_pool2d_bwd(device, Dst{dx[i], add}, moved(dy, device), p);
      }
      CHECK(difference(y[1], y[0]) <= roundings(dtype));
      CHECK(difference(dx[1], dx[0]) <= 2 * roundings(dtype));
    }
  });
}
