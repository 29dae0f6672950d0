// Depthwise kernels. Invariant: a pixel's sum runs over its valid taps in plan order; a weight's
// sum runs over images, rows and columns in order, in parts that the geometry alone decides.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/conv_depthwise.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "cairn/kernels/cpu/conv_depthwise.h"
#include "cairn/kernels/cpu/conv_plan.h"
#include "cairn/kernels/cpu/gemm.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// out[c] = init + sum over terms of a[c] * b[c], for `channels` channels.
template <class T>
void tap_sum(const GemmTerm<T>* terms, int64_t n_terms, int64_t channels, const T* bias, bool add,
             T* out) {
  const hn::ScalableTag<T> d;
  constexpr int64_t kLanes = hn::MaxLanes(hn::ScalableTag<T>());
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    auto sum = hn::Zero(d);
    if (add)
      sum = hn::LoadU(d, out + c);
    else if (bias != nullptr)
      sum = hn::LoadU(d, bias + c);
    for (int64_t t = 0; t < n_terms; ++t)
      sum = hn::MulAdd(hn::LoadU(d, terms[t].a + c), hn::LoadU(d, terms[t].b + c), sum);
    hn::StoreU(sum, d, out + c);
  }
  for (; c < channels; ++c) {
    T sum = add ? out[c] : bias != nullptr ? bias[c] : T(0);
    for (int64_t t = 0; t < n_terms; ++t) sum += terms[t].a[c] * terms[t].b[c];
    out[c] = sum;
  }
}

// out[c] += sum over j < count of a[j*a_step + c] * b[j*b_step + c].
template <class T>
void pixel_dot(const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t count,
               int64_t channels, T* out) {
  const hn::ScalableTag<T> d;
  constexpr int64_t kLanes = hn::MaxLanes(hn::ScalableTag<T>());
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    auto sum = hn::LoadU(d, out + c);
    for (int64_t j = 0; j < count; ++j)
      sum = hn::MulAdd(hn::LoadU(d, a + j * a_step + c), hn::LoadU(d, b + j * b_step + c), sum);
    hn::StoreU(sum, d, out + c);
  }
  for (; c < channels; ++c) {
    T sum = out[c];
    for (int64_t j = 0; j < count; ++j) sum += a[j * a_step + c] * b[j * b_step + c];
    out[c] = sum;
  }
}

