// cuDNN's functions (the graph API) and its descriptors.
// Invariant: a Descriptor is destroyed once; what it was made of must outlive it, as the library
// asks.
#pragma once

#include <cudnn_graph.h>

#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cairn/tensor/error.h"

namespace cairn::kernels::cuda {

struct DnnApi {
  decltype(&cudnnGetVersion) version;
  decltype(&cudnnGetErrorString) error_string;
  decltype(&cudnnGetLastErrorString) last_error;
  decltype(&cudnnCreate) create;
  decltype(&cudnnSetStream) set_stream;
  decltype(&cudnnBackendCreateDescriptor) backend_create;
  decltype(&cudnnBackendDestroyDescriptor) backend_destroy;
  decltype(&cudnnBackendSetAttribute) set;
  decltype(&cudnnBackendGetAttribute) get;
  decltype(&cudnnBackendFinalize) finalize;
  decltype(&cudnnBackendExecute) execute;
};
// Opens the library; false with the reason in *why.
bool load_dnn(DnnApi* api, std::string* why);
// What is used instead of the installed library; null: the installed one. For tests.
// Forgets all plans.
void set_dnn_api(const DnnApi* api);

// Throws `call: cuDNN call must succeed, got …` unless it did.
void check_dnn(const DnnApi& api, cudnnStatus_t status, const char* call);

class Descriptor {
 public:
  Descriptor(const DnnApi& api, cudnnBackendDescriptorType_t type) : api_(&api) {
    check_dnn(api, api.backend_create(type, &handle_), "cudnnBackendCreateDescriptor");
  }
  ~Descriptor() {
    if (handle_ != nullptr) static_cast<void>(api_->backend_destroy(handle_));
  }
  Descriptor(Descriptor&& other) noexcept
      : api_(other.api_), handle_(std::exchange(other.handle_, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(api_, other.api_);
    std::swap(handle_, other.handle_);
    return *this;
  }

  cudnnBackendDescriptor_t get() const { return handle_; }

  template <class Value>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                  std::span<const Value> values) {
    check_dnn(*api_,
              api_->set(handle_, name, type, static_cast<int64_t>(values.size()), values.data()),
              "cudnnBackendSetAttribute");
    return *this;
  }
  template <class Value>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                  const Value& value) {
    return set(name, type, std::span<const Value>(&value, 1));
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, value.handle_);
  }

  // Fills up to values.size() elements; how many there are.
  template <class Value>
  int64_t read(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
               std::span<Value> values) const {
    int64_t count = 0;
    check_dnn(*api_,
              api_->get(handle_, name, type, static_cast<int64_t>(values.size()), &count,
                        values.empty() ? nullptr : values.data()),
              "cudnnBackendGetAttribute");
    return count;
  }
  template <class Value>
  Value read_one(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type) const {
    Value value{};
    read(name, type, std::span<Value>(&value, 1));
    return value;
  }
  // Descriptors inside this one; the library fills ones that it is given.
  std::vector<Descriptor> read_all(cudnnBackendAttributeName_t name,
                                   cudnnBackendDescriptorType_t type, int64_t most) const {
    std::vector<Descriptor> made;
    std::vector<cudnnBackendDescriptor_t> handles;
    for (int64_t i = 0; i < most; ++i) handles.push_back(made.emplace_back(*api_, type).handle_);
    const int64_t count =
        read(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::span<cudnnBackendDescriptor_t>(handles));
    while (static_cast<int64_t>(made.size()) > count) made.pop_back();
    return made;
  }

  void finalize() { check_dnn(*api_, api_->finalize(handle_), "cudnnBackendFinalize"); }
  // Whether the library can do what this describes.
  bool try_finalize() { return api_->finalize(handle_) == CUDNN_STATUS_SUCCESS; }

 private:
  const DnnApi* api_;
  cudnnBackendDescriptor_t handle_ = nullptr;
};

}  // namespace cairn::kernels::cuda
