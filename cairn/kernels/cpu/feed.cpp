// The feed's CPU functions: what the device's are compared with.
// Invariant: see feed.h.
#include "cairn/kernels/feed.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace cairn::kernels {
namespace cpu {
namespace {

constexpr int64_t kBytes = 256;

void gather_images(Out x, In bytes, In table, In order, In cursor) {
  const int64_t* at = order.data<int64_t>() + *cursor.data<int64_t>();
  const float* values = table.data<float>();
  const uint8_t* from = bytes.data<uint8_t>();
  const int64_t channel_stride = bytes.dim() == 4 ? bytes.stride(3) : 0;
  dispatch_floating(x.dtype(), "gather_images", [&]<class T>() {
    T* const to = x.data<T>();
    for (int64_t b = 0; b < x.size(0); ++b)
      for (int64_t c = 0; c < x.size(1); ++c)
        for (int64_t h = 0; h < x.size(2); ++h)
          for (int64_t w = 0; w < x.size(3); ++w) {
            const uint8_t byte = from[at[b] * bytes.stride(0) + h * bytes.stride(1) +
                                      w * bytes.stride(2) + c * channel_stride];
            to[b * x.stride(0) + c * x.stride(1) + h * x.stride(2) + w * x.stride(3)] =
                static_cast<T>(values[c * kBytes + byte]);
          }
  });
}

void gather_rows(Out y, In rows, In order, In cursor) {
  if (y.numel() == 0) return;
  const auto bytes = static_cast<size_t>(rows.nbytes() / rows.size(0));
  const int64_t* at = order.data<int64_t>() + *cursor.data<int64_t>();
  const auto* from = static_cast<const std::byte*>(rows.raw_data());
  auto* to = static_cast<std::byte*>(y.raw_data());
  for (int64_t b = 0; b < y.size(0); ++b, to += bytes)
    std::memcpy(to, from + static_cast<size_t>(at[b]) * bytes, bytes);
}

void advance_cursor(Out cursor, int64_t by) { *cursor.data<int64_t>() += by; }

void accumulate(Out total, In value, Running how, double weight) {
  double& sum = *total.data<double>();
  const double v = value.item<double>();
  switch (how) {
    case Running::weighted_sum:
      sum += v * weight;
      return;
    case Running::sum:
      sum += v;
      return;
    case Running::min:
      sum = std::isnan(v) ? v : std::min(sum, v);
      return;
    case Running::max:
      sum = std::isnan(v) ? v : std::max(sum, v);
      return;
  }
}

}  // namespace
}  // namespace cpu

Slot<void(Out, In, In, In, In)> gather_images{"gather_images", cpu::gather_images};
Slot<void(Out, In, In, In)> gather_rows{"gather_rows", cpu::gather_rows};
Slot<void(Out, int64_t)> advance_cursor{"advance_cursor", cpu::advance_cursor};
Slot<void(Out, In, Running, double)> accumulate{"accumulate", cpu::accumulate};

}  // namespace cairn::kernels
