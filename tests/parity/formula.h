// The parity formula in C++: the numbers that tests and benchmarks rebuild instead of reading.
// Invariant: the same doubles, bit for bit, as formula.py (its first comment says what and why);
// `shift + scale * unit` must stay one multiply and one add, so nothing here may be contracted to
// an FMA: the product goes through a volatile.
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

namespace cairn::parity {

inline constexpr int64_t kImages = 1000;   // tensor number of the parity batch
inline constexpr int64_t kSamples = 2000;  // + place in the state dict
inline constexpr int64_t kSampleCount = 16;

inline constexpr uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

// 64 hash bits of element `element` of tensor number `tensor`.
inline constexpr uint64_t bits(int64_t tensor, int64_t element) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ULL;
  const uint64_t key = mix(static_cast<uint64_t>(tensor + 1) * kGolden);
  return mix(key + static_cast<uint64_t>(element + 1) * kGolden);
}

// In [-1, 1), exact: 53 bits.
inline constexpr double unit(int64_t tensor, int64_t element) {
  return static_cast<double>(bits(tensor, element) >> 11) * 0x1p-52 - 1.0;
}

inline double value(int64_t tensor, int64_t element, double scale = 1.0, double shift = 0.0) {
  const volatile double product = scale * unit(tensor, element);
  return shift + product;
}

// Which element of state-dict entry `place` (numel > 0 elements) sample number `sample` is.
inline constexpr int64_t sample_element(int64_t place, int64_t sample, int64_t numel) {
  return static_cast<int64_t>(bits(kSamples + place, sample) % static_cast<uint64_t>(numel));
}

// How a ResNet's state-dict entry starts: value(place, e, scale, shift); scale 0 means constant.
struct Fill {
  double scale = 0.0;
  double shift = 0.0;
};

// `name` without any prefix such as "model."; `shape` is anything with size() and [] (OIHW for a
// convolution). fc.bias takes `fc_features`, the input width of fc: 512 for resnet18 and resnet34.
template <class Shape>
Fill resnet_fill(std::string_view name, const Shape& shape, int64_t fc_features = 512) {
  const auto ends_with = [name](std::string_view tail) {
    return name.size() >= tail.size() && name.substr(name.size() - tail.size()) == tail;
  };
  if (ends_with("num_batches_tracked") || ends_with("running_mean")) return {0.0, 0.0};
  if (ends_with("running_var")) return {0.0, 1.0};
  if (name == "fc.weight" || name == "fc.bias") {
    return {1.0 / std::sqrt(static_cast<double>(fc_features)), 0.0};
  }
  if (shape.size() == 4) {
    const double fan_out = static_cast<double>(shape[0] * shape[2] * shape[3]);
    return {std::sqrt(6.0 / fan_out), 0.0};
  }
  return ends_with("weight") ? Fill{0.1, 1.0} : Fill{0.1, 0.0};
}

}  // namespace cairn::parity
