// An H100, for cuDNN where there is none.
#pragma once

#include <optional>
#include <string_view>

#include "cairn/kernels/cuda/dnn_api.h"

namespace cairn::test {

// As cuDNN 9 writes a device down.
inline constexpr std::string_view kH100 = R"({
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536, "multiProcessorCount": 132, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0,
    "isTccDriver": 0, "supportCoopLaunch": 1, "smClockRateKHz": 1980000,
    "memClockRateKHz": 2619000, "l2CacheSize": 52428800, "totalGlobalMem": 85029158912,
    "cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000,
    "deviceName": "NVIDIA H100 80GB HBM3"
})";

// Nothing where this cuDNN writes devices another way.
inline std::optional<kernels::cuda::Descriptor> h100(const kernels::cuda::DnnApi& api) {
  kernels::cuda::Descriptor device(api, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  device.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
             std::span<const char>(kH100.data(), kH100.size()));
  if (!device.try_finalize()) return std::nullopt;
  return device;
}

}  // namespace cairn::test
