// conv2d in the op table; the reference is the definition, seven loops deep.
#include "cairn/autograd/ops/conv.h"

#include <algorithm>

#include "cairn/tensor/factory.h"
#include "check/op_table.h"

namespace cairn::check_table {
namespace {

Tensor conv2d_reference(Inputs in, const Conv2dOptions& o) {
  const Shape &x = in[0].shape(), &w = in[1].shape();
  const int64_t oh = (x[2] + 2 * o.padding.h - o.dilation.h * (w[2] - 1) - 1) / o.stride.h + 1;
  const int64_t ow = (x[3] + 2 * o.padding.w - o.dilation.w * (w[3] - 1) - 1) / o.stride.w + 1;
  Tensor y = zeros({x[0], w[0], oh, ow}, {DType::f64});
  const double *px = in[0].data<double>(), *pw = in[1].data<double>();
  double* py = y.data<double>();
  const int64_t group_out = w[0] / o.groups;
  for (int64_t i = 0; i < y.numel(); ++i) {
    const int64_t ox = i % ow, oy = i / ow % oh, oc = i / ow / oh % w[0], n = i / ow / oh / w[0];
    double sum = in.size() > 2 ? in[2].data<double>()[oc] : 0;
    for (int64_t c = 0; c < w[1]; ++c)
      for (int64_t ky = 0; ky < w[2]; ++ky)
        for (int64_t kx = 0; kx < w[3]; ++kx) {
          const int64_t iy = oy * o.stride.h - o.padding.h + ky * o.dilation.h;
          const int64_t ix = ox * o.stride.w - o.padding.w + kx * o.dilation.w;
          if (iy < 0 || iy >= x[2] || ix < 0 || ix >= x[3]) continue;
          const int64_t ic = oc / group_out * w[1] + c;
          sum += px[((n * x[1] + ic) * x[2] + iy) * x[3] + ix] *
                 pw[((oc * w[1] + c) * w[2] + ky) * w[3] + kx];
        }
    py[i] = sum;
  }
  return y;
}

Case conv_case(const char* name, const Shape& x, const Shape& w, bool bias,
               const Conv2dOptions& options) {
  Case c;
  c.name = name;
  c.inputs = {values(x, 1), values(w, 2)};
  if (bias) c.inputs.push_back(values({w[0]}, 3));
  c.op = [options](Inputs in) {
    return conv2d(in[0], in[1], in.size() > 2 ? in[2] : Tensor{}, options);
  };
  c.reference = [options](Inputs in) { return conv2d_reference(in, options); };
  const int64_t pixels = x[0] * (x[2] + 2 * options.padding.h) * (x[3] + 2 * options.padding.w);
  c.terms = std::max({w[1] * w[2] * w[3], w[0] * w[2] * w[3], pixels, int64_t{1}});
  return c;
}

std::vector<Case> conv_cases() {
  return {
      conv_case("3x3", {2, 3, 6, 5}, {4, 3, 3, 3}, true, {}),
      conv_case("3x3, padding 1", {2, 16, 5, 5}, {24, 16, 3, 3}, true, {.padding = 1}),
      conv_case("stride 2, odd size", {2, 3, 7, 9}, {4, 3, 3, 3}, true,
                {.stride = 2, .padding = 1}),
      conv_case("stride 2, last column unused", {1, 2, 8, 6}, {3, 2, 3, 3}, false, {.stride = 2}),
      conv_case("stride 3 larger than the kernel", {1, 2, 8, 7}, {3, 2, 2, 2}, false,
                {.stride = 3}),
      conv_case("dilation 2", {2, 2, 9, 8}, {3, 2, 3, 3}, true, {.padding = 2, .dilation = 2}),
      conv_case("stride and dilation differ by axis", {1, 2, 10, 9}, {2, 2, 3, 2}, true,
                {.stride = {1, 3}, .padding = {2, 1}, .dilation = {3, 2}}),
      conv_case("2 groups", {2, 4, 5, 5}, {6, 2, 3, 3}, true, {.padding = 1, .groups = 2}),
      conv_case("depthwise, stride 2", {2, 4, 6, 6}, {4, 1, 3, 3}, true,
                {.stride = 2, .padding = 1, .groups = 4}),
      conv_case("depthwise with multiplier 2", {1, 3, 5, 5}, {6, 1, 3, 3}, false, {.groups = 3}),
      conv_case("padding larger than needed", {2, 2, 3, 3}, {3, 2, 3, 3}, true,
                {.padding = {4, 3}}),
      conv_case("windows of padding only", {1, 2, 2, 2}, {2, 2, 3, 3}, false,
                {.stride = 2, .padding = 3}),
      conv_case("kernel larger than the input", {3, 4, 1, 1}, {5, 4, 3, 3}, false, {.padding = 1}),
      conv_case("1x1", {2, 5, 4, 3}, {6, 5, 1, 1}, false, {}),
      conv_case("1x1, stride 2", {2, 3, 7, 5}, {4, 3, 1, 1}, false, {.stride = 2}),
      conv_case("1x1, padded", {1, 2, 3, 3}, {2, 2, 1, 1}, true, {.padding = 1}),
      conv_case("batch 1", {1, 3, 5, 5}, {2, 3, 3, 3}, true, {.padding = 1}),
      conv_case("3x5 kernel", {2, 2, 6, 8}, {3, 2, 3, 5}, false, {.padding = {1, 2}}),
      conv_case("7x7 stem", {2, 1, 14, 14}, {4, 1, 7, 7}, false, {.stride = 2, .padding = 3}),
      conv_case("one output pixel", {2, 3, 3, 4}, {2, 3, 3, 4}, true, {}),
      conv_case("one of everything", {1, 1, 1, 1}, {1, 1, 1, 1}, true, {}),
      conv_case("batch 0", {0, 2, 4, 4}, {3, 2, 3, 3}, true, {}),
      conv_case("no input channels", {2, 0, 4, 4}, {3, 0, 3, 3}, true, {}),
  };
}

std::vector<ErrorCase> conv_errors() {
  const Tensor x = zeros({2, 4, 5, 5}), w = zeros({6, 4, 3, 3});
  return {
      {[=] {
         conv2d(zeros({4, 5, 5}), w);
       },
       "conv2d: input must be 4-d [N, C, H, W], got [4, 5, 5]"},
      {[=] {
         conv2d(x, zeros({6, 4, 3}));
       },
       "conv2d: weight must be 4-d [O, C / groups, KH, KW], got [6, 4, 3]"},
      {[=] {
         conv2d(zeros({2, 4, 5, 5}, {DType::i64}), w);
       },
       "conv2d: input must be floating, got i64"},
      {[=] {
         conv2d(x, zeros({6, 4, 3, 3}, {DType::f64}));
       },
       "conv2d: weight must be f32 like the input, got f64"},
      {[=] {
         conv2d(x, zeros({6, 3, 3, 3}));
       },
       "conv2d: input must have 3 channels for weight [6, 3, 3, 3] and groups 1, got 4"},
      {[=] { conv2d(x, w, {}, {.groups = 3}); },
       "conv2d: input channels must divide by groups 3, got 4"},
      {[=] {
         conv2d(x, zeros({5, 2, 3, 3}), {}, {.groups = 2});
       },
       "conv2d: output channels must divide by groups 2, got 5"},
      {[=] { conv2d(x, w, {}, {.groups = 0}); }, "conv2d: groups must be at least 1, got 0"},
      {[=] { conv2d(x, w, zeros({4})); }, "conv2d: bias must be of shape [6], got [4]"},
      {[=] { conv2d(x, w, zeros({6}, {DType::bf16})); },
       "conv2d: bias must be f32 like the input, got bf16"},
      {[=] { conv2d(x, w, {}, {.stride = 0}); }, "conv2d: stride must be at least 1, got 0"},
      {[=] {
         conv2d(x, w, {}, {.dilation = {1, 0}});
       },
       "conv2d: dilation must be at least 1, got 0"},
      {[=] { conv2d(x, w, {}, {.padding = -1}); }, "conv2d: padding must not be negative, got -1"},
      {[=] {
         conv2d(x, w, {}, {.dilation = {3, 1}});
       },
       "conv2d: padded input height must be at least the kernel's extent 7, got 5"},
  };
}

const Register conv2d_entry{
    {.op = "conv2d", .family = "conv", .cases = conv_cases, .errors = conv_errors}};

}  // namespace
}  // namespace cairn::check_table
