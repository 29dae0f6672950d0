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
//
// Graphs that are launched one after another may share their memory, so that all of them take about
// what the largest takes:
//
//   GraphPool pool = graph_pool_handle(device);
//   Capture capture(device, generator, pool);
//
// What a capture frees, the next one of the pool may take; what is held is taken by none. So a
// tensor made in a capture has its value until its graph is launched again, or one of the pool that
// was captured earlier; where that is too short, capture.keep(tensor) makes a copy.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "cairn/tensor/device.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/tensor.h"

namespace cairn {

// Memory that captures share. A handle: copies are the same pool, and its memory goes back when the
// last of them, the last graph and the last tensor in it are gone.
class GraphPool {
 public:
  GraphPool() = default;
  bool defined() const { return impl_ != nullptr; }

  struct Impl {
    virtual ~Impl() = default;
  };
  explicit GraphPool(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  const std::shared_ptr<Impl>& impl() const { return impl_; }

 private:
  std::shared_ptr<Impl> impl_;
};
// An empty pool. Throws as Capture does.
GraphPool graph_pool_handle(Device device);

// What a captured stretch leaves out because of something that is known when it is captured; it
// must not be launched when that is no longer so.
struct CaptureCondition {
  const char* what;  // "zeros in a gradient"
  std::function<bool()> holds;
};

class CapturedGraph {
 public:
  CapturedGraph() = default;
  bool defined() const { return impl_ != nullptr; }
  // Whether all that the capture relied on is still so. If not, launch() throws: capture anew.
  bool holds() const;
  // Queues the whole stretch. Reserves the random numbers that it draws from the generator the
  // capture was given, so that the generator stands as after the same calls made one by one. Graphs
  // that share a pool must be launched on the stream that they were captured on.
  void launch();
  // Kernels, copies and fills in it.
  int64_t nodes() const;

  struct Impl {
    virtual ~Impl() = default;
    virtual void launch() = 0;
    virtual int64_t nodes() const = 0;
  };
  CapturedGraph(std::unique_ptr<Impl> impl, std::vector<CaptureCondition> conditions)
      : impl_(std::move(impl)), conditions_(std::move(conditions)) {}

 private:
  std::unique_ptr<Impl> impl_;
  std::vector<CaptureCondition> conditions_;
};

class Capture {
 public:
  // Throws `capture: device must be able to, got cpu` for a device without graphs. `generator`
  // must outlive the graph. Without a pool the memory is the graph's alone.
  explicit Capture(Device device, Generator& generator = default_generator(),
                   const GraphPool& pool = {});
  // Without finish(): what was recorded is dropped.
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  // A copy, made by every launch, in memory that no other graph writes.
  Tensor keep(const Tensor& result);
  // For who leaves work out of the captured stretch.
  void rely_on(CaptureCondition condition) { conditions_.push_back(std::move(condition)); }
  // This thread's open capture of the device's work, or null.
  static Capture* current(Device device);
  // Of this process's captures, counted from 1.
  uint64_t number() const { return number_; }
  // Ends the recording; the generator stands where it stood before the capture.
  CapturedGraph finish();

  struct Impl {
    virtual ~Impl() = default;
    virtual Tensor keep(const Tensor& result) = 0;
    virtual std::unique_ptr<CapturedGraph::Impl> finish() = 0;
  };

 private:
  Device device_;
  uint64_t number_ = 0;
  std::unique_ptr<Impl> impl_;
  std::vector<CaptureCondition> conditions_;
};

// A device kind's way to capture; see DeviceBackend.
struct CaptureBackend {
  std::unique_ptr<Capture::Impl> (*begin)(Device device, Generator& generator,
                                          const GraphPool& pool);
  GraphPool (*make_pool)(Device device);
};

}  // namespace cairn
