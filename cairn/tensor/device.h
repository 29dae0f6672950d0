// Devices and the table of what each kind can do.
// Invariant: a device kind is usable when its row of the table is filled; the CPU's always is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cairn/tensor/error.h"

namespace cairn {

class Tensor;
class Allocator;
struct CaptureBackend;

enum class DeviceType : uint8_t { cpu, cuda };
constexpr int kDeviceTypeCount = 2;

struct Device {
  DeviceType type = DeviceType::cpu;
  int16_t index = 0;

  Device() = default;
  Device(DeviceType t, int i = 0) : type(t), index(static_cast<int16_t>(i)) {}
  // "cpu", "cuda" or "cuda:1"; throws Error on anything else.
  explicit Device(std::string_view text);
  bool operator==(const Device&) const = default;
};

inline const Device kCPU{};

std::string_view name_of(DeviceType type);
void append_text(std::string& out, Device device);

// One draw of random numbers into a tensor.
struct RandomDraw {
  enum class Kind : uint8_t { uniform, normal };
  Kind kind = Kind::uniform;
  double a = 0, b = 1;  // uniform in [a, b); normal of mean a and standard deviation b
  uint64_t seed = 0;
  uint64_t offset = 0;  // the first Philox block
  double top = 1;       // uniform: no number above this one, the dtype's largest below b (or a)
};

// What tensor/ needs of a device kind.
struct DeviceBackend {
  Allocator* (*allocator)(Device device);
  // dst and src have equal shapes, any strides and dtypes; at least one lies on this kind.
  void (*copy)(const Tensor& dst, const Tensor& src);
  // Every element of dst becomes value, converted to its dtype.
  void (*fill)(const Tensor& dst, double value);
  // Draws into t, floating, not expanded, of any strides. Element i of the row-major order depends
  // on the draw, the dtype and i alone, as random.h says, so that every device draws the CPU's
  // numbers (normal ones to rounding).
  void (*random)(const Tensor& t, const RandomDraw& draw);
  // Waits until the device has done all it was asked for. Null where calls are done on return.
  void (*synchronize)(Device device) = nullptr;
  // Null where the device's work cannot be captured.
  const CaptureBackend* capture = nullptr;
};

// Throws `op: no CUDA device in this build or machine` where the row is empty.
const DeviceBackend& backend_of(DeviceType type, const char* op);
void set_backend(DeviceType type, const DeviceBackend* backend);
bool has_backend(DeviceType type);

}  // namespace cairn
