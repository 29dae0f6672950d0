// Capture: found through the device table.
#include "cairn/tensor/capture.h"

namespace cairn {

void CapturedGraph::launch() {
  check(defined(), "launch: graph must be defined, got an empty one");
  impl_->launch();
}

int64_t CapturedGraph::nodes() const { return defined() ? impl_->nodes() : 0; }

Capture::Capture(Device device, Generator& generator) {
  const DeviceBackend& backend = backend_of(device.type, "capture");
  check(backend.capture != nullptr, "capture: device must be one that captures its work, got ",
        device);
  impl_ = backend.capture->begin(device, generator);
}

Capture::~Capture() = default;

CapturedGraph Capture::finish() {
  check(impl_ != nullptr, "finish: capture must be open, got one that is finished");
  const std::unique_ptr<Impl> impl = std::move(impl_);
  return impl->finish();
}

}  // namespace cairn
