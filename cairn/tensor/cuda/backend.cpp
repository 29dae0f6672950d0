// CUDA's row of the device table.
// Invariant: copies between host and device go through pinned memory in whole, dense pieces;
// strides and dtypes are dealt with on the side where the data is larger or already lies.
#include "cairn/tensor/cuda/backend.h"

#include <cmath>
#include <cstring>

#include "cairn/tensor/cuda.h"
#include "cairn/tensor/cuda/availability.h"
#include "cairn/tensor/cuda/copy.h"
#include "cairn/tensor/cuda/device_allocator.h"
#include "cairn/tensor/cuda/graph.h"
#include "cairn/tensor/cuda/pinned.h"
#include "cairn/tensor/cuda/random.h"
#include "cairn/tensor/cuda/runtime.h"
#include "cairn/tensor/raw.h"

namespace cairn::cuda {
namespace {

// Both dense in the same order, and of one dtype: a copy of bytes.
bool same_bytes(const Tensor& dst, const Tensor& src) {
  return dst.dtype() == src.dtype() && dst.is_dense() && src.is_dense() &&
         (dst.strides() == src.strides() || (dst.is_contiguous() && src.is_contiguous()));
}

Shape dense_strides(const Tensor& t) {
  return t.is_dense() ? t.strides() : contiguous_strides(t.shape());
}

void to_device(const Tensor& dst, const Tensor& src) {
  const Device device = dst.device();
  refuse_in_capture(device, "copy_", "copy from the host");
  if (!same_bytes(dst, src)) {
    // The bytes travel as they are (bf16 as two, not four) and the device sorts them.
    const Tensor host = src.is_dense() ? src : raw::contiguous(src);
    const Tensor there = empty_strided(host.shape(), host.strides(), {host.dtype(), device});
    to_device(there, host);
    return copy_on_device(dst, there);
  }
  const DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const auto bytes = static_cast<size_t>(dst.nbytes());
  // From pageable memory the call would wait for the stream.
  Pinned pinned(device, dst.nbytes());
  std::memcpy(pinned.data(), src.raw_data(), bytes);
  CAIRN_CUDA(cudaMemcpyAsync, dst.raw_data(), pinned.data(), bytes, cudaMemcpyHostToDevice, stream);
  pinned.used_by(stream);
}

void to_host(const Tensor& dst, const Tensor& src) {
  const Device device = src.device();
  refuse_in_capture(device, "copy_", "ask for a value, which waits for the device");
  if (!same_bytes(dst, src)) {
    const bool convert_there = item_size(dst.dtype()) < item_size(src.dtype());
    const DType dtype = convert_there ? dst.dtype() : src.dtype();
    const Tensor there = empty_strided(src.shape(), dense_strides(src), {dtype, device});
    copy_on_device(there, src);
    const Tensor host = empty_strided(src.shape(), there.strides(), {dtype});
    to_host(host, there);
    return raw::copy_(dst, host);
  }
  const DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const auto bytes = static_cast<size_t>(src.nbytes());
  Pinned pinned(device, src.nbytes());
  CAIRN_CUDA(cudaMemcpyAsync, pinned.data(), src.raw_data(), bytes, cudaMemcpyDeviceToHost, stream);
  wait_for(device, stream);
  std::memcpy(dst.raw_data(), pinned.data(), bytes);
}

void between_devices(const Tensor& dst, const Tensor& src) {
  const Tensor from = same_bytes(dst, src) ? src : raw::to(raw::contiguous(src), dst.dtype());
  const Tensor there =
      same_bytes(dst, from) ? dst : empty(dst.shape(), {dst.dtype(), dst.device()});
  const cudaStream_t stream = current_stream(src.device());
  // The memory may still be in use by what the destination's stream was given before.
  {
    const DeviceGuard other(dst.device());
    const OwnedEvent free = make_event();
    CAIRN_CUDA(cudaEventRecord, free.get(), current_stream(dst.device()));
    CAIRN_CUDA(cudaStreamWaitEvent, stream, free.get(), 0);
  }
  const DeviceGuard guard(src.device());
  CAIRN_CUDA(cudaMemcpyPeerAsync, there.raw_data(), there.device().index, from.raw_data(),
             from.device().index, static_cast<size_t>(from.nbytes()), stream);
  // The destination's stream goes on after it.
  const OwnedEvent event = make_event();
  CAIRN_CUDA(cudaEventRecord, event.get(), stream);
  {
    const DeviceGuard other(dst.device());
    CAIRN_CUDA(cudaStreamWaitEvent, current_stream(dst.device()), event.get(), 0);
  }
  if (!there.same_as(dst)) copy_on_device(dst, there);
}

void copy(const Tensor& dst, const Tensor& src) {
  if (src.device().type == DeviceType::cpu) return to_device(dst, src);
  if (dst.device().type == DeviceType::cpu) return to_host(dst, src);
  if (dst.device() != src.device()) return between_devices(dst, src);
  const bool overlapping = dst.raw_data() == src.raw_data();
  if (!same_bytes(dst, src)) return copy_on_device(dst, src);
  if (overlapping) return;
  const DeviceGuard guard(dst.device());
  CAIRN_CUDA(cudaMemcpyAsync, dst.raw_data(), src.raw_data(), static_cast<size_t>(dst.nbytes()),
             cudaMemcpyDeviceToDevice, current_stream(dst.device()));
}

void fill(const Tensor& dst, double value) {
  if (value == 0 && !std::signbit(value) && dst.is_dense()) {
    const DeviceGuard guard(dst.device());
    CAIRN_CUDA(cudaMemsetAsync, dst.raw_data(), 0, static_cast<size_t>(dst.nbytes()),
               current_stream(dst.device()));
    return;
  }
  fill_on_device(dst, value);
}

Allocator* allocator(Device device) { return &allocator_of(device); }

DeviceProperties properties(Device device) {
  cudaDeviceProp found{};
  CAIRN_CUDA(cudaGetDeviceProperties, &found, device.index);
  return {.name = found.name,
          .major = found.major,
          .minor = found.minor,
          .multiprocessors = found.multiProcessorCount,
          .memory = static_cast<int64_t>(found.totalGlobalMem),
          .l2_cache = found.l2CacheSize,
          .shared_memory_per_block = static_cast<int64_t>(found.sharedMemPerBlockOptin)};
}

int driver_version() {
  int version = 0;
  CAIRN_CUDA(cudaDriverGetVersion, &version);
  return version;
}

void set_memory_limit(Device device, int64_t bytes) { allocator_of(device).set_limit(bytes); }

void set_caching(bool on) {
  for (int i = 0; i < usable_devices(); ++i)
    allocator_of(Device(DeviceType::cuda, i)).set_caching(on);
}

constexpr DeviceBackend kBackend{.allocator = allocator,
                                 .copy = copy,
                                 .fill = fill,
                                 .random = random_on_device,
                                 .synchronize = wait_for_device,
                                 .capture = &kCaptureBackend};

constexpr Functions kFunctions{.device_count = usable_devices,
                               .unavailable = why_unusable,
                               .properties = properties,
                               .runtime_version = [] { return CUDART_VERSION; },
                               .driver_version = driver_version,
                               .synchronize = wait_for_device,
                               .waits = wait_count,
                               .set_memory_limit = set_memory_limit,
                               .set_caching = set_caching};

}  // namespace

// The row is there in every CUDA build; using it on a machine without a device throws the reason.
void fill_tensor() {
  set_functions(&kFunctions);
  set_backend(DeviceType::cuda, &kBackend);
}

}  // namespace cairn::cuda
