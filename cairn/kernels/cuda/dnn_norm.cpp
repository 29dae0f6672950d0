// Batch norms in training by cuDNN: their graphs, their calls, and when they are worth it.
// Invariant: nothing but scratch is written before it is certain that cuDNN serves the call.
#include "cairn/kernels/cuda/dnn_norm.h"

#include <algorithm>
#include <atomic>

#include "cairn/kernels/cuda/dnn_norm_vectors.h"
#include "cairn/kernels/cuda/dnn_plans.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/cuda/runtime.h"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {
namespace {

// --- graphs --------------------------------------------------------------------------------------

// Collects the tensors and operations of one graph.
class Builder {
 public:
  Builder(const DnnApi& api, const NormProblem& problem) : api_(api), problem_(problem) {}

  using Handle = cudnnBackendDescriptor_t;
  Handle map(int64_t id) { return add({id, problem_.dtype, problem_.sizes}); }
  Handle vector(int64_t id) { return add({id, DType::f32, {1, problem_.sizes[1], 1, 1}}); }
  Handle number(int64_t id) {
    return add({id, DType::f32, {1, 1, 1, 1}, 16, DnnTensor::Place::host});
  }
  Handle inside(DType dtype) {
    return add({inside_++, dtype, problem_.sizes, 16, DnnTensor::Place::inside});
  }

  // y = mode(x), or mode(x, b).
  Handle pointwise(cudnnPointwiseMode_t mode, Handle x, Handle b, Handle y) {
    Descriptor& how = parts.emplace_back(api_, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode)
        .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT)
        .finalize();
    Descriptor operation(api_, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    put(operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b != nullptr) put(operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    put(operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    finish(std::move(operation));
    return y;
  }
  static void put(Descriptor& operation, cudnnBackendAttributeName_t name, Handle part) {
    operation.set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, part);
  }
  void finish(Descriptor operation) {
    operation.finalize();
    operations.push_back(std::move(operation));
  }

  std::vector<Descriptor> parts, operations;

 private:
  Handle add(const DnnTensor& tensor) { return parts.emplace_back(tensor.make(api_)).get(); }

  const DnnApi& api_;
  const NormProblem& problem_;
  int64_t inside_ = kNormInside;
};

void build_forward(const DnnApi& api, const NormProblem& p, Builder& b) {
  Builder::Handle out = p.relu ? b.inside(DType::f32) : b.map(kNormY);
  Descriptor norm(api, CUDNN_BACKEND_OPERATION_NORM_FORWARD_DESCRIPTOR);
  norm.set(CUDNN_ATTR_OPERATION_NORM_FWD_MODE, CUDNN_TYPE_NORM_MODE, CUDNN_BATCH_NORM)
      .set(CUDNN_ATTR_OPERATION_NORM_FWD_PHASE, CUDNN_TYPE_NORM_FWD_PHASE, CUDNN_NORM_FWD_TRAINING);
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_FWD_XDESC, b.map(kNormX));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_FWD_MEAN_DESC, b.vector(kNormMean));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_FWD_INV_VARIANCE_DESC, b.vector(kNormRstd));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_FWD_SCALE_DESC, b.vector(kNormW));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_FWD_BIAS_DESC, b.vector(kNormB));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_FWD_EPSILON_DESC, b.number(kNormEps));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_FWD_YDESC, out);
  b.finish(std::move(norm));
  if (p.residual)
    out = b.pointwise(CUDNN_POINTWISE_ADD, out, b.map(kNormResidual), b.inside(DType::f32));
  if (p.relu) b.pointwise(CUDNN_POINTWISE_RELU_FWD, out, nullptr, b.map(kNormY));
}

