// The public CUDA functions of any build: they look into the table that the CUDA code fills.
#include "cairn/tensor/cuda.h"

namespace cairn::cuda {
namespace {

constinit const Functions* functions = nullptr;

const Functions& present(const char* op, Device device) {
  check(device.type == DeviceType::cuda, op, ": device must be a CUDA one, got ", device);
  check(device_count() > 0, op, ": CUDA must be usable, but ", unavailable());
  check(device.index >= 0 && device.index < device_count(), op, ": device must be one of the ",
        device_count(), " that are there, got ", device);
  return *functions;
}

}  // namespace

void set_functions(const Functions* table) { functions = table; }

bool built() { return functions != nullptr; }

int device_count() { return built() ? functions->device_count() : 0; }

std::string unavailable() { return built() ? functions->unavailable() : "this build has no CUDA"; }

DeviceProperties properties(Device device) {
  return present("properties", device).properties(device);
}

int runtime_version() { return built() ? functions->runtime_version() : 0; }
int driver_version() { return built() ? functions->driver_version() : 0; }

void synchronize(Device device) { present("synchronize", device).synchronize(device); }

int64_t waits() { return built() ? functions->waits() : 0; }

void set_memory_limit(Device device, int64_t bytes) {
  check(bytes >= 0, "set_memory_limit: bytes must not be negative, got ", bytes);
  present("set_memory_limit", device).set_memory_limit(device, bytes);
}

void set_caching(bool on) {
  if (built()) functions->set_caching(on);
}

Settings& settings() {
  static Settings settings;
  return settings;
}

}  // namespace cairn::cuda
