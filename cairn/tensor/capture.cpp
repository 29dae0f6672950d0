// Capture: found through the device table.
#include "cairn/tensor/capture.h"

#include <algorithm>
#include <atomic>

namespace cairn {
namespace {

const CaptureBackend& capture_backend(Device device) {
  const DeviceBackend& backend = backend_of(device.type, "capture");
  check(backend.capture != nullptr, "capture: device must be one that captures its work, got ",
        device);
  return *backend.capture;
}

thread_local Capture* open_capture = nullptr;

}  // namespace

GraphPool graph_pool_handle(Device device) { return capture_backend(device).make_pool(device); }

bool CapturedGraph::holds() const {
  return std::all_of(conditions_.begin(), conditions_.end(),
                     [](const CaptureCondition& c) { return c.holds(); });
}

void CapturedGraph::launch() {
  check(defined(), "launch: graph must be defined, got an empty one");
  for (const CaptureCondition& c : conditions_)
    check(c.holds(), "launch: graph must find ", c.what,
          " as when it was captured, got others; capture it anew");
  impl_->launch();
}

int64_t CapturedGraph::nodes() const { return defined() ? impl_->nodes() : 0; }

Capture::Capture(Device device, Generator& generator, const GraphPool& pool)
    : device_(device), impl_(capture_backend(device).begin(device, generator, pool)) {
  static std::atomic<uint64_t> count = 0;
  number_ = ++count;
  open_capture = this;
}

Capture::~Capture() {
  if (open_capture == this) open_capture = nullptr;
}

Capture* Capture::current(Device device) {
  return open_capture != nullptr && open_capture->device_ == device ? open_capture : nullptr;
}

Tensor Capture::keep(const Tensor& result) {
  check(impl_ != nullptr, "keep: capture must be open, got one that is finished");
  return impl_->keep(result);
}

CapturedGraph Capture::finish() {
  check(impl_ != nullptr, "finish: capture must be open, got one that is finished");
  open_capture = nullptr;
  const std::unique_ptr<Impl> impl = std::move(impl_);
  return CapturedGraph(impl->finish(), std::move(conditions_));
}

}  // namespace cairn