void build_backward(const DnnApi& api, const NormProblem& p, Builder& b) {
  Builder::Handle dy = b.map(kNormDy);
  if (p.relu) {
    const Builder::Handle passes = b.pointwise(CUDNN_POINTWISE_CMP_GT, b.map(kNormY),
                                               b.number(kNormZero), b.inside(DType::boolean));
    dy = b.pointwise(CUDNN_POINTWISE_MUL, dy, passes,
                     p.residual ? b.map(kNormDresidual) : b.inside(p.dtype));
  }
  Descriptor norm(api, CUDNN_BACKEND_OPERATION_NORM_BACKWARD_DESCRIPTOR);
  norm.set(CUDNN_ATTR_OPERATION_NORM_BWD_MODE, CUDNN_TYPE_NORM_MODE, CUDNN_BATCH_NORM);
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_BWD_XDESC, b.map(kNormX));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_BWD_MEAN_DESC, b.vector(kNormMean));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_BWD_INV_VARIANCE_DESC, b.vector(kNormRstd));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_BWD_DYDESC, dy);
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_BWD_SCALE_DESC, b.vector(kNormW));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_BWD_DSCALE_DESC, b.vector(kNormDw));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_BWD_DBIAS_DESC, b.vector(kNormDb));
  b.put(norm, CUDNN_ATTR_OPERATION_NORM_BWD_DXDESC, b.map(kNormDx));
  b.finish(std::move(norm));
}

// --- calls ---------------------------------------------------------------------------------------

std::atomic<bool> always{false};

std::array<int64_t, 4> sizes_of(const Tensor& x) {
  std::array<int64_t, 4> sizes{1, 1, 1, 1};
  for (int64_t i = 0; i < std::min<int64_t>(x.dim(), 4); ++i)
    sizes[static_cast<size_t>(i)] = x.size(i);
  return sizes;
}

// A vector as cuDNN asks for it.
bool is_plain(const Tensor& t) {
  return t.defined() && t.dtype() == DType::f32 && t.is_contiguous() &&
         reinterpret_cast<uintptr_t>(t.raw_data()) % 16 == 0;
}

void* data_or_null(const Tensor& t) { return t.defined() ? t.raw_data() : nullptr; }

// Names and pointers of a call.
struct Bound {
  static constexpr size_t kMost = 11;  // backward has them all but those of forward
  std::array<int64_t, kMost> ids{};
  std::array<void*, kMost> data{};
  size_t count = 0;

  void add(NormTensor id, const void* pointer) {
    ids.at(count) = id;
    data[count++] = const_cast<void*>(pointer);
  }
  void run(const DnnContext& context, const DnnGraph::Plan& plan, void* workspace) const {
    execute(context, plan, std::span(ids).first(count), std::span(data).first(count), workspace);
  }
};

class NormCall : public DnnCall {
 public:
  NormCall(const NormProblem& problem, const Tensor& x) : problem_(problem), x_(x) {}

  DnnKey key() const final {
    const NormProblem& p = problem_;
    return {kKeyOfNorms,    p.backward, static_cast<int64_t>(p.dtype),
            p.sizes[0],     p.sizes[1], p.sizes[2],
            p.sizes[3],     p.residual, p.relu,
            p.deterministic};
  }
  std::string line() const final {
    const NormProblem& p = problem_;
    return cat(p.backward ? "batch_norm_bwd " : "batch_norm_fwd ", p.dtype, " nhwc ", p.sizes[0],
               "x", p.sizes[1], "x", p.sizes[2], "x", p.sizes[3], p.residual ? " residual" : "",
               p.relu ? " relu" : "", p.deterministic ? " deterministic" : "");
  }
  DnnGraph graph(const DnnContext& context) const final {
    return norm_graph(context.api, context.handle, problem_);
  }
  // Each is compiled for about a second, and they differ little.
  int candidates() const final { return 2; }
  bool competes() const final { return true; }
  // Without timing: where the map is larger than what the second pass of the own kernels finds in
  // L2. Below that there is nothing to win that is worth compiling a kernel in each process.
  bool by_guess() const final {
    return always || x_.nbytes() > cairn::cuda::limits_of(x_.device()).l2_cache / 2;
  }

 protected:
  ~NormCall() = default;

  // Scratch like a map or vector, for trials.
  Tensor map_scratch() const { return empty({x_.numel()}, {x_.dtype(), x_.device()}); }
  Tensor vector_scratch(DType dtype) const { return empty({x_.size(1)}, {dtype, x_.device()}); }

  const NormProblem& problem_;
  const Tensor& x_;

 private:
  static constexpr int64_t kKeyOfNorms = 100;  // convolutions' kinds are below
};

