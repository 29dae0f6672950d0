// Capture: found through the device table.
#include "cairn/tensor/capture.h"

namespace cairn {
namespace {

const CaptureBackend& capture_backend(Device device) {
  const DeviceBackend& backend = backend_of(device.type, "capture");
  check(backend.capture != nullptr, "capture: device must be one that captures its work, got ",
        device);
  return *backend.capture;
}

}  // namespace

GraphPool graph_pool_handle(Device device) { return capture_backend(device).make_pool(device); }

void CapturedGraph::launch() {
  check(defined(), "launch: graph must be defined, got an empty one");
  impl_->launch();
}

int64_t CapturedGraph::nodes() const { return defined() ? impl_->nodes() : 0; }

Capture::Capture(Device device, Generator& generator, const GraphPool& pool)
    : impl_(capture_backend(device).begin(device, generator, pool)) {}

Capture::~Capture() = default;

Tensor Capture::keep(const Tensor& result) {
  check(impl_ != nullptr, "keep: capture must be open, got one that is finished");
  return impl_->keep(result);
}

CapturedGraph Capture::finish() {
  check(impl_ != nullptr, "finish: capture must be open, got one that is finished");
  const std::unique_ptr<Impl> impl = std::move(impl_);
  return impl->finish();
}

}  // namespace cairn
