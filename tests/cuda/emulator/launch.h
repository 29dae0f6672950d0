// cuda::launch for kernels that run on the host; included by cairn/tensor/cuda/launch.h.
#pragma once

namespace cairn::cuda {

template <class... Parameters>
void launch(Device device, const char* name, void (*kernel)(Parameters...), const Grid& grid,
            std::type_identity_t<Parameters>... arguments) {
  const DeviceGuard guard(device);
  // As on a device, the arguments are copied when the kernel is queued.
  check_call(emulator::submit(name, grid.blocks, grid.threads, grid.shared, current_stream(device),
                              [=] { kernel(arguments...); }),
             name);
}

}  // namespace cairn::cuda
