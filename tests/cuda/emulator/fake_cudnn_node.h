// Descriptors of the emulated cuDNN, and the operation that they describe.
#pragma once

#include <cudnn_graph.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace cairn::emulator {

struct Attribute {
  cudnnBackendAttributeType_t type;
  int64_t count = 0;
  std::vector<std::byte> bytes;
};

struct Node {
  cudnnBackendDescriptorType_t type;
  bool finalized = false;
  std::map<int, Attribute> attributes;

  bool has(int name) const { return attributes.count(name) > 0; }
  template <class Value>
  std::vector<Value> all(int name) const {
    const auto at = attributes.find(name);
    if (at == attributes.end()) return {};
    std::vector<Value> values(static_cast<size_t>(at->second.count));
    std::memcpy(static_cast<void*>(values.data()), at->second.bytes.data(),
                values.size() * sizeof(Value));
    return values;
  }
  template <class Value>
  Value one(int name) const {
    return all<Value>(name).at(0);
  }
  Node* node(int name) const { return one<Node*>(name); }
  template <class Value>
  void put(int name, cudnnBackendAttributeType_t kind, const std::vector<Value>& values) {
    Attribute& attribute = attributes[name];
    attribute = {kind, static_cast<int64_t>(values.size()), {}};
    attribute.bytes.resize(values.size() * sizeof(Value));
    std::memcpy(attribute.bytes.data(), values.data(), attribute.bytes.size());
  }
};

constexpr auto kForward = CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
constexpr auto kData = CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR;
constexpr auto kFilter = CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR;
constexpr auto kPointwise = CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR;
constexpr auto kNormForward = CUDNN_BACKEND_OPERATION_NORM_FORWARD_DESCRIPTOR;
constexpr auto kNormBackward = CUDNN_BACKEND_OPERATION_NORM_BACKWARD_DESCRIPTOR;

// What may be set on which descriptor, and as what.
struct DnnRule {
  cudnnBackendDescriptorType_t node;
  cudnnBackendAttributeName_t name;
  cudnnBackendAttributeType_t type;
};
std::span<const DnnRule> dnn_rules();
// All others of a descriptor's rules must be set before it is finalised.
bool is_optional(cudnnBackendAttributeName_t name);
size_t size_of(cudnnBackendAttributeType_t type);

struct TensorView {
  cudnnDataType_t type = CUDNN_DATA_FLOAT;
  std::vector<int64_t> sizes, strides;
  int64_t uid = 0, alignment = 1;
  bool inside = false, by_value = false;
};
inline TensorView view_of(const Node* node) {
  return {
      node->one<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE),
      node->all<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS),
      node->all<int64_t>(CUDNN_ATTR_TENSOR_STRIDES),
      node->one<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID),
      node->one<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT),
      node->has(CUDNN_ATTR_TENSOR_IS_VIRTUAL) && node->one<char>(CUDNN_ATTR_TENSOR_IS_VIRTUAL) != 0,
      node->has(CUDNN_ATTR_TENSOR_IS_BY_VALUE) &&
          node->one<char>(CUDNN_ATTR_TENSOR_IS_BY_VALUE) != 0};
}
struct Operation {
  cudnnBackendDescriptorType_t type;
  TensorView x, w, y;
  std::vector<int64_t> dilation, stride, pad;
  float alpha, beta;
};
// The attributes of the three operations lie alike, six apart: alpha, beta, convolution, w, x, y.
inline int first_name(cudnnBackendDescriptorType_t type) {
  if (type == kForward) return CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA;
  return type == kData ? CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA
                       : CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA;
}
inline Operation operation_of(const Node* node) {
  const int first = first_name(node->type);
  const Node* const conv = node->node(first + 2);
  return {node->type,
          view_of(node->node(first + 4)),
          view_of(node->node(first + 3)),
          view_of(node->node(first + 5)),
          conv->all<int64_t>(CUDNN_ATTR_CONVOLUTION_DILATIONS),
          conv->all<int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES),
          conv->all<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS),
          node->one<float>(first),
          node->one<float>(first + 1)};
}

// A batch norm and what stands before or behind it. Tensors that an operation lacks have no name
// (uid 0).
struct NormOperation {
  bool backward = false, relu = false;
  TensorView x, y, residual, mean, rstd, w, b, eps, zero, dy, dx, dresidual, dw, db;
  // All that a call must have pointers to.
  std::vector<const TensorView*> tensors() const;
};
bool is_norm(const std::vector<Node*>& operations);
// Why no engine takes the operations together; empty where one does, and then they are in *out.
std::string read_norm(const std::vector<Node*>& operations, NormOperation* out);
// Computes it now; pointers by name. A host's number was read when the call was made.
void compute_norm(const NormOperation& op, const std::map<int64_t, char*>& pointers, float eps);

// One element, and a number's place.
double load_element(cudnnDataType_t type, const char* data, int64_t at);
void store_element(cudnnDataType_t type, char* data, int64_t at, double value);

// Computes the operation now; `rounds`: f32 inputs to TF32.
void compute_convolution(const Operation& op, char* x, char* w, char* y, bool rounds);

}  // namespace cairn::emulator
