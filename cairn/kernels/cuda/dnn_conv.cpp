// Convolutions by cuDNN: its handles, plans and calls.
// Invariant: a problem's plan is searched for once per device, in memory, then on disk, then by the
// library's heuristics; that there is none is remembered too.
#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <map>
#include <mutex>

#include "cairn/kernels/cuda/conv.h"
#include "cairn/kernels/cuda/dnn_graph.h"
#include "cairn/kernels/cuda/workspace.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/cuda/graph.h"
#include "cairn/tensor/cuda/runtime.h"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {
namespace {

const DnnApi* replacement = nullptr;

// Null where cuDNN is not there: own kernels take its place.
const DnnApi* dnn_api() {
  if (replacement != nullptr) return replacement;
  struct Loaded {
    DnnApi api{};
    bool there = false;
  };
  static const Loaded loaded = [] {
    Loaded found;
    std::string why;
    found.there = load_dnn(&found.api, &why);
    return found;
  }();
  return loaded.there ? &loaded.api : nullptr;
}

using Key = std::array<int64_t, 21>;
Key key_of(const DnnProblem& p, bool timed) {
  const ConvShape& s = p.shape;
  return {static_cast<int64_t>(p.kind),
          static_cast<int64_t>(p.dtype),
          s.n,
          s.h,
          s.w,
          s.ci,
          s.co,
          s.kh,
          s.kw,
          s.p.stride_h,
          s.p.stride_w,
          s.p.pad_h,
          s.p.pad_w,
          s.p.dil_h,
          s.p.dil_w,
          s.p.groups,
          p.add,
          p.alignment,
          p.tf32,
          p.deterministic,
          timed};
}

// The same in one line, with what else a plan depends on.
std::string line_of(const DnnApi& api, Device device, const DnnProblem& p, bool timed) {
  constexpr const char* kKinds[] = {"fwd", "bwd_data", "bwd_weight"};
  const ConvShape& s = p.shape;
  const ConvParams& c = s.p;
  return cat(cairn::cuda::properties(device).name, "; cuDNN ", api.version(), "; ",
             kKinds[static_cast<int>(p.kind)], " ", p.dtype, " nhwc ", s.n, "x", s.ci, "x", s.h,
             "x", s.w, " filter ", s.co, "x", s.depth(), "x", s.kh, "x", s.kw, " stride ",
             c.stride_h, "x", c.stride_w, " pad ", c.pad_h, "x", c.pad_w, " dilation ", c.dil_h,
             "x", c.dil_w, " groups ", c.groups, p.add ? " add" : "", " align ", p.alignment,
             p.tf32 ? " tf32" : "", p.deterministic ? " deterministic" : "", timed ? " timed" : "");
}

struct Entry {
  std::unique_ptr<DnnGraph> graph;
  std::unique_ptr<DnnGraph::Plan> plan;  // null: there is none
};
struct DeviceDnn {
  cudnnHandle_t handle = nullptr;
  std::map<Key, Entry> entries;
};
struct State {
  std::mutex mutex;  // a handle serves one thread at a time
  std::map<int, DeviceDnn> devices;
};
// Never destroyed, as the library's handles may not outlive the driver.
State& state() {
  static State* const state = new State;
  return *state;
}

struct Pointers {
  std::array<void*, 3> data;  // x, w, y
};

void execute(const DnnApi& api, Device device, cudnnHandle_t handle, const DnnGraph::Plan& plan,
             const Pointers& pointers, void* scratch) {
  constexpr std::array<int64_t, 3> kNames{kDnnX, kDnnW, kDnnY};
  Descriptor pack(api, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, std::span<const int64_t>(kNames))
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
           std::span<void* const>(pointers.data))
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, scratch)
      .finalize();
  check_dnn(api, api.set_stream(handle, cairn::cuda::current_stream(device)), "cudnnSetStream");
  check_dnn(api, api.execute(handle, plan.plan.get(), pack.get()), "cudnnBackendExecute");
}

// Finds the plan of one problem.
class Search {
 public:
  Search(const DnnApi& api, Device device, cudnnHandle_t handle, const DnnProblem& problem,
         bool timed)
      : api_(api), device_(device), handle_(handle), problem_(problem), timed_(timed) {}

  Entry run(Pointers pointers) {
    const std::string line = line_of(api_, device_, problem_, timed_);
    const PlanStore store = PlanStore::of_user();
    entry_.graph = std::make_unique<DnnGraph>(api_, handle_, problem_);
    if (const auto known = store.load(line)) entry_.plan = entry_.graph->build(*known);
    if (entry_.plan) return std::move(entry_);
    for (cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
      if (entry_.plan) break;
      if (timed_)
        fastest(mode, pointers);
      else
        first(mode);
    }
    if (entry_.plan) store.save(line, entry_.graph->choice_of(entry_.plan->config));
    return std::move(entry_);
  }

 private:
  void first(cudnnBackendHeurMode_t mode) {
    for (Descriptor& config : entry_.graph->recommended(mode))
      if (entry_.graph->allowed(config) && (entry_.plan = entry_.graph->build(std::move(config))))
        return;
  }

  void fastest(cudnnBackendHeurMode_t mode, Pointers pointers) {
    constexpr int kCandidates = 8;  // heuristics are right about the rest
    // Never into live data, which `add` would change.
    const Tensor scratch = result_like();
    pointers.data[result()] = scratch.raw_data();
    float best = std::numeric_limits<float>::infinity();
    int tried = 0;
    for (Descriptor& config : entry_.graph->recommended(mode)) {
      if (tried == kCandidates) break;
      if (!entry_.graph->allowed(config)) continue;
      auto plan = entry_.graph->build(std::move(config));
      if (plan == nullptr) continue;
      ++tried;
      try {
        const float took = time_of(*plan, pointers);
        if (took >= best) continue;
        best = took;
        entry_.plan = std::move(plan);
      } catch (const Error&) {
        // A plan that cannot run here is no candidate.
      }
    }
  }

