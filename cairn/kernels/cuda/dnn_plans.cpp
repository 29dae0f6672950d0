// cuDNN's handles, the table of plans, and the search for one.
#include "cairn/kernels/cuda/dnn_plans.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <mutex>
#include <optional>

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

struct Entry {
  std::unique_ptr<DnnGraph> graph;
  std::unique_ptr<DnnGraph::Plan> plan;  // null: there is none
  int failed = 0;                        // plans by heuristics that did not run here
};
struct DeviceDnn {
  cudnnHandle_t handle = nullptr;
  std::map<std::pair<DnnKey, bool>, Entry> entries;  // true: timed
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

// What the plan store keeps where an own kernel was faster: no engine has this number.
const PlanChoice kOwnKernel{-1, {}};

cairn::cuda::OwnedGraph end_capture(cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  CAIRN_CUDA(cudaStreamEndCapture, stream, &graph);
  return cairn::cuda::OwnedGraph(graph);
}

template <class Run>
cairn::cuda::OwnedGraph record_runs(Device device, cudaStream_t stream, const Run& run) {
  constexpr int kRuns = 10;
  const cairn::cuda::StreamScope scope(device, stream);
  CAIRN_CUDA(cudaStreamBeginCapture, stream, cudaStreamCaptureModeRelaxed);
  try {
    for (int i = 0; i < kRuns; ++i) run();
  } catch (...) {
    cudaGraph_t graph = nullptr;
    static_cast<void>(cudaStreamEndCapture(stream, &graph));
    const cairn::cuda::OwnedGraph dropped(graph);
    static_cast<void>(cudaGetLastError());
    throw;
  }
  return end_capture(stream);
}

// Milliseconds of some runs, launched as one graph: single calls take the host longer than a small
// operation takes the device. The best of three.
template <class Run>
float time_of(Device device, const Run& run) {
  run();  // loads the kernels
  cairn::cuda::wait_for(device, cairn::cuda::current_stream(device));
  const cairn::cuda::OwnedStream stream = cairn::cuda::make_stream();
  const cairn::cuda::OwnedGraph graph = record_runs(device, stream.get(), run);
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
    cairn::cuda::wait_for(device, end.get());
    float ms = 0;
    CAIRN_CUDA(cudaEventElapsedTime, &ms, start.get(), end.get());
    if (round > 0) best = std::min(best, ms);
  }
  return best;
}

// Finds the plan of one call.
class Search {
 public:
  // `failed`: how many of the recommended plans are left out, with what the store says.
  Search(const DnnContext& context, DnnCall& call, bool timed, int failed = 0)
      : context_(context), call_(call), timed_(timed) {
    entry_.failed = failed;
  }