class ForwardCall final : public NormCall {
 public:
  ForwardCall(const NormProblem& problem, const NormForward& f)
      : NormCall(problem, f.x), f_(f), eps_(static_cast<float>(f.eps)) {}

  void run(const DnnContext& context, const DnnGraph::Plan& plan, void* workspace) override {
    const NormForward f = arguments();
    const int64_t c = f.x.size(1);
    float* const scratch = f.coef.data<float>();
    float* const mean = scratch + 2 * c;
    float* const rstd = scratch + 3 * c;
    float* const w = is_plain(f.w) ? f.w.data<float>() : scratch;
    float* const b = is_plain(f.b) ? f.b.data<float>() : scratch + c;
    norm_vectors_to_f32(
        context.device, c,
        {{f.w, 1, w == scratch ? w : nullptr}, {f.b, 0, b == scratch + c ? b : nullptr}});
    Bound bound;
    bound.add(kNormX, f.x.raw_data());
    bound.add(kNormY, f.y.raw_data());
    bound.add(kNormMean, mean);
    bound.add(kNormRstd, rstd);
    bound.add(kNormW, w);
    bound.add(kNormB, b);
    bound.add(kNormEps, &eps_);
    if (problem_.residual) bound.add(kNormResidual, f.residual.raw_data());
    bound.run(context, plan, workspace);
    finish_dnn_forward(f, mean, rstd);
  }
  void start_trials() override {
    y_ = map_scratch();
    mean_ = vector_scratch(DType::f64);
    rstd_ = vector_scratch(DType::f64);
    trying_ = true;
  }
  void end_trials() override {
    trying_ = false;
    y_ = mean_ = rstd_ = Tensor();
  }
  void run_own() override { own_batch_norm_fwd(arguments()); }

 private:
  // In trials the running statistics stay as they are.
  NormForward arguments() const {
    if (!trying_) return f_;
    return {y_,   mean_,       rstd_, none_, none_,       f_.work, f_.coef,
            f_.x, f_.residual, f_.w,  f_.b,  f_.momentum, f_.eps,  f_.relu};
  }

  const NormForward& f_;
  float eps_;
  bool trying_ = false;
  Tensor y_, mean_, rstd_, none_;
};

class BackwardCall final : public NormCall {
 public:
  BackwardCall(const NormProblem& problem, const NormBackward& g) : NormCall(problem, g.x), g_(g) {}

  void run(const DnnContext& context, const DnnGraph::Plan& plan, void* workspace) override {
    const NormBackward g = arguments();
    const int64_t c = g.x.size(1);
    float* const scratch = g.coef.data<float>();
    float* const mean = scratch;
    float* const rstd = scratch + c;
    float* const w = is_plain(g.w) ? g.w.data<float>() : scratch + 2 * c;
    const bool direct = writes_directly(g.dw) && writes_directly(g.db);
    float* const dw = direct ? g.dw.tensor.data<float>() : scratch + 3 * c;
    float* const db = direct ? g.db.tensor.data<float>() : scratch + 4 * c;
    norm_vectors_to_f32(
        context.device, c,
        {{g.mean, 0, mean}, {g.rstd, 0, rstd}, {g.w, 1, w == scratch + 2 * c ? w : nullptr}});
    Bound bound;
    bound.add(kNormX, g.x.raw_data());
    bound.add(kNormDy, g.dy.raw_data());
    bound.add(kNormDx, g.dx.tensor.raw_data());
    bound.add(kNormMean, mean);
    bound.add(kNormRstd, rstd);
    bound.add(kNormW, w);
    bound.add(kNormDw, dw);
    bound.add(kNormDb, db);
    if (problem_.relu) {
      bound.add(kNormY, g.y.raw_data());
      bound.add(kNormZero, &zero_);
    }
    if (problem_.residual) bound.add(kNormDresidual, g.dresidual.tensor.raw_data());
    bound.run(context, plan, workspace);
    if (!direct) finish_dnn_backward(g, dw, db);
  }
  void start_trials() override {
    dx_.tensor = map_scratch();
    if (g_.dresidual) dresidual_.tensor = map_scratch();
    if (g_.dw) dw_.tensor = vector_scratch(g_.dw.tensor.dtype());
    if (g_.db) db_.tensor = vector_scratch(g_.db.tensor.dtype());
    trying_ = true;
  }
  void end_trials() override {
    trying_ = false;
    dx_ = dresidual_ = dw_ = db_ = Dst{};
  }
  void run_own() override { own_batch_norm_bwd(arguments()); }

