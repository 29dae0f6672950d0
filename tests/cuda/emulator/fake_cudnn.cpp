// cuDNN's graph API over host memory: descriptors that are checked when they are finalised, engines
// with notes, workspaces and knobs.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "tests/cuda/emulator/fake_cudnn_node.h"
#include "tests/cuda/emulator/fake_dnn.h"
#include "tests/cuda/emulator/queue.h"

namespace cairn::emulator {
namespace {

DnnLog log;
size_t version_number = 91900;
bool adding_refused = false;
bool running_refused = false;
int64_t refused_engine = -1;
Known known = Known::all;
std::string last_error;

cudnnStatus_t refuse(const std::string& text, cudnnStatus_t status = CUDNN_STATUS_BAD_PARAM) {
  last_error = text;
  complain("cuDNN: " + text);
  return status;
}

// --- engines -------------------------------------------------------------------------------------
struct Engine {
  int64_t index;
  std::vector<cudnnBackendNumericalNote_t> notes;
  int64_t workspace;
  bool has_knob;
};
const std::vector<Engine>& engines() {
  static const std::vector<Engine> all{
      {kHugeEngine, {}, int64_t{1} << 40, false},
      {kChanceEngine,
       {CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC},
       0,
       false},
      {kTensorEngine, {CUDNN_NUMERICAL_NOTE_TENSOR_CORE}, 3000, true},
      {kExactEngine, {}, 0, false},
      {kFallbackEngine, {}, 16, false},
      {kNormEngine, {}, 2000, true}};
  return all;
}
const Engine* engine_at(int64_t index) {
  for (const Engine& engine : engines())
    if (engine.index == index) return &engine;
  return nullptr;
}
constexpr int64_t kKnobValue = 3;  // of those, 0 to 7, that the engine's knob can have

// The operations behind a graph, engine, configuration or plan.
std::vector<Node*> operations_behind(const Node* node) {
  switch (node->type) {
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      return node->all<Node*>(CUDNN_ATTR_OPERATIONGRAPH_OPS);
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR:
      return operations_behind(node->node(CUDNN_ATTR_ENGINE_OPERATION_GRAPH));
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR:
      return operations_behind(node->node(CUDNN_ATTR_ENGINECFG_ENGINE));
    default:
      return operations_behind(node->node(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG));
  }
}
bool adds(const std::vector<Node*>& operations) {
  return !is_norm(operations) && operation_of(operations.front()).beta != 0;
}

std::vector<int64_t> recommended(cudnnBackendHeurMode_t mode,
                                 const std::vector<Node*>& operations) {
  if (known == Known::nothing || (adds(operations) && adding_refused)) return {};
  if (is_norm(operations)) {
    // As the library: what it cannot do has no engine, and is no error.
    NormOperation op;
    return read_norm(operations, &op).empty() ? std::vector<int64_t>{kNormEngine}
                                              : std::vector<int64_t>{};
  }
  if (mode == CUDNN_HEUR_MODE_FALLBACK) return {kFallbackEngine};
  if (known == Known::fallback) return {};
  return {kHugeEngine, kChanceEngine, kTensorEngine, kExactEngine};
}

// --- calls ---------------------------------------------------------------------------------------
Node* as_node(cudnnBackendDescriptor_t descriptor) { return static_cast<Node*>(descriptor); }

cudnnStatus_t backend_create(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* out) {
  *out = new Node{type, false, {}};
  const auto lock = lock_devices();
  ++log.live;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t backend_destroy(cudnnBackendDescriptor_t descriptor) {
  delete as_node(descriptor);
  const auto lock = lock_devices();
  --log.live;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t set(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  Node* const node = as_node(descriptor);
  if (node->finalized) return refuse("a finalised descriptor must not change");
  const std::span<const DnnRule> rules = dnn_rules();
  const auto rule = std::find_if(rules.begin(), rules.end(), [&](const DnnRule& r) {
    return r.node == node->type && r.name == name;
  });
  if (rule == rules.end()) return refuse("attribute must belong to the descriptor");
  if (rule->type != type)
    return refuse("attribute must have its type", CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE);
  if (count < 1 || values == nullptr) return refuse("attribute must have a value");
  if (type == CUDNN_TYPE_HANDLE && *static_cast<void* const*>(values) == nullptr)
    return refuse("handle must be given", CUDNN_STATUS_BAD_PARAM_NULL_POINTER);
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
    for (int64_t i = 0; i < count; ++i)
      if (!static_cast<Node* const*>(values)[i]->finalized)
        return refuse("parts must be finalised", CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED);
  const size_t bytes = static_cast<size_t>(count) * size_of(type);
  const auto* const from = static_cast<const std::byte*>(values);
  node->attributes[name] = {type, count, std::vector<std::byte>(from, from + bytes)};
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t check_tensor(const Node& node) {
  const TensorView t = view_of(&node);
  if (t.sizes.size() != 4 || t.strides.size() != 4) return refuse("a tensor must be 4-d");
  for (int64_t size : t.sizes)
    if (size < 1) return refuse("sizes must be positive");
  if (t.inside && t.by_value) return refuse("a tensor must be in one place");
  if (t.alignment < 1 || (t.alignment & (t.alignment - 1)) != 0)
    return refuse("alignment must be a power of two");
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t check_operation(const Node& node) {
  const Operation op = operation_of(&node);
  if (op.x.type != op.w.type || op.x.type != op.y.type) return refuse("types must be equal");
  if (op.x.type != CUDNN_DATA_FLOAT && op.x.type != CUDNN_DATA_BFLOAT16 &&
      op.x.type != CUDNN_DATA_HALF)
    return refuse("type", CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE);
  if (op.x.uid == op.w.uid || op.x.uid == op.y.uid || op.w.uid == op.y.uid)
    return refuse("tensors must have names of their own");
  if (op.y.sizes[0] != op.x.sizes[0] || op.y.sizes[1] != op.w.sizes[0])
    return refuse("images and output channels must agree", CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH);
  if (op.x.sizes[1] % op.w.sizes[1] != 0)
    return refuse("channels must divide", CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH);
  for (size_t d = 0; d < 2; ++d) {
    const int64_t extent = op.dilation[d] * (op.w.sizes[d + 2] - 1) + 1;
    if (op.y.sizes[d + 2] != (op.x.sizes[d + 2] + 2 * op.pad[d] - extent) / op.stride[d] + 1)
      return refuse("output size must follow", CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH);
  }
  for (const TensorView* t : {&op.x, &op.w, &op.y})
    if (t->strides[1] != 1) return refuse("layout", CUDNN_STATUS_NOT_SUPPORTED_LAYOUT);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t check_config(const Node& node) {
  const Engine& engine = *engine_at(
      node.node(CUDNN_ATTR_ENGINECFG_ENGINE)->one<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX));
  for (const Node* knob : node.all<Node*>(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES)) {
    const auto value = knob->one<int64_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE);
    if (!engine.has_knob || value < 0 || value > 7 ||
        knob->one<cudnnBackendKnobType_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE) !=
            CUDNN_KNOB_TYPE_TILE_SIZE)
      return refuse("knob must be one of the engine's", CUDNN_STATUS_NOT_SUPPORTED);
  }
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t check_node(const Node& node) {
  switch (node.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
      return check_tensor(node);
    case CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR:
      if (node.one<cudnnDataType_t>(CUDNN_ATTR_CONVOLUTION_COMP_TYPE) != CUDNN_DATA_FLOAT ||
          node.one<int64_t>(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS) != 2)
        return refuse("convolution must be 2-d, with sums in f32");
      for (int name = CUDNN_ATTR_CONVOLUTION_DILATIONS; name <= CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS;
           ++name)
        if (node.all<int64_t>(name).size() != 2) return refuse("two numbers must be given");
      return CUDNN_STATUS_SUCCESS;
    case kForward:
    case kData:
    case kFilter:
      return check_operation(node);
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR:
      if (engine_at(node.one<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX)) == nullptr)
        return refuse("engine must be one of the library's", CUDNN_STATUS_NOT_SUPPORTED);
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR:
      return check_config(node);
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
      if (adding_refused && adds(operations_behind(&node)))
        return refuse("adding", CUDNN_STATUS_NOT_SUPPORTED);
      return CUDNN_STATUS_SUCCESS;
    default:
      return CUDNN_STATUS_SUCCESS;
  }
}

cudnnStatus_t finalize(cudnnBackendDescriptor_t descriptor) {
  Node* const node = as_node(descriptor);
  if (node->finalized) return refuse("a descriptor must be finalised once");
  for (const DnnRule& rule : dnn_rules())
    if (rule.node == node->type && !is_optional(rule.name) && !node->has(rule.name))
      return refuse("attribute " + std::to_string(rule.name) + " must be set",
                    CUDNN_STATUS_BAD_PARAM_NULL_POINTER);
  if (const cudnnStatus_t status = check_node(*node)) return status;
  const auto lock = lock_devices();
  if (node->type == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR) ++log.heuristics;
  node->finalized = true;
  return CUDNN_STATUS_SUCCESS;
}

// Nodes that a heuristic's results refer to; they live as long as the process.
Node* engine_node(Node* graph, int64_t index) {
  Node* const node = new Node{CUDNN_BACKEND_ENGINE_DESCRIPTOR, true, {}};
  node->put<Node*>(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, {graph});
  node->put<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, {index});
  return node;
}

cudnnStatus_t give_nodes(const std::vector<Node>& found, int64_t wanted, int64_t* count,
                         void* values) {
  *count = static_cast<int64_t>(found.size());
  if (values == nullptr) return CUDNN_STATUS_SUCCESS;
  *count = std::min(*count, wanted);
  for (int64_t i = 0; i < *count; ++i) {
    Node* const target = static_cast<Node**>(values)[i];
    if (target->type != found[static_cast<size_t>(i)].type)
      return refuse("descriptors to be filled must be of their kind");
    *target = found[static_cast<size_t>(i)];
  }
  return CUDNN_STATUS_SUCCESS;
}

std::vector<Node> results_of(const Node& heuristics) {
  Node* const graph = heuristics.node(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
  std::vector<Node> found;
  for (int64_t index :
       recommended(heuristics.one<cudnnBackendHeurMode_t>(CUDNN_ATTR_ENGINEHEUR_MODE),
                   operations_behind(graph))) {
    Node config{CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, true, {}};
    config.put<Node*>(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                      {engine_node(graph, index)});
    if (engine_at(index)->has_knob) {
      Node* const knob = new Node{CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, true, {}};
      knob->put<cudnnBackendKnobType_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE,
                                        {CUDNN_KNOB_TYPE_TILE_SIZE});
      knob->put<int64_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, {kKnobValue});
      config.put<Node*>(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, {knob});
    }
    found.push_back(config);
  }
  return found;
}

template <class Value>
cudnnStatus_t give(const std::vector<Value>& found, int64_t wanted, int64_t* count, void* values) {
  *count = std::min(static_cast<int64_t>(found.size()), wanted);
  if (*count > 0) std::memcpy(values, found.data(), static_cast<size_t>(*count) * sizeof(Value));
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t get(cudnnBackendDescriptor_t const descriptor, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t, int64_t wanted, int64_t* count, void* values) {
  const Node& node = *as_node(descriptor);
  if (!node.finalized)
    return refuse("only a finalised descriptor tells", CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED);
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
      return give_nodes(results_of(node), wanted, count, values);
    case CUDNN_ATTR_ENGINECFG_ENGINE:
    case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES: {
      std::vector<Node> found;
      for (const Node* part : node.all<Node*>(name)) found.push_back(*part);
      return give_nodes(found, wanted, count, values);
    }
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
      return give(engine_at(node.one<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX))->notes, wanted,
                  count, values);
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: {
      const Node* const engine =
          node.node(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->node(CUDNN_ATTR_ENGINECFG_ENGINE);
      const auto index = engine->one<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
      return give<int64_t>({engine_at(index)->workspace}, wanted, count, values);
    }
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE:
      return give(node.all<int64_t>(name), wanted, count, values);
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE:
      return give(node.all<cudnnBackendKnobType_t>(name), wanted, count, values);
    default:
      return refuse("attribute must be one that can be asked for");
  }
}

struct Handle {
  cudaStream_t stream = nullptr;
};

// Pointers of a call by name; false, having refused, where one is missing or wrong.
bool find_pointers(const Node& pack, const std::vector<const TensorView*>& tensors,
                   std::map<int64_t, char*>* out) {
  const auto uids = pack.all<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = pack.all<char*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  if (uids.size() != pointers.size()) return refuse("each name must have a pointer"), false;
  for (const TensorView* t : tensors) {
    for (size_t i = 0; i < uids.size(); ++i)
      if (uids[i] == t->uid) (*out)[t->uid] = pointers[i];
    char*& found = (*out)[t->uid];
    if (found == nullptr) return refuse("every tensor must have a pointer"), false;
    if (!t->by_value && reinterpret_cast<uintptr_t>(found) % static_cast<uintptr_t>(t->alignment))
      return refuse("pointers must be aligned"), false;
  }
  return true;
}

cudnnStatus_t execute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                      cudnnBackendDescriptor_t pack) {
  const Node& chosen = *as_node(plan);
  const Node& given = *as_node(pack);
  if (!chosen.finalized || !given.finalized)
    return refuse("plan and pack must be finalised", CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED);
  if (running_refused) return refuse("running", CUDNN_STATUS_EXECUTION_FAILED);
  const std::vector<Node*> operations = operations_behind(&chosen);
  const bool norm = is_norm(operations);
  NormOperation norm_op;
  Operation op{};
  if (norm)
    read_norm(operations, &norm_op);
  else
    op = operation_of(operations.front());
  std::map<int64_t, char*> found;
  if (!find_pointers(given,
                     norm ? norm_op.tensors() : std::vector<const TensorView*>{&op.x, &op.w, &op.y},
                     &found))
    return CUDNN_STATUS_BAD_PARAM;
  const Node* const engine =
      chosen.node(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->node(CUDNN_ATTR_ENGINECFG_ENGINE);
  const auto index = engine->one<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
  if (index == refused_engine) return refuse("running", CUDNN_STATUS_EXECUTION_FAILED);
  const int64_t workspace = engine_at(index)->workspace;
  char* const scratch = given.has(CUDNN_ATTR_VARIANT_PACK_WORKSPACE)
                            ? given.one<char*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE)
                            : nullptr;
  if (workspace > 0 && scratch == nullptr) return refuse("workspace must be given");
  const auto& notes = engine_at(index)->notes;
  const bool rounds =
      std::find(notes.begin(), notes.end(), CUDNN_NUMERICAL_NOTE_TENSOR_CORE) != notes.end();
  const auto lock = lock_devices();
  ++(norm ? log.norms : log.executions);
  log.last_engine = index;
  // Numbers are read now, tensors in the stream's turn.
  const float eps = norm_op.eps.uid != 0 ? *reinterpret_cast<float*>(found[norm_op.eps.uid]) : 0;
  enqueue(reinterpret_cast<Handle*>(handle)->stream, [=]() mutable {
    if (workspace > 0) std::memset(scratch, 0xEE, static_cast<size_t>(workspace));
    if (norm)
      compute_norm(norm_op, found, eps);
    else
      compute_convolution(op, found[op.x.uid], found[op.w.uid], found[op.y.uid], rounds);
  });
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t create(cudnnHandle_t* handle) {
  *handle = reinterpret_cast<cudnnHandle_t>(new Handle);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t set_stream(cudnnHandle_t handle, cudaStream_t stream) {
  reinterpret_cast<Handle*>(handle)->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}
size_t version() { return version_number; }
const char* error_string(cudnnStatus_t) { return "an emulated refusal"; }
void get_last_error(char* text, size_t size) {
  std::strncpy(text, last_error.c_str(), size - 1);
  text[size - 1] = '\0';
}

constexpr kernels::cuda::DnnApi kFake{.version = version,
                                      .error_string = error_string,
                                      .last_error = get_last_error,
                                      .create = create,
                                      .set_stream = set_stream,
                                      .backend_create = backend_create,
                                      .backend_destroy = backend_destroy,
                                      .set = set,
                                      .get = get,
                                      .finalize = finalize,
                                      .execute = execute};

// Plans are kept where a test says so, never among the user's.
const bool installed = [] {
  setenv("XDG_CACHE_HOME", "/dev/null", 1);
  kernels::cuda::set_dnn_api(&kFake);
  return true;
}();

}  // namespace

DnnLog& dnn_log() { return log; }
const kernels::cuda::DnnApi& fake_dnn() { return kFake; }
void set_dnn_version(size_t version) { version_number = version; }
void refuse_adding(bool on) { adding_refused = on; }
void refuse_running(bool on) { running_refused = on; }
void refuse_running_engine(int64_t engine) { refused_engine = engine; }
void set_known_engines(Known engines) { known = engines; }

}  // namespace cairn::emulator
