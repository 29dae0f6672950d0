// Graph capture: one stream, memory that only graphs use, random numbers that go on.
// Invariant: a block of a pool is held by a tensor, or is what graphs of the pool write before they
// read it: a launch may find anything there. Copies that must outlive other graphs' launches (keep)
// lie in a pool of such copies, each held by its graph, so that nothing else ever writes there.
#include "cairn/tensor/cuda/graph.h"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cairn/tensor/cuda/device_allocator.h"
#include "cairn/tensor/cuda/runtime.h"
#include "cairn/tensor/cuda/shift.h"
#include "cairn/tensor/raw.h"

namespace cairn::cuda {
namespace {

struct Current {
  Device device;
  const int64_t* shift = nullptr;
  bool on = false;
};
thread_local Current current;

// A pool of the allocator, given back when the last user of its memory is gone.
class Pool final : public GraphPool::Impl {
 public:
  explicit Pool(Device device) : device_(device), id_(allocator_of(device).make_pool()) {}
  ~Pool() override { allocator_of(device_).drop_pool(id_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // From here on this thread's memory comes from the pool.
  void use() const { allocator_of(device_).use_pool(id_); }
  // The pool of what is kept.
  const Pool& copies() {
    if (!copies_) copies_ = std::make_unique<Pool>(device_);
    return *copies_;
  }
  // The one stream of all its graphs, which keeps their launches apart.
  void check_stream(Device device, const char* op) {
    check(device == device_, op, ": pool must be of ", device, ", got one of ", device_);
    const cudaStream_t now = current_stream(device);
    if (!stream_) stream_ = now;
    check(*stream_ == now, op, ": graphs that share a pool must stay on one stream, got another");
  }

 private:
  Device device_;
  int64_t id_;
  std::optional<cudaStream_t> stream_;
  std::unique_ptr<Pool> copies_;
};

// Where a graph's memory lies.
struct Memory {
  std::shared_ptr<Pool> pool;  // shared with other graphs, or not
  bool shared = false;
  std::vector<Tensor> kept = {};
};

class Graph final : public CapturedGraph::Impl {
 public:
  struct Draws {
    Generator* generator;
    uint64_t captured_at;  // the offset its kernels were called with
    uint64_t used;         // blocks a launch draws
    Tensor shift;          // i64 [1] on the device: the blocks to add
  };

  Graph(Device device, OwnedGraph graph, Memory memory, Draws draws)
      : device_(device),
        memory_(std::move(memory)),
        graph_(std::move(graph)),
        draws_(std::move(draws)) {
    cudaGraphExec_t exec = nullptr;
    CAIRN_CUDA(cudaGraphInstantiate, &exec, graph_.get(), 0);
    exec_ = OwnedGraphExec(exec);
  }

  void launch() override {
    if (memory_.shared) memory_.pool->check_stream(device_, "launch");
    Generator& generator = *draws_.generator;
    const uint64_t wanted = generator.offset() - draws_.captured_at;
    // Somebody else drew in between, or set the generator anew.
    if (draws_.used > 0 && wanted != shift_)
      raw::fill_(draws_.shift, static_cast<double>(static_cast<int64_t>(wanted)));
    const DeviceGuard guard(device_);
    CAIRN_CUDA(cudaGraphLaunch, exec_.get(), current_stream(device_));
    shift_ = wanted + draws_.used;  // the graph's last kernel adds it
    generator.set_state(generator.seed(), generator.offset() + draws_.used);
  }

  int64_t nodes() const override {
    size_t count = 0;
    CAIRN_CUDA(cudaGraphGetNodes, graph_.get(), nullptr, &count);
    return static_cast<int64_t>(count);
  }

 private:
  Device device_;
  Memory memory_;  // outlives the graph that uses it
  OwnedGraph graph_;
  OwnedGraphExec exec_;
  Draws draws_;
  uint64_t shift_ = 0;  // what draws_.shift holds once the device has caught up
};

class Recording final : public Capture::Impl {
 public:
  Recording(Device device, Generator& generator, const GraphPool& pool)
      : device_(device), generator_(&generator), offset_(generator.offset()) {
    check(!current.on, "capture: captures must not nest, got one inside another");
    if (pool.defined()) {
      memory_ = {std::static_pointer_cast<Pool>(pool.impl()), true};
      memory_.pool->check_stream(device, "capture");
    } else {
      memory_ = {std::make_shared<Pool>(device)};
    }
    shift_ = zeros({1}, {DType::i64, device});
    // What ran before will run in the graph's memory from now on. (This waits, once.)
    allocator_of(device).release_cached();
    advance_shift(shift_, 0);  // loads the kernel, which finish() may launch inside the capture
    memory_.pool->use();
    const DeviceGuard guard(device);
    try {
      // Relaxed: other threads of the process go on as ever.
      CAIRN_CUDA(cudaStreamBeginCapture, current_stream(device), cudaStreamCaptureModeRelaxed);
    } catch (...) {
      allocator_of(device).use_pool(0);
      throw;
    }
    current = {device, shift_.data<int64_t>(), true};
  }

  ~Recording() override {
    if (open_) static_cast<void>(end());
  }

  Tensor keep(const Tensor& result) override {
    check(result.defined() && result.device() == device_, "keep: result must be on ", device_,
          ", got ", result.defined() ? cat(result.device()) : "an undefined tensor");
    {
      struct Return {
        const Pool& pool;
        ~Return() { pool.use(); }
      } back{*memory_.pool};
      memory_.pool->copies().use();
      memory_.kept.push_back(empty_like(result));
    }
    raw::copy_(memory_.kept.back(), result);
    return memory_.kept.back();
  }

  std::unique_ptr<CapturedGraph::Impl> finish() override {
    const uint64_t used = generator_->offset() - offset_;
    if (used > 0) advance_shift(shift_, static_cast<int64_t>(used));
    cudaGraph_t graph = nullptr;
    check_call(end(&graph), "cudaStreamEndCapture");
    return std::make_unique<Graph>(device_, OwnedGraph(graph), std::move(memory_),
                                   Graph::Draws{generator_, offset_, used, std::move(shift_)});
  }

 private:
  cudaError_t end(cudaGraph_t* graph = nullptr) {
    open_ = false;
    current = {};
    allocator_of(device_).use_pool(0);
    generator_->set_state(generator_->seed(), offset_);
    cudaGraph_t dropped = nullptr;
    int before = 0;
    static_cast<void>(cudaGetDevice(&before));
    static_cast<void>(cudaSetDevice(device_.index));
    const cudaError_t result = cudaStreamEndCapture(current_stream(device_), &dropped);
    static_cast<void>(cudaSetDevice(before));
    if (graph != nullptr)
      *graph = dropped;
    else if (dropped != nullptr)
      static_cast<void>(cudaGraphDestroy(dropped));
    if (result != cudaSuccess) static_cast<void>(cudaGetLastError());
    return result;
  }

  Device device_;
  Generator* generator_;
  uint64_t offset_;
  Tensor shift_;
  Memory memory_;
  bool open_ = true;
};

std::unique_ptr<Capture::Impl> begin(Device device, Generator& generator, const GraphPool& pool) {
  check_device(device, "capture");
  return std::make_unique<Recording>(device, generator, pool);
}

GraphPool make_pool(Device device) {
  check_device(device, "capture");
  return GraphPool(std::make_shared<Pool>(device));
}

}  // namespace

bool capturing(Device device) { return current.on && current.device == device; }

void refuse_in_capture(Device device, const char* op, const char* what) {
  check(!capturing(device), op, ": a captured step must not ", what);
}

const int64_t* random_shift(Device device) { return capturing(device) ? current.shift : nullptr; }

constexpr CaptureBackend kCaptureBackend{begin, make_pool};

}  // namespace cairn::cuda
