// The CUDA runtime's streams, events and graphs.
// Invariant: what a stream was given runs in order when somebody waits for it (or for another
// stream, event or device that needs it), never earlier.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <limits>
#include <memory>
#include <vector>

#include "tests/cuda/emulator/block.h"
#include "tests/cuda/emulator/emulator.h"
#include "tests/cuda/emulator/emulator_control.h"
#include "tests/cuda/emulator/runtime.h"

namespace {

// Whether it is done; else it is asked again.
using Work = std::function<bool()>;

}  // namespace

struct CUgraph_st {
  std::vector<Work> nodes;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Work>> nodes;  // shared with launches that are not done
};
struct CUevent_st {
  int device = 0;
  int64_t asked = 0, reached = 0;  // records, and those that their stream has come to
  CUstream_st* stream = nullptr;   // of the last one
  int held = 0;                    // by work that is still to be done
  bool destroyed = false;          // goes with the last of that
  // Recorded in a capture: it stands for the stream's first `recorded` pieces of work there.
  std::weak_ptr<CUgraph_st> graph;
  size_t recorded = 0;
};
struct CUstream_st {
  int device = 0;
  std::deque<Work> queue;
  bool working = false;  // on its first piece, which may have led to whoever asks
  // A stream joins another one's capture by waiting for an event of it.
  std::shared_ptr<CUgraph_st> capture;
  bool broken = false;              // the capture was spoilt
  size_t recorded = 0, joined = 0;  // pieces of work in the capture, and those others wait for
};

namespace cairn::emulator {
namespace {

std::recursive_mutex mutex;  // recursive: work that runs may call back
std::condition_variable_any changed;
std::vector<CUstream_st*> streams;
std::vector<float> elapsed;
int64_t wait_calls = 0;
int64_t launched = 0;

constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
// A host that waits longer will wait for ever.
constexpr std::chrono::seconds kPatience(300);

// Returns how many pieces were done.
int64_t drain(CUstream_st* stream, int64_t most = kAll) {
  if (stream->working) return 0;
  stream->working = true;
  int64_t done = 0;
  for (; done < most && !stream->queue.empty(); ++done) {
    if (!stream->queue.front()()) break;
    stream->queue.pop_front();
  }
  stream->working = false;
  if (done > 0) changed.notify_all();
  return done;
}

// What the event's stream does before its record number `target`, and that; whether it has.
bool drain_to(CUstream_st* stream, const CUevent_st* event, int64_t target) {
  while (event->reached < target && drain(stream, 1) > 0) {
  }
  return event->reached >= target;
}

template <class Done>
void host_wait(Lock& lock, Done done) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!done())
    if (changed.wait_until(lock, end) == std::cv_status::timeout && !done()) {
      std::fprintf(stderr, "emulator: a host has waited for its device for %d s\n",
                   static_cast<int>(kPatience.count()));
      std::abort();
    }
}

bool idle(CUstream_st* stream) {
  drain(stream);
  return stream->queue.empty();
}

void let_go(CUevent_st* event) {
  if (--event->held == 0 && event->destroyed) delete event;
}

// The first wait of an idle stream for a capture's event makes it part of the capture.
cudaError_t wait_in_capture(CUstream_st* stream, CUevent_st* event) {
  const std::shared_ptr<CUgraph_st> graph = event->graph.lock();
  if (graph == nullptr) return result(cudaErrorInvalidValue);
  if (stream->capture == nullptr) {
    stream->capture = graph;
    stream->recorded = stream->joined = 0;
  } else if (stream->capture != graph) {
    return result(cudaErrorStreamCaptureIsolation);
  }
  event->stream->joined = std::max(event->stream->joined, event->recorded);
  return cudaSuccess;
}

}  // namespace

cudaError_t enqueue_waiting(cudaStream_t stream, Work work) {
  const Lock lock(mutex);
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);  // the library has its own
  if (stream->capture) {
    stream->capture->nodes.push_back(std::move(work));
    ++stream->recorded;
    return cudaSuccess;
  }
  stream->queue.push_back([work = std::move(work)] {
    if (!work()) return false;
    ++launched;
    return true;
  });
  changed.notify_all();
  return cudaSuccess;
}
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  return enqueue_waiting(stream, [work = std::move(work)] {
    work();
    return true;
  });
}

Lock lock_devices() { return Lock(mutex); }
void devices_changed() { changed.notify_all(); }
int device_of(cudaStream_t stream) { return stream->device; }

void go_on(int device, cudaStream_t first, const std::function<bool()>& enough) {
  if (first != nullptr && std::find(streams.begin(), streams.end(), first) != streams.end())
    while (!enough() && drain(first, 1) > 0) {
    }
  for (bool any = true; any && !enough();) {
    any = false;
    for (CUstream_st* stream : streams)
      if (stream->device == device && !enough()) any |= drain(stream, 1) > 0;
  }
}

void wait_for_stream(Lock& lock, cudaStream_t stream) {
  host_wait(lock, [&] { return idle(stream); });
}
void wait_for_device(Lock& lock, int device) {
  host_wait(lock, [&] {
    bool all = true;
    for (CUstream_st* stream : streams)
      if (stream->device == device) all &= idle(stream);
    return all;
  });
}
void count_wait() { ++wait_calls; }
bool is_capturing(cudaStream_t stream) { return stream->capture != nullptr; }
void spoil_capture(cudaStream_t stream) { stream->broken = true; }