void tap_sum_f32(const GemmTerm<float>* terms, int64_t n_terms, int64_t channels, const float* bias,
                 bool add, float* out) {
  tap_sum(terms, n_terms, channels, bias, add, out);
}
void tap_sum_f64(const GemmTerm<double>* terms, int64_t n_terms, int64_t channels,
                 const double* bias, bool add, double* out) {
  tap_sum(terms, n_terms, channels, bias, add, out);
}
void pixel_dot_f32(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t count,
                   int64_t channels, float* out) {
  pixel_dot(a, a_step, b, b_step, count, channels, out);
}
void pixel_dot_f64(const double* a, int64_t a_step, const double* b, int64_t b_step, int64_t count,
                   int64_t channels, double* out) {
  pixel_dot(a, a_step, b, b_step, count, channels, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels::cpu {

HWY_EXPORT(tap_sum_f32);
HWY_EXPORT(tap_sum_f64);
HWY_EXPORT(pixel_dot_f32);
HWY_EXPORT(pixel_dot_f64);

namespace {

void tap_sum(const GemmTerm<float>* terms, int64_t n_terms, int64_t channels, const float* bias,
             bool add, float* out) {
  HWY_DYNAMIC_DISPATCH(tap_sum_f32)(terms, n_terms, channels, bias, add, out);
}
void tap_sum(const GemmTerm<double>* terms, int64_t n_terms, int64_t channels, const double* bias,
             bool add, double* out) {
  HWY_DYNAMIC_DISPATCH(tap_sum_f64)(terms, n_terms, channels, bias, add, out);
}
void pixel_dot(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t count,
               int64_t channels, float* out) {
  HWY_DYNAMIC_DISPATCH(pixel_dot_f32)(a, a_step, b, b_step, count, channels, out);
}
void pixel_dot(const double* a, int64_t a_step, const double* b, int64_t b_step, int64_t count,
               int64_t channels, double* out) {
  HWY_DYNAMIC_DISPATCH(pixel_dot_f64)(a, a_step, b, b_step, count, channels, out);
}

struct Plan {
  AxisPlan y, x;
};
Plan& thread_plan() {
  thread_local Plan plan;
  return plan;
}

template <class T>
struct Maps {
  int64_t n, result_h, result_w, source_h, source_w, channels, kw;
  T* result;
  const T* source;
  const T* weights;
  const T* bias;
  bool add;
};

// Tap positions of the plan stand for taps tap_y[..], tap_x[..] of the weights.
template <class T>
void gather(const Maps<T>& m, const Plan& plan, const int64_t* tap_y, const int64_t* tap_x) {
  const double flops = 2.0 * static_cast<double>(plan.y.taps.size()) *
                       static_cast<double>(plan.x.taps.size()) *
                       static_cast<double>(m.n * m.channels);
  const auto max_terms = static_cast<int64_t>(plan.y.live.size() * plan.x.live.size());
  for_each_unit(m.n * m.result_h, flops, [&](int64_t row) {
    GemmTerm<T>* terms = scratch<GemmTerm<T>>(ScratchSlot::kTerms, max_terms + 1);
    const int64_t image = row / m.result_h;
    const int64_t y = row % m.result_h;
    const T* source = m.source + image * m.source_h * m.source_w * m.channels;
    for (int64_t x = 0; x < m.result_w; ++x) {
      int64_t count = 0;
      for (const AxisTap* ty = plan.y.begin(y); ty != plan.y.end(y); ++ty)
        for (const AxisTap* tx = plan.x.begin(x); tx != plan.x.end(x); ++tx)
          terms[count++] = {source + (ty->source * m.source_w + tx->source) * m.channels,
                            m.weights + (tap_y[ty->tap] * m.kw + tap_x[tx->tap]) * m.channels, 1};
      tap_sum(terms, count, m.channels, m.bias, m.add,
              m.result + (row * m.result_w + x) * m.channels);
    }
  });
}

}  // namespace

template <class T>
void depthwise_fwd(const ConvGeometry& g, T* y, const T* x, const T* weights, const T* bias) {
  Plan& plan = thread_plan();
  plan_forward_axis(axis_y(g), &plan.y);
  plan_forward_axis(axis_x(g), &plan.x);
  thread_local std::vector<int64_t> same;
  same.resize(static_cast<size_t>(std::max(g.kh, g.kw)));
  for (size_t t = 0; t < same.size(); ++t) same[t] = static_cast<int64_t>(t);
  gather<T>({g.n, g.oh, g.ow, g.h, g.w, g.ci, g.kw, y, x, weights, bias, false}, plan, same.data(),
            same.data());
}

template <class T>
void depthwise_bwd_data(const ConvGeometry& g, T* dx, bool add, const T* dy, const T* weights) {
  Plan& plan = thread_plan();
  plan_backward_axis(axis_y(g), &plan.y);
  plan_backward_axis(axis_x(g), &plan.x);
  thread_local std::vector<int64_t> tap_y, tap_x;
  tap_y.resize(static_cast<size_t>(g.kh));
  tap_x.resize(static_cast<size_t>(g.kw));
  for (int64_t t = 0; t < g.kh; ++t)
    tap_y[static_cast<size_t>(backward_tap_position(axis_y(g), t))] = t;
  for (int64_t t = 0; t < g.kw; ++t)
    tap_x[static_cast<size_t>(backward_tap_position(axis_x(g), t))] = t;
  gather<T>({g.n, g.h, g.w, g.oh, g.ow, g.ci, g.kw, dx, dy, weights, nullptr, add}, plan,
            tap_y.data(), tap_x.data());
}

template <class T>
void depthwise_bwd_weight(const ConvGeometry& g, T* dw, bool add, const T* x, const T* dy) {
  constexpr int64_t kParts = 32;  // of the sum over images, fixed so that threads do not matter
  const int64_t parts = std::clamp<int64_t>(g.n, 1, kParts);
  const int64_t size = g.kh * g.kw * g.ci;
  T* partial = scratch<T>(ScratchSlot::kPartial, parts * size);
  const double flops = 2.0 * static_cast<double>(g.n * g.oh * g.ow) * static_cast<double>(size);
  for_each_unit(parts, flops, [&](int64_t part) {
    T* out = partial + part * size;
    std::fill_n(out, size, T(0));
    for (int64_t n = part * g.n / parts; n < (part + 1) * g.n / parts; ++n) {
      for (int64_t ty = 0; ty < g.kh; ++ty) {
        for (int64_t tx = 0; tx < g.kw; ++tx) {
          const ValidRange ys = valid_outputs(axis_y(g), ty), xs = valid_outputs(axis_x(g), tx);
          if (xs.count() <= 0) continue;
          for (int64_t oy = ys.begin; oy < ys.end; ++oy) {
            const int64_t iy = oy * g.stride_h - g.pad_h + ty * g.dil_h;
            const int64_t ix = xs.begin * g.stride_w - g.pad_w + tx * g.dil_w;
            pixel_dot(x + ((n * g.h + iy) * g.w + ix) * g.ci, g.stride_w * g.ci,
                      dy + ((n * g.oh + oy) * g.ow + xs.begin) * g.ci, g.ci, xs.count(), g.ci,
                      out + (ty * g.kw + tx) * g.ci);
          }
        }
      }
    }
  });
  sum_parts(partial, parts, size, size, dw, add);
}

template void depthwise_fwd<float>(const ConvGeometry&, float*, const float*, const float*,
                                   const float*);
template void depthwise_fwd<double>(const ConvGeometry&, double*, const double*, const double*,
                                    const double*);
template void depthwise_bwd_data<float>(const ConvGeometry&, float*, bool, const float*,
                                        const float*);
template void depthwise_bwd_data<double>(const ConvGeometry&, double*, bool, const double*,
                                         const double*);
template void depthwise_bwd_weight<float>(const ConvGeometry&, float*, bool, const float*,
                                          const float*);
template void depthwise_bwd_weight<double>(const ConvGeometry&, double*, bool, const double*,
                                           const double*);

}  // namespace cairn::kernels::cpu
#endif  // HWY_ONCE
