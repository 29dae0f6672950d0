// Descriptors of the emulated cuDNN, and the operation that they describe.
#pragma once

#include <cudnn_graph.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
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
struct TensorView {
  cudnnDataType_t type;
  std::vector<int64_t> sizes, strides;
  int64_t uid, alignment;
};
inline TensorView view_of(const Node* node) {
  return {node->one<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE),
          node->all<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS),
          node->all<int64_t>(CUDNN_ATTR_TENSOR_STRIDES),
          node->one<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID),
          node->one<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT)};
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

// Computes the operation now; `rounds`: f32 inputs to TF32.
void compute_convolution(const Operation& op, char* x, char* w, char* y, bool rounds);

}  // namespace cairn::emulator