  Entry run() {
    const std::string line =
        cat(cairn::cuda::properties(context_.device).name, "; cuDNN ", context_.api.version(), "; ",
            call_.line(), timed_ ? " timed" : "");
    const PlanStore store = PlanStore::of_user();
    const auto known = entry_.failed == 0 ? store.load(line) : std::nullopt;
    if (known == kOwnKernel && call_.competes()) return {};
    try {
      entry_.graph = std::make_unique<DnnGraph>(call_.graph(context_));
    } catch (const Error&) {  // the library will not have it described
      return {};
    }
    if (known) entry_.plan = entry_.graph->build(*known);
    if (entry_.plan) return std::move(entry_);
    const bool tried = timed_ && fastest();
    if (!tried)
      for (cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
        if (!entry_.plan) first(mode);
    // What serves in another's place is for this process: that one may run in the next.
    if (tried != timed_ || entry_.failed > 0) return std::move(entry_);
    if (entry_.plan)
      store.save(line, entry_.graph->choice_of(entry_.plan->config));
    else if (own_won_)
      store.save(line, kOwnKernel);
    return std::move(entry_);
  }

 private:
  void first(cudnnBackendHeurMode_t mode) {
    for (Descriptor& config : entry_.graph->recommended(mode)) {
      if (!entry_.graph->allowed(config)) continue;
      auto plan = entry_.graph->build(std::move(config));
      if (plan == nullptr || built_++ < entry_.failed) continue;
      entry_.plan = std::move(plan);
      return;
    }
  }

  // False where there is no memory for it.
  bool fastest() {
    try {
      call_.start_trials();
    } catch (const Error&) {
      call_.end_trials();
      return false;
    }
    try {
      for (cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
        if (!entry_.plan) fastest(mode);
      if (entry_.plan && call_.competes()) {
        own_won_ = time_of(context_.device, [&] { call_.run_own(); }) < best_;
        if (own_won_) entry_.plan.reset();
      }
    } catch (...) {
      call_.end_trials();
      throw;
    }
    call_.end_trials();
    return true;
  }

  void fastest(cudnnBackendHeurMode_t mode) {
    int tried = 0;
    for (Descriptor& config : entry_.graph->recommended(mode)) {
      if (tried == call_.candidates()) break;
      if (!entry_.graph->allowed(config)) continue;
      auto plan = entry_.graph->build(std::move(config));
      if (plan == nullptr) continue;
      ++tried;
      try {
        // Memory of its own: workspace() would keep what a losing candidate asked for.
        const Tensor scratch =
            empty({std::max<int64_t>(plan->workspace, 1)}, {DType::u8, context_.device});
        const float took =
            time_of(context_.device, [&] { call_.run(context_, *plan, scratch.raw_data()); });
        if (took >= best_) continue;
        best_ = took;
        entry_.plan = std::move(plan);
      } catch (const Error&) {
        // A plan that cannot run here is no candidate.
      }
    }
  }

  const DnnContext& context_;
  DnnCall& call_;
  bool timed_;
  bool own_won_ = false;
  int built_ = 0;  // by first()
  float best_ = std::numeric_limits<float>::infinity();
  Entry entry_;
};

}  // namespace

void execute(const DnnContext& context, const DnnGraph::Plan& plan, std::span<const int64_t> ids,
             std::span<void* const> pointers, void* workspace) {
  const DnnApi& api = context.api;
  Descriptor pack(api, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, ids)
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, pointers)
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace)
      .finalize();
  check_dnn(api, api.set_stream(context.handle, cairn::cuda::current_stream(context.device)),
            "cudnnSetStream");
  check_dnn(api, api.execute(context.handle, plan.plan.get(), pack.get()), "cudnnBackendExecute");
}

bool run_by_dnn(Device device, DnnCall& call) {
  const DnnApi* const api = dnn_api();
  bool timed = cairn::cuda::settings().benchmark;
  if (api == nullptr || (!timed && !call.by_guess())) return false;
  const cairn::cuda::DeviceGuard guard(device);
  State& all = state();
  const std::lock_guard lock(all.mutex);
  DeviceDnn& own = all.devices[device.index];
  if (own.handle == nullptr) check_dnn(*api, api->create(&own.handle), "cudnnCreate");
  const DnnContext context{*api, device, own.handle};
  const DnnKey key = call.key();
  auto at = own.entries.find({key, timed});
  if (at == own.entries.end() && timed && cairn::cuda::capturing(device)) {
    // Nothing can be timed now: a plan by heuristics serves this capture, and no later call.
    if (!call.by_guess()) return false;
    timed = false;
    at = own.entries.find({key, timed});
  }
  if (at == own.entries.end())
    at = own.entries.emplace(std::pair{key, timed}, Search(context, call, timed).run()).first;
  Entry& entry = at->second;
  while (entry.plan != nullptr) {
    void* scratch = nullptr;
    try {
      scratch = workspace(device, entry.plan->workspace);
    } catch (const Error&) {
      return false;  // there may be memory for it at the next call
    }
    try {
      call.run(context, *entry.plan, scratch);
      return true;
    } catch (const Error&) {
      // The next one takes its place; in the end an own kernel does, for later calls too.
      entry.plan.reset();
      if (!timed && entry.failed < call.candidates())
        entry = Search(context, call, timed, entry.failed + 1).run();
    }
  }
  return false;
}

int64_t alignment_of(std::span<void* const> pointers) {
  uintptr_t all = 16;
  for (const void* p : pointers) all |= reinterpret_cast<uintptr_t>(p);
  return int64_t{1} << std::countr_zero(all);
}

void set_dnn_api(const DnnApi* api) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.devices.clear();
  replacement = api;
}

}  // namespace cairn::kernels::cuda
