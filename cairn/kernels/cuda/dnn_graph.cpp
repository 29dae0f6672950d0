// Descriptors that every graph of cuDNN's backend API is made of, and its plans.
#include "cairn/kernels/cuda/dnn_graph.h"

#include <algorithm>

#include "cairn/kernels/cuda/workspace.h"

namespace cairn::kernels::cuda {

cudnnDataType_t dnn_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDNN_DATA_FLOAT;
    case DType::bf16:
      return CUDNN_DATA_BFLOAT16;
    case DType::f16:
      return CUDNN_DATA_HALF;
    case DType::boolean:
      return CUDNN_DATA_BOOLEAN;
    default:
      fail("cuda: dtype must be one that cuDNN is used for, got ", dtype);
  }
}

Descriptor DnnTensor::make(const DnnApi& api) const {
  const std::array<int64_t, 4> strides{sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3],
                                       sizes[1]};
  Descriptor made(api, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  made.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, dnn_type(dtype))
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, std::span<const int64_t>(sizes))
      .set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, std::span<const int64_t>(strides))
      .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id)
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, alignment);
  if (place == Place::inside) made.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, true);
  if (place == Place::host) made.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, true);
  made.finalize();
  return made;
}

DnnGraph::DnnGraph(const DnnApi& api, cudnnHandle_t handle, const DnnRules& rules,
                   std::vector<Descriptor> parts, std::vector<Descriptor> operations,
                   const Descriptor* properties)
    : api_(&api),
      handle_(handle),
      properties_(properties),
      rules_(rules),
      parts_(std::move(parts)),
      graph_(api, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {
  std::vector<cudnnBackendDescriptor_t> handles;
  for (Descriptor& operation : operations) {
    handles.push_back(operation.get());
    parts_.push_back(std::move(operation));
  }
  graph_.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
             std::span<const cudnnBackendDescriptor_t>(handles));
  if (handle != nullptr) graph_.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  graph_.finalize();
}

std::vector<Descriptor> DnnGraph::recommended(cudnnBackendHeurMode_t mode) const {
  Descriptor heuristics(*api_, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph_)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
  if (properties_ != nullptr) heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *properties_);
  if (!heuristics.try_finalize()) return {};
  const int64_t count =
      heuristics.read(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                      std::span<cudnnBackendDescriptor_t>());
  return heuristics.read_all(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                             count);
}

bool DnnGraph::allowed(const Descriptor& config) const {
  std::vector<Descriptor> engine =
      config.read_all(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1);
  if (engine.empty()) return false;
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  const int64_t count = engine[0].read(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                       std::span<cudnnBackendNumericalNote_t>(notes));
  const auto has = [&](cudnnBackendNumericalNote_t note) {
    return std::find(notes.begin(), notes.begin() + count, note) != notes.begin() + count;
  };
  if (rules_.deterministic && has(CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)) return false;
  // Engines that read f32 as TF32 are not always noted as converting: those of Hopper say no more
  // than that they use tensor cores, which have no f32.
  if (rules_.dtype == DType::f32 && !rules_.tf32 &&
      (has(CUDNN_NUMERICAL_NOTE_TENSOR_CORE) || has(CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)))
    return false;
  // Sums of 16-bit products are promised in f32.
  return !has(CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION);
}

PlanChoice DnnGraph::choice_of(const Descriptor& config) const {
  PlanChoice choice;
  const std::vector<Descriptor> engine =
      config.read_all(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1);
  check(!engine.empty(), "cuda: cuDNN's configuration must have an engine, got none");
  choice.engine = engine[0].read_one<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64);
  for (const Descriptor& knob :
       config.read_all(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR,
                       CUDNN_KNOB_TYPE_COUNTS))
    choice.knobs.emplace_back(
        knob.read_one<cudnnBackendKnobType_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE,
                                              CUDNN_TYPE_KNOB_TYPE),
        knob.read_one<int64_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64));
  return choice;
}

std::unique_ptr<DnnGraph::Plan> DnnGraph::build(Descriptor config,
                                                std::vector<Descriptor> parts) const {
  Descriptor plan(*api_, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
  if (properties_ != nullptr)
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, *properties_);
  else
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle_);
  if (!plan.try_finalize()) return nullptr;
  const auto workspace =
      plan.read_one<int64_t>(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64);
  if (workspace > kDnnWorkspace) return nullptr;
  return std::make_unique<Plan>(
      Plan{std::move(parts), std::move(config), std::move(plan), workspace});
}

std::unique_ptr<DnnGraph::Plan> DnnGraph::build(const PlanChoice& choice) const {
  // From a file: whatever is wrong with it, the library says so, and a search goes on.
  try {
    Descriptor engine(*api_, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    engine.set(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph_)
        .set(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, choice.engine);
    if (properties_ != nullptr) engine.set(CUDNN_ATTR_ENGINE_DEVICEPROP, *properties_);
    engine.finalize();
    std::vector<Descriptor> knobs;
    std::vector<cudnnBackendDescriptor_t> handles;
    for (const auto& [type, value] : choice.knobs) {
      Descriptor& knob = knobs.emplace_back(*api_, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
      knob.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE,
               static_cast<cudnnBackendKnobType_t>(type))
          .set(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, value)
          .finalize();
      handles.push_back(knob.get());
    }
    Descriptor config(*api_, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    config.set(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
    if (!handles.empty())
      config.set(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                 std::span<const cudnnBackendDescriptor_t>(handles));
    config.finalize();
    if (!allowed(config)) return nullptr;
    knobs.push_back(std::move(engine));
    return build(std::move(config), std::move(knobs));
  } catch (const Error&) {
    return nullptr;
  }
}

}  // namespace cairn::kernels::cuda