cudaError_t submit(const char* name, dim3 blocks, dim3 threads, size_t shared, cudaStream_t stream,
                   std::function<void()> body) {
  if (const cudaError_t error = planned_failure("cudaLaunchKernelExC")) return error;
  const size_t count = size_t{threads.x} * threads.y * threads.z;
  const bool fits = count >= 1 && count <= 1024 && threads.z <= 64 && blocks.x >= 1 &&
                    blocks.x <= 0x7fffffffu && blocks.y >= 1 && blocks.y <= 65535 &&
                    blocks.z >= 1 && blocks.z <= 65535 && shared <= (227 << 10);
  if (!fits) return result(cudaErrorInvalidConfiguration);
  if (stream != nullptr && stream->device != current_device())
    return result(cudaErrorInvalidResourceHandle);
  return enqueue(stream, [=, body = std::move(body)] {
    for (unsigned z = 0; z < blocks.z; ++z)
      for (unsigned y = 0; y < blocks.y; ++y)
        for (unsigned x = 0; x < blocks.x; ++x)
          run_block(name, dim3(x, y, z), blocks, threads, shared, body);
  });
}

int64_t runtime_waits() {
  const Lock lock(mutex);
  return wait_calls;
}
int64_t launches() {
  const Lock lock(mutex);
  return launched;
}
void set_elapsed(const std::vector<float>& next) {
  const Lock lock(mutex);
  elapsed = next;
}
void advance(int64_t count) {
  const Lock lock(mutex);
  for (CUstream_st* stream : streams) drain(stream, count);
}

}  // namespace cairn::emulator

using namespace cairn::emulator;

extern "C" {

// --- streams and events
// ----------------------------------------------------------------------------
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned) {
  const Lock lock(mutex);
  *out = new CUstream_st;
  (*out)->device = current_device();
  streams.push_back(*out);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Lock lock(mutex);
  wait_for_stream(lock, stream);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Lock lock(mutex);
  if (const cudaError_t error = planned_failure("cudaStreamSynchronize")) return error;
  if (stream->capture) {
    stream->broken = true;
    return result(cudaErrorStreamCaptureUnsupported);
  }
  ++wait_calls;
  wait_for_stream(lock, stream);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  Lock lock(mutex);
  const int device = current_device();
  const bool captures = std::any_of(streams.begin(), streams.end(), [&](const CUstream_st* s) {
    return s->device == device && s->capture != nullptr;
  });
  if (captures) return result(cudaErrorStreamCaptureUnsupported);
  ++wait_calls;
  wait_for_device(lock, device);
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  *out = new CUevent_st;
  (*out)->device = current_device();
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock lock(mutex);
  event->destroyed = true;
  if (event->held == 0) delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(mutex);
  if (event->device != stream->device) return result(cudaErrorInvalidResourceHandle);
  event->stream = stream;
  event->graph = stream->capture;
  event->recorded = stream->recorded;
  if (stream->capture) return cudaSuccess;
  ++event->asked;
  ++event->held;
  return enqueue(stream, [event] {
    ++event->reached;
    let_go(event);
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock lock(mutex);
  if (!event->graph.expired()) return wait_in_capture(stream, event);
  if (event->reached == event->asked || event->stream == stream) return cudaSuccess;
  ++event->held;
  return enqueue_waiting(stream, [event, other = event->stream, target = event->asked] {
    if (event->reached < target && !drain_to(other, event, target)) return false;
    let_go(event);
    return true;
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(mutex);
  return event->reached < event->asked ? result(cudaErrorNotReady) : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Lock lock(mutex);
  ++wait_calls;
  host_wait(lock, [event, target = event->asked] {
    return event->reached >= target || drain_to(event->stream, event, target);
  });
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  const Lock lock(mutex);
  *ms = 1;
  if (!elapsed.empty()) {
    *ms = elapsed.front();
    elapsed.erase(elapsed.begin());
  }
  return cudaSuccess;
}

// --- graphs
// ----------------------------------------------------------------------------------------
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(mutex);
  if (stream->capture) return result(cudaErrorInvalidValue);
  stream->capture = std::make_shared<CUgraph_st>();
  stream->broken = false;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Lock lock(mutex);
  *status = stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(mutex);
  *graph = nullptr;
  if (!stream->capture) return result(cudaErrorInvalidValue);
  const std::shared_ptr<CUgraph_st> recorded = std::move(stream->capture);
  bool joined = true;
  for (CUstream_st* other : streams)
    if (other != stream && other->capture == recorded) {
      joined = joined && other->joined == other->recorded;
      other->capture.reset();
    }
  if (stream->broken) return result(cudaErrorStreamCaptureInvalidated);
  if (!joined) return result(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st(*recorded);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{std::make_shared<const std::vector<Work>>(graph->nodes)};
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return enqueue_waiting(stream, [nodes = exec->nodes, next = size_t{0}]() mutable {
    for (; next < nodes->size(); ++next)
      if (!(*nodes)[next]()) return false;
    return true;
  });
}

}  // extern "C"