 private:
  static bool writes_directly(const Dst& dst) { return !dst.add && is_plain(dst.tensor); }
  NormBackward arguments() const {
    if (!trying_) return g_;
    return {dx_,  dresidual_, dw_,  db_,     g_.work, g_.coef, g_.dy,      g_.x,
            g_.y, g_.w,       g_.b, g_.mean, g_.rstd, g_.relu, g_.training};
  }

  const NormBackward& g_;
  float zero_ = 0;
  bool trying_ = false;
  Dst dx_, dresidual_, dw_, db_;
};

// --- which calls ---------------------------------------------------------------------------------

// Whether cuDNN is asked at all. Where one block takes all rows of its channels, the own kernels
// are one launch, and cuDNN with what stands around it is two or three.
bool asks(const NormProblem& problem, const Tensor& x, std::initializer_list<void*> maps) {
  const int64_t channels = problem.sizes[1], rows = channels == 0 ? 0 : x.numel() / channels;
  if (rows < 2 || x.dim() > 4 || x.dtype() == DType::f64 || !has_norm_graph(problem)) return false;
  if (!always && rows <= kNormRowsOfOneLaunch) return false;
  if (channels * item_size(x.dtype()) % 16 != 0) return false;
  for (const void* map : maps)
    if (reinterpret_cast<uintptr_t>(map) % 16 != 0) return false;
  return true;
}

bool fwd_by_cudnn(const NormForward& f) {
  const NormProblem problem{.dtype = f.x.dtype(),
                            .sizes = sizes_of(f.x),
                            .residual = f.residual.defined(),
                            .relu = f.relu,
                            .deterministic = cairn::cuda::settings().deterministic};
  if (!asks(problem, f.x, {f.x.raw_data(), f.y.raw_data(), data_or_null(f.residual)})) return false;
  ForwardCall call(problem, f);
  return run_by_dnn(f.x.device(), call);
}

bool bwd_by_cudnn(const NormBackward& g) {
  // Gradients are not added to, and relu's place is known from the output alone. A residual behind
  // no relu has dy as its gradient.
  if (!g.training || !g.dx || g.dx.add || (g.dresidual && (g.dresidual.add || !g.relu)) ||
      (g.relu && !g.y.defined()))
    return false;
  const NormProblem problem{.backward = true,
                            .dtype = g.x.dtype(),
                            .sizes = sizes_of(g.x),
                            .residual = static_cast<bool>(g.dresidual),
                            .relu = g.relu,
                            .deterministic = cairn::cuda::settings().deterministic};
  if (!asks(problem, g.x,
            {g.x.raw_data(), g.dy.raw_data(), data_or_null(g.y), g.dx.tensor.raw_data(),
             data_or_null(g.dresidual.tensor)}))
    return false;
  BackwardCall call(problem, g);
  if (!run_by_dnn(g.x.device(), call)) return false;
  for (const Dst* dst : {&g.dx, &g.dresidual, &g.dw, &g.db})
    if (dst->zeros != nullptr) dst->zeros->clear();
  return true;
}

}  // namespace

bool has_norm_graph(const NormProblem& problem) { return problem.relu || !problem.residual; }

DnnGraph norm_graph(const DnnApi& api, cudnnHandle_t handle, const NormProblem& problem,
                    const Descriptor* properties) {
  Builder builder(api, problem);
  if (problem.backward)
    build_backward(api, problem, builder);
  else
    build_forward(api, problem, builder);
  return DnnGraph(api, handle,
                  {.dtype = problem.dtype, .tf32 = true, .deterministic = problem.deterministic},
                  std::move(builder.parts), std::move(builder.operations), properties);
}

void set_norms_by_dnn(bool on) { always = on; }

void fill_dnn_norm() { set_dnn_norm({fwd_by_cudnn, bwd_by_cudnn}); }

}  // namespace cairn::kernels::cuda
