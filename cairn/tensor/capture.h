// Capture: a stretch of a device's work, recorded once and launched as a whole, many times.
// Invariant: a launch does what the captured calls would have done, bit for bit, with the memory
// and the numbers they were given; random draws go on from launch to launch.
//
//   Capture capture(device, generator);
//   step();                              // recorded, not run
//   CapturedGraph graph = capture.finish();
//   for (…) graph.launch();
//
// Memory that the step allocates is the graph's own, for as long as the graph lives. Tensors made
// before must be kept by whoever made them. What the host does in between (counting steps, asking
// for a value) is not part of a graph: a call that would wait for the device throws.
#pragma once

#include <cstdint>
#include <memory>

#include "cairn/tensor/device.h"
#include "cairn/tensor/random.h"

namespace cairn {

class CapturedGraph {
 public:
  CapturedGraph() = default;
  bool defined() const { return impl_ != nullptr; }
  // Queues the whole stretch. Reserves the random numbers that it draws from the generator the
  // capture was given, so that the generator stands as after the same calls made one by one.
  void launch();
  // Kernels, copies and fills in it.
  int64_t nodes() const;

  struct Impl {
    virtual ~Impl() = default;
    virtual void launch() = 0;
    virtual int64_t nodes() const = 0;
  };
  explicit CapturedGraph(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

 private:
  std::unique_ptr<Impl> impl_;
};

class Capture {
 public:
  // Throws `capture: device must be able to, got cpu` for a device without graphs. `generator`
  // must outlive the graph.
  explicit Capture(Device device, Generator& generator = default_generator());
  // Without finish(): what was recorded is dropped.
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  // Ends the recording; the generator stands where it stood before the capture.
  CapturedGraph finish();

  struct Impl {
    virtual ~Impl() = default;
    virtual CapturedGraph finish() = 0;
  };

 private:
  std::unique_ptr<Impl> impl_;
};

// A device kind's way to capture; see DeviceBackend.
struct CaptureBackend {
  std::unique_ptr<Capture::Impl> (*begin)(Device device, Generator& generator);
};

}  // namespace cairn
