// Descriptors of cuDNN's backend API for the three convolutions.
#include "cairn/kernels/cuda/dnn_graph.h"

#include <algorithm>
#include <array>

#include "cairn/kernels/cuda/workspace.h"

namespace cairn::kernels::cuda {
namespace {

cudnnDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDNN_DATA_FLOAT;
    case DType::bf16:
      return CUDNN_DATA_BFLOAT16;
    case DType::f16:
      return CUDNN_DATA_HALF;
    default:
      fail("conv2d: dtype must be one that cuDNN is used for, got ", dtype);
  }
}

// [a, b, h, w] in memory as [a, h, w, b].
Descriptor tensor(const DnnApi& api, DnnTensor id, const DnnProblem& p,
                  const std::array<int64_t, 4>& sizes) {
  const std::array<int64_t, 4> strides{sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3],
                                       sizes[1]};
  Descriptor made(api, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  made.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, data_type(p.dtype))
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, std::span<const int64_t>(sizes))
      .set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, std::span<const int64_t>(strides))
      .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, static_cast<int64_t>(id))
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, p.alignment)
      .finalize();
  return made;
}

Descriptor convolution(const DnnApi& api, const ConvParams& p) {
  using Two = std::array<int64_t, 2>;
  const Two pad{p.pad_h, p.pad_w}, stride{p.stride_h, p.stride_w}, dilation{p.dil_h, p.dil_w};
  const auto span = [](const Two& two) { return std::span<const int64_t>(two); };
  Descriptor made(api, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  made.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT)
      .set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, CUDNN_CROSS_CORRELATION)
      .set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, int64_t{2})
      .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, span(dilation))
      .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, span(stride))
      .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, span(pad))
      .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, span(pad))
      .finalize();
  return made;
}

// What an operation calls its parts.
struct Names {
  cudnnBackendDescriptorType_t type;
  cudnnBackendAttributeName_t alpha, beta, convolution, x, w, y;
};
Names names_of(ConvKind kind) {
  switch (kind) {
    case ConvKind::fwd:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y};
    case ConvKind::bwd_data:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY};
    case ConvKind::bwd_weight:
      break;
  }
  return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY};
}

}  // namespace

DnnGraph::DnnGraph(const DnnApi& api, cudnnHandle_t handle, const DnnProblem& problem,
                   const Descriptor* properties)
    : api_(api),
      handle_(handle),
      properties_(properties),
      problem_(problem),
      graph_(api, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {
  const ConvShape& s = problem.shape;
  parts_.push_back(tensor(api, kDnnX, problem, {s.n, s.ci, s.h, s.w}));
  parts_.push_back(tensor(api, kDnnW, problem, {s.co, s.depth(), s.kh, s.kw}));
  parts_.push_back(tensor(api, kDnnY, problem, {s.n, s.co, s.oh, s.ow}));
  parts_.push_back(convolution(api, s.p));
  const Names names = names_of(problem.kind);
  Descriptor operation(api, names.type);
  operation.set(names.alpha, CUDNN_TYPE_FLOAT, 1.0f)
      .set(names.beta, CUDNN_TYPE_FLOAT, problem.add ? 1.0f : 0.0f)
      .set(names.convolution, parts_[3])
      .set(names.x, parts_[0])
      .set(names.w, parts_[1])
      .set(names.y, parts_[2])
      .finalize();
  graph_.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operation);
  if (handle != nullptr) graph_.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  graph_.finalize();
  parts_.push_back(std::move(operation));
}

std::vector<Descriptor> DnnGraph::recommended(cudnnBackendHeurMode_t mode) const {
  Descriptor heuristics(api_, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
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
  if (problem_.deterministic && has(CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)) return false;
  // Engines that read f32 as TF32 are not always noted as converting: those of Hopper say no more
  // than that they use tensor cores, which have no f32.
  if (problem_.dtype == DType::f32 && !problem_.tf32 &&
      (has(CUDNN_NUMERICAL_NOTE_TENSOR_CORE) || has(CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)))
    return false;
  // Sums of 16-bit products are promised in f32.
  return !has(CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION);
}

PlanChoice DnnGraph::choice_of(const Descriptor& config) const {
  PlanChoice choice;
  const std::vector<Descriptor> engine =
      config.read_all(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1);
  check(!engine.empty(), "conv2d: cuDNN's configuration must have an engine, got none");
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
  Descriptor plan(api_, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
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
    Descriptor engine(api_, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    engine.set(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph_)
        .set(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, choice.engine);
    if (properties_ != nullptr) engine.set(CUDNN_ATTR_ENGINE_DEVICEPROP, *properties_);
    engine.finalize();
    std::vector<Descriptor> knobs;
    std::vector<cudnnBackendDescriptor_t> handles;
    for (const auto& [type, value] : choice.knobs) {
      Descriptor& knob = knobs.emplace_back(api_, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
      knob.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE,
               static_cast<cudnnBackendKnobType_t>(type))
          .set(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, value)
          .finalize();
      handles.push_back(knob.get());
    }
    Descriptor config(api_, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
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
