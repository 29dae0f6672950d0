// Device names and the backend table.
#include "cairn/tensor/device.h"

#include <charconv>

#include "cairn/tensor/cpu_backend.h"

namespace cairn {
namespace detail {

// Made by CMake from the device code that is built: fills device tables and kernel slots. Called
// here, so that a static program that asks for any device has them all.
void fill_device_tables();

}  // namespace detail

namespace {

constinit const DeviceBackend* backends[kDeviceTypeCount] = {&kCpuBackend, nullptr};
const bool filled = (detail::fill_device_tables(), true);

}  // namespace

Device::Device(std::string_view text) {
  const auto colon = text.find(':');
  const auto kind = text.substr(0, colon);
  const bool known = kind == "cpu" || kind == "cuda";
  int number = 0;
  bool ok = known;
  if (ok && colon != std::string_view::npos) {
    const char* last = text.data() + text.size();
    const auto [end, error] = std::from_chars(text.data() + colon + 1, last, number);
    ok = error == std::errc{} && end == last && number >= 0 && number < 128 &&
         (kind == "cuda" || number == 0);
  }
  check(ok, "device: name must be cpu, cuda or cuda:N, got '", text, "'");
  type = kind == "cuda" ? DeviceType::cuda : DeviceType::cpu;
  index = static_cast<int16_t>(number);
}

std::string_view name_of(DeviceType type) { return type == DeviceType::cpu ? "cpu" : "cuda"; }

void append_text(std::string& out, Device device) {
  out += name_of(device.type);
  if (device.type != DeviceType::cpu) {
    out += ':';
    out += std::to_string(device.index);
  }
}

const DeviceBackend& backend_of(DeviceType type, const char* op) {
  const DeviceBackend* backend = backends[static_cast<int>(type)];
  check(backend != nullptr, op, ": device must be present, got ", name_of(type),
        ", which this build or machine does not have");
  return *backend;
}

void set_backend(DeviceType type, const DeviceBackend* backend) {
  backends[static_cast<int>(type)] = backend;
}

bool has_backend(DeviceType type) { return backends[static_cast<int>(type)] != nullptr; }

}  // namespace cairn