  // Milliseconds of kRuns executions, launched as one graph: single calls take the host longer than
  // a small convolution takes the device. The best of three.
  float time_of(const DnnGraph::Plan& plan, const Pointers& pointers) {
    // Memory of its own: workspace() would keep what a losing candidate asked for.
    const Tensor scratch = empty({std::max<int64_t>(plan.workspace, 1)}, {DType::u8, device_});
    execute(api_, device_, handle_, plan, pointers, scratch.raw_data());  // loads the kernel
    cairn::cuda::wait_for(device_, cairn::cuda::current_stream(device_));
    const cairn::cuda::OwnedStream stream = cairn::cuda::make_stream();
    const cairn::cuda::OwnedGraph graph =
        record_runs(plan, pointers, scratch.raw_data(), stream.get());
    cudaGraphExec_t made = nullptr;
    CAIRN_CUDA(cudaGraphInstantiate, &made, graph.get(), 0);
    const cairn::cuda::OwnedGraphExec exec(made);
    const cairn::cuda::OwnedEvent start = cairn::cuda::make_event(true);
    const cairn::cuda::OwnedEvent end = cairn::cuda::make_event(true);
    float best = std::numeric_limits<float>::infinity();
    for (int round = 0; round < 4; ++round) {  // the first one is not counted
      CAIRN_CUDA(cudaEventRecord, start.get(), stream.get());
      CAIRN_CUDA(cudaGraphLaunch, exec.get(), stream.get());
      CAIRN_CUDA(cudaEventRecord, end.get(), stream.get());
      cairn::cuda::wait_for(device_, end.get());
      float ms = 0;
      CAIRN_CUDA(cudaEventElapsedTime, &ms, start.get(), end.get());
      if (round > 0) best = std::min(best, ms);
    }
    return best;
  }

  cairn::cuda::OwnedGraph record_runs(const DnnGraph::Plan& plan, const Pointers& pointers,
                                      void* scratch, cudaStream_t stream) {
    constexpr int kRuns = 10;
    const cairn::cuda::StreamScope scope(device_, stream);
    CAIRN_CUDA(cudaStreamBeginCapture, stream, cudaStreamCaptureModeRelaxed);
    cudaGraph_t graph = nullptr;
    try {
      for (int i = 0; i < kRuns; ++i) execute(api_, device_, handle_, plan, pointers, scratch);
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream, &graph));
      const cairn::cuda::OwnedGraph dropped(graph);
      static_cast<void>(cudaGetLastError());
      throw;
    }
    CAIRN_CUDA(cudaStreamEndCapture, stream, &graph);
    return cairn::cuda::OwnedGraph(graph);
  }

  size_t result() const {
    if (problem_.kind == ConvKind::fwd) return 2;
    return problem_.kind == ConvKind::bwd_data ? 0 : 1;
  }
  Tensor result_like() const {
    const ConvShape& s = problem_.shape;
    const int64_t sizes[] = {s.n * s.h * s.w * s.ci, s.co * s.filter(), s.n * s.oh * s.ow * s.co};
    return empty({sizes[result()]}, {problem_.dtype, device_});
  }

  const DnnApi& api_;
  Device device_;
  cudnnHandle_t handle_;
  const DnnProblem& problem_;
  bool timed_;
  Entry entry_;
};

int64_t alignment_of(const Pointers& pointers, DType dtype) {
  uintptr_t all = 16;  // the most that kernels ask for
  for (const void* p : pointers.data) all |= reinterpret_cast<uintptr_t>(p);
  return std::max(int64_t{1} << std::countr_zero(all), item_size(dtype));
}

bool by_cudnn(ConvKind kind, const ConvShape& shape, const Tensor& x, const Tensor& w,
              const Tensor& y, bool add) {
  const DnnApi* const api = dnn_api();
  if (api == nullptr) return false;
  const Device device = x.device();
  const cairn::cuda::DeviceGuard guard(device);
  const cairn::cuda::Settings& settings = cairn::cuda::settings();
  const Pointers pointers{{x.raw_data(), w.raw_data(), y.raw_data()}};
  const DnnProblem problem{.kind = kind,
                           .shape = shape,
                           .dtype = x.dtype(),
                           .add = add,
                           .alignment = alignment_of(pointers, x.dtype()),
                           .tf32 = settings.conv_allow_tf32,
                           .deterministic = settings.deterministic};
  bool timed = settings.benchmark;
  State& all = state();
  const std::lock_guard lock(all.mutex);
  DeviceDnn& own = all.devices[device.index];
  if (own.handle == nullptr) check_dnn(*api, api->create(&own.handle), "cudnnCreate");
  auto at = own.entries.find(key_of(problem, timed));
  if (at == own.entries.end() && timed && cairn::cuda::capturing(device)) {
    // Nothing can be timed now: a plan by heuristics serves this capture, and no later call.
    timed = false;
    at = own.entries.find(key_of(problem, timed));
  }
  if (at == own.entries.end()) {
    Search search(*api, device, own.handle, problem, timed);
    at = own.entries.emplace(key_of(problem, timed), search.run(pointers)).first;
  }
  if (at->second.plan == nullptr) return false;
  const DnnGraph::Plan& plan = *at->second.plan;
  execute(*api, device, own.handle, plan, pointers, workspace(device, plan.workspace));
  return true;
}

}  // namespace

void set_dnn_api(const DnnApi* api) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.devices.clear();
  replacement = api;
}

void fill_dnn_conv() { set_dnn_conv(by_cudnn); }

}  // namespace cairn::kernels::cuda
