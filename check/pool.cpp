// Pooling in the op table.
#include "cairn/autograd/ops/pool.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cairn/tensor/factory.h"
#include "check/op_table.h"

namespace cairn::check_table {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// y[n, c, oy, ox] = pixel(plane, oy, ox) over planes of H x W.
template <class Pixel>
Tensor over_planes(const Tensor& x, int64_t oh, int64_t ow, Pixel&& pixel) {
  Tensor y = empty({x.size(0), x.size(1), oh, ow}, {DType::f64});
  for (int64_t i = 0; i < y.numel(); ++i)
    y.data<double>()[i] =
        pixel(x.data<double>() + i / (oh * ow) * x.size(2) * x.size(3), i / ow % oh, i % ow);
  return y;
}

Pair stride_or_kernel(Pair stride, Pair kernel) {
  return {stride.h == 0 ? kernel.h : stride.h, stride.w == 0 ? kernel.w : stride.w};
}

Tensor max_reference(const Tensor& x, const MaxPool2dOptions& o) {
  const int64_t h = x.size(2), w = x.size(3);
  const Pair s = stride_or_kernel(o.stride, o.kernel_size);
  const int64_t oh = (h + 2 * o.padding.h - o.dilation.h * (o.kernel_size.h - 1) - 1) / s.h + 1;
  const int64_t ow = (w + 2 * o.padding.w - o.dilation.w * (o.kernel_size.w - 1) - 1) / s.w + 1;
  return over_planes(x, oh, ow, [&](const double* plane, int64_t oy, int64_t ox) {
    double best = -kInf;
    for (int64_t ky = 0; ky < o.kernel_size.h; ++ky)
      for (int64_t kx = 0; kx < o.kernel_size.w; ++kx) {
        const int64_t iy = oy * s.h - o.padding.h + ky * o.dilation.h;
        const int64_t ix = ox * s.w - o.padding.w + kx * o.dilation.w;
        if (iy < 0 || iy >= h || ix < 0 || ix >= w) continue;
        const double v = plane[iy * w + ix];
        if (std::isnan(v) || v > best) best = v;
      }
    return best;
  });
}

Case max_case(const char* name, const Tensor& x, const MaxPool2dOptions& options) {
  Case c;
  c.name = name;
  c.inputs = {x};
  c.op = [options](Inputs in) { return max_pool2d(in[0], options); };
  c.reference = [options](Inputs in) { return max_reference(in[0], options); };
  c.terms = options.kernel_size.h * options.kernel_size.w;
  return c;
}

// Values of few kinds, so that maxima tie; no derivative by differences there.
Case tied_case(const char* name, const Shape& shape, const MaxPool2dOptions& options) {
  Tensor x = values(shape, 3);
  for (int64_t i = 0; i < x.numel(); ++i) x.data<double>()[i] = std::floor(x.data<double>()[i] * 2);
  Case c = max_case(name, x, options);
  c.numeric_gradient = false;
  return c;
}

std::vector<Case> max_cases() {
  Tensor negative = distinct_values({1, 2, 4, 4}, 5);
  for (int64_t i = 0; i < negative.numel(); ++i) negative.data<double>()[i] -= 5;
  Tensor special = distinct_values({1, 1, 4, 4}, 6);
  special.data<double>()[6] = std::numeric_limits<double>::quiet_NaN();
  special.data<double>()[12] = -kInf;
  Case nan = max_case("NaN wins", special, {.kernel_size = 2, .stride = 1});
  nan.differentiable = false;
  Case lowest = max_case("minus infinity everywhere", full({1, 1, 3, 3}, -kInf, {DType::f64}),
                         {.kernel_size = 3, .stride = 2, .padding = 1});
  lowest.differentiable = false;
  return {
      max_case("2x2", distinct_values({2, 3, 6, 6}, 1), {.kernel_size = 2}),
      max_case("3x3, stride 2, padding 1, odd size", distinct_values({2, 70, 7, 9}, 2),
               {.kernel_size = 3, .stride = 2, .padding = 1}),
      tied_case("ties", {2, 20, 6, 7}, {.kernel_size = 3, .stride = 2, .padding = 1}),
      tied_case("ties, overlapping", {1, 3, 5, 5}, {.kernel_size = 3, .stride = 1, .padding = 1}),
      max_case("all negative, padded", negative, {.kernel_size = 3, .stride = 2, .padding = 1}),
      max_case("dilation 2", distinct_values({1, 2, 8, 7}, 4),
               {.kernel_size = {2, 3}, .stride = {1, 2}, .padding = 1, .dilation = 2}),
      max_case("2x3, stride 3x1", distinct_values({1, 2, 7, 5}, 7),
               {.kernel_size = {2, 3}, .stride = {3, 1}}),
      max_case("17x17: more than 256 taps", distinct_values({1, 2, 18, 18}, 8),
               {.kernel_size = 17, .stride = 1}),
      max_case("10x10, stride 1: many windows a pixel", distinct_values({1, 2, 19, 19}, 8),
               {.kernel_size = 10, .stride = 1}),
      max_case("one pixel", distinct_values({1, 1, 1, 1}, 9), {.kernel_size = 1}),
      max_case("batch 0", zeros({0, 3, 4, 4}, {DType::f64}), {.kernel_size = 2}),
      nan,
      lowest,
  };
}

std::vector<ErrorCase> max_errors() {
  const Tensor x = zeros({1, 1, 4, 4});
  return {
      {[=] {
         max_pool2d(zeros({4, 4}), {.kernel_size = 2});
       },
       "max_pool2d: input must be 4-d [N, C, H, W], got [4, 4]"},
      {[=] {
         max_pool2d(zeros({1, 1, 4, 4}, {DType::i64}), {.kernel_size = 2});
       },
       "max_pool2d: input must be floating, got i64"},
      {[=] { max_pool2d(x, {.kernel_size = 3, .padding = 2}); },
       "max_pool2d: padding must be at most half of kernel_size 3, got 2"},
      {[=] {
         max_pool2d(x, {.kernel_size = {3, 2}, .padding = {1, 2}});
       },
       "max_pool2d: padding must be at most half of kernel_size [3, 2], got [1, 2]"},
      {[=] { max_pool2d(x, {.kernel_size = 0}); },
       "max_pool2d: kernel_size must be at least 1, got 0"},
      {[=] { max_pool2d(x, {.kernel_size = 2, .stride = -1}); },
       "max_pool2d: stride must be at least 1, got -1"},
      {[=] { max_pool2d(x, {.kernel_size = 2, .dilation = 0}); },
       "max_pool2d: dilation must be at least 1, got 0"},
      {[=] { max_pool2d(x, {.kernel_size = 5}); },
       "max_pool2d: padded input height must be at least the kernel's extent 5, got 4"},
  };
}

Tensor avg_reference(const Tensor& x, const AvgPool2dOptions& o) {
  const int64_t h = x.size(2), w = x.size(3);
  const Pair s = stride_or_kernel(o.stride, o.kernel_size);
  const int64_t oh = (h + 2 * o.padding.h - o.kernel_size.h) / s.h + 1;
  const int64_t ow = (w + 2 * o.padding.w - o.kernel_size.w) / s.w + 1;
  return over_planes(x, oh, ow, [&](const double* plane, int64_t oy, int64_t ox) {
    double sum = 0, count = 0;
    for (int64_t ky = 0; ky < o.kernel_size.h; ++ky)
      for (int64_t kx = 0; kx < o.kernel_size.w; ++kx) {
        const int64_t iy = oy * s.h - o.padding.h + ky, ix = ox * s.w - o.padding.w + kx;
        const bool inside = iy >= 0 && iy < h && ix >= 0 && ix < w;
        if (inside) sum += plane[iy * w + ix];
        if (inside || o.count_include_pad) ++count;
      }
    return sum / count;
  });
}

Case avg_case(const char* name, const Shape& shape, const AvgPool2dOptions& options) {
  Case c;
  c.name = name;
  c.inputs = {values(shape, 1)};
  c.op = [options](Inputs in) { return avg_pool2d(in[0], options); };
  c.reference = [options](Inputs in) { return avg_reference(in[0], options); };
  c.terms = options.kernel_size.h * options.kernel_size.w;
  return c;
}

std::vector<Case> avg_cases() {
  return {
      avg_case("2x2", {2, 2, 6, 4}, {.kernel_size = 2}),
      avg_case("padding counted", {2, 70, 5, 7}, {.kernel_size = 3, .stride = 2, .padding = 1}),
      avg_case("padding not counted", {2, 2, 5, 7},
               {.kernel_size = 3, .stride = 2, .padding = 1, .count_include_pad = false}),
      avg_case(
          "overlapping 3x2", {1, 2, 6, 5},
          {.kernel_size = {3, 2}, .stride = {1, 2}, .padding = {1, 0}, .count_include_pad = false}),
      avg_case("stride larger than the kernel", {1, 2, 8, 8}, {.kernel_size = 2, .stride = 3}),
      avg_case("12x12: more than 64 sources", {1, 3, 14, 13}, {.kernel_size = 12, .stride = 1}),
      avg_case("one pixel", {1, 1, 1, 1}, {.kernel_size = 1}),
      avg_case("batch 0", {0, 2, 4, 4}, {.kernel_size = 2}),
  };
}

std::vector<ErrorCase> avg_errors() {
  const Tensor x = zeros({1, 1, 4, 4});
  return {
      {[=] { avg_pool2d(zeros({4}), {.kernel_size = 2}); },
       "avg_pool2d: input must be 4-d [N, C, H, W], got [4]"},
      {[=] { avg_pool2d(x, {.kernel_size = 2, .padding = 2}); },
       "avg_pool2d: padding must be at most half of kernel_size 2, got 2"},
      {[=] {
         avg_pool2d(x, {.kernel_size = {1, 5}});
       },
       "avg_pool2d: padded input width must be at least the kernel's extent 5, got 4"},
  };
}

Case adaptive_case(const char* name, const Shape& shape, Pair size) {
  Case c;
  c.name = name;
  c.inputs = {values(shape, 1)};
  c.op = [size](Inputs in) { return adaptive_avg_pool2d(in[0], size); };
  c.reference = [size](Inputs in) {
    const double h = static_cast<double>(in[0].size(2)), w = static_cast<double>(in[0].size(3));
    return over_planes(in[0], size.h, size.w, [&](const double* plane, int64_t oy, int64_t ox) {
      double sum = 0, count = 0;
      for (double iy = std::floor(static_cast<double>(oy) * h / static_cast<double>(size.h));
           iy < std::ceil(static_cast<double>(oy + 1) * h / static_cast<double>(size.h)); ++iy)
        for (double ix = std::floor(static_cast<double>(ox) * w / static_cast<double>(size.w));
             ix < std::ceil(static_cast<double>(ox + 1) * w / static_cast<double>(size.w)); ++ix) {
          sum += plane[static_cast<int64_t>(iy * w + ix)];
          ++count;
        }
      return sum / count;
    });
  };
  c.terms = std::max<int64_t>(1, shape[2] * shape[3]);
  return c;
}

std::vector<Case> adaptive_cases() {
  return {
      adaptive_case("7x7 to 3x3", {2, 2, 7, 7}, 3),
      adaptive_case("to one", {2, 70, 5, 5}, 1),
      adaptive_case("to a larger size", {1, 2, 3, 2}, {5, 4}),
      adaptive_case("5x8 to 2x3", {1, 2, 5, 8}, {2, 3}),
      adaptive_case("to the same size", {1, 2, 3, 3}, 3),
      adaptive_case("of one pixel", {2, 3, 1, 1}, 1),
      adaptive_case("batch 0", {0, 2, 4, 4}, 2),
  };
}

std::vector<ErrorCase> adaptive_errors() {
  return {
      {[] {
         adaptive_avg_pool2d(zeros({2, 3}), 1);
       },
       "adaptive_avg_pool2d: input must be 4-d [N, C, H, W], got [2, 3]"},
      {[] {
         adaptive_avg_pool2d(zeros({1, 1, 4, 4}), 0);
       },
       "adaptive_avg_pool2d: output_size must be at least 1, got 0"},
      {[] {
         adaptive_avg_pool2d(zeros({1, 1, 0, 4}), 1);
       },
       "adaptive_avg_pool2d: input must have pixels, got [1, 1, 0, 4]"},
  };
}

const Register max_entry{
    {.op = "max_pool2d", .family = "pool", .cases = max_cases, .errors = max_errors}};
const Register avg_entry{
    {.op = "avg_pool2d", .family = "pool", .cases = avg_cases, .errors = avg_errors}};
const Register adaptive_entry{{.op = "adaptive_avg_pool2d",
                               .family = "pool",
                               .cases = adaptive_cases,
                               .errors = adaptive_errors}};

}  // namespace
}  // namespace cairn::check_table
