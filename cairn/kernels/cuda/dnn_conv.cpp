// Convolutions by cuDNN: their graphs and calls.
// Invariant: candidates are timed into memory of their own, never into a result, which `add` would
// change.
#include "cairn/kernels/cuda/dnn_conv.h"

#include <algorithm>
#include <array>

#include "cairn/kernels/cuda/dnn_plans.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {
namespace {

constexpr std::array<int64_t, 3> kNames{1, 2, 3};  // x, w, y

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

class ConvCall final : public DnnCall {
 public:
  ConvCall(const DnnProblem& problem, Device device, const std::array<void*, 3>& data)
      : problem_(problem), device_(device), data_(data), live_(data[result()]) {}

  DnnKey key() const override {
    const DnnProblem& p = problem_;
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
            p.deterministic};
  }

  std::string line() const override {
    constexpr const char* kKinds[] = {"fwd", "bwd_data", "bwd_weight"};
    const DnnProblem& p = problem_;
    const ConvShape& s = p.shape;
    const ConvParams& c = s.p;
    return cat(kKinds[static_cast<int>(p.kind)], " ", p.dtype, " nhwc ", s.n, "x", s.ci, "x", s.h,
               "x", s.w, " filter ", s.co, "x", s.depth(), "x", s.kh, "x", s.kw, " stride ",
               c.stride_h, "x", c.stride_w, " pad ", c.pad_h, "x", c.pad_w, " dilation ", c.dil_h,
               "x", c.dil_w, " groups ", c.groups, p.add ? " add" : "", " align ", p.alignment,
               p.tf32 ? " tf32" : "", p.deterministic ? " deterministic" : "");
  }

  DnnGraph graph(const DnnContext& context) const override {
    return conv_graph(context.api, context.handle, problem_);
  }
  void run(const DnnContext& context, const DnnGraph::Plan& plan, void* workspace) override {
    execute(context, plan, kNames, data_, workspace);
  }
  void start_trials() override {
    const ConvShape& s = problem_.shape;
    const int64_t sizes[] = {s.n * s.h * s.w * s.ci, s.co * s.filter(), s.n * s.oh * s.ow * s.co};
    scratch_ = empty({sizes[result()]}, {problem_.dtype, device_});
    data_[result()] = scratch_.raw_data();
  }
  void end_trials() override {
    data_[result()] = live_;
    scratch_ = Tensor();
  }

 private:
  size_t result() const {
    if (problem_.kind == ConvKind::fwd) return 2;
    return problem_.kind == ConvKind::bwd_data ? 0 : 1;
  }

  const DnnProblem& problem_;
  Device device_;
  std::array<void*, 3> data_;  // x, w, y
  void* live_;
  Tensor scratch_;
};

bool by_cudnn(ConvKind kind, const ConvShape& shape, const Tensor& x, const Tensor& w,
              const Tensor& y, bool add) {
  const cairn::cuda::Settings& settings = cairn::cuda::settings();
  const std::array<void*, 3> data{x.raw_data(), w.raw_data(), y.raw_data()};
  const DnnProblem problem{.kind = kind,
                           .shape = shape,
                           .dtype = x.dtype(),
                           .add = add,
                           .alignment = std::max(alignment_of(data), item_size(x.dtype())),
                           .tf32 = settings.conv_allow_tf32,
                           .deterministic = settings.deterministic};
  ConvCall call(problem, x.device(), data);
  return run_by_dnn(x.device(), call);
}

}  // namespace

DnnGraph conv_graph(const DnnApi& api, cudnnHandle_t handle, const DnnProblem& problem,
                    const Descriptor* properties) {
  const ConvShape& s = problem.shape;
  const std::array<int64_t, 4> sizes[] = {
      {s.n, s.ci, s.h, s.w}, {s.co, s.depth(), s.kh, s.kw}, {s.n, s.co, s.oh, s.ow}};
  std::vector<Descriptor> parts;
  for (size_t i = 0; i < 3; ++i)
    parts.push_back(DnnTensor{kNames[i], problem.dtype, sizes[i], problem.alignment}.make(api));
  parts.push_back(convolution(api, s.p));
  const Names names = names_of(problem.kind);
  Descriptor operation(api, names.type);
  operation.set(names.alpha, CUDNN_TYPE_FLOAT, 1.0f)
      .set(names.beta, CUDNN_TYPE_FLOAT, problem.add ? 1.0f : 0.0f)
      .set(names.convolution, parts[3])
      .set(names.x, parts[0])
      .set(names.w, parts[1])
      .set(names.y, parts[2])
      .finalize();
  std::vector<Descriptor> operations;
  operations.push_back(std::move(operation));
  return DnnGraph(api, handle, {problem.dtype, problem.tf32, problem.deterministic},
                  std::move(parts), std::move(operations), properties);
}

void fill_dnn_conv() { set_dnn_conv(by_cudnn); }

}  // namespace cairn::kernels::cuda
