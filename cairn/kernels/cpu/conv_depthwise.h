// Depthwise convolution (groups == ci == co): no product to share, so vectors run over channels.
// Invariant: like conv_compute.h: valid taps only, order of sums fixed by the geometry.
#pragma once

#include "cairn/kernels/cpu/conv_compute.h"

namespace cairn::kernels::cpu {

inline bool is_depthwise(const ConvGeometry& g) {
  return g.groups > 1 && g.groups == g.ci && g.groups == g.co;
}

template <class T>
void depthwise_fwd(const ConvGeometry& g, T* y, const T* x, const T* weights, const T* bias);
template <class T>
void depthwise_bwd_data(const ConvGeometry& g, T* dx, bool add, const T* dy, const T* weights);
template <class T>
void depthwise_bwd_weight(const ConvGeometry& g, T* dw, bool add, const T* x, const T* dy);

}  // namespace cairn::kernels::cpu
