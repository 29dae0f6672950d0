// Batch norms of the emulated cuDNN: which graphs its engine takes, as cuDNN 9.19 does for Hopper,
// and what it computes, by plain loops in f64.
#include <cmath>

#include "tests/cuda/emulator/fake_cudnn_node.h"

namespace cairn::emulator {
namespace {

int64_t item_size(cudnnDataType_t type) { return type == CUDNN_DATA_FLOAT ? 4 : 2; }
bool is_map_type(cudnnDataType_t type) {
  return type == CUDNN_DATA_FLOAT || type == CUDNN_DATA_HALF || type == CUDNN_DATA_BFLOAT16;
}

// Operations one after the other, each asked for what it is made of.
class Reader {
 public:
  Reader(const std::vector<Node*>& operations, NormOperation* out)
      : operations_(operations), op_(*out) {}

  std::string run() {
    const Node& first = *operations_.front();
    if (first.type == kNormForward)
      forward();
    else
      backward();
    if (why_.empty() && at_ != operations_.size()) why_ = "operations must be those of a pattern";
    return why_;
  }

 private:
  void need(bool good, const char* why) {
    if (!good && why_.empty()) why_ = why;
  }
  // The next operation, where it is of this mode; else null.
  const Node* pointwise(cudnnPointwiseMode_t mode) {
    if (at_ == operations_.size() || operations_[at_]->type != kPointwise) return nullptr;
    const Node* const how = operations_[at_]->node(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    if (how->one<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE) != mode) return nullptr;
    need(how->one<cudnnDataType_t>(CUDNN_ATTR_POINTWISE_MATH_PREC) == CUDNN_DATA_FLOAT,
         "pointwise operations must be computed in f32");
    return operations_[at_++];
  }
  TensorView map(const Node* tensor) {
    const TensorView t = view_of(tensor);
    need(is_map_type(t.type) && !t.inside && !t.by_value, "a map must lie on the device");
    if (op_.x.uid != 0) need(t.type == op_.x.type && t.sizes == op_.x.sizes, "maps must be alike");
    need(t.strides[1] == 1 && t.sizes[1] * item_size(t.type) % 16 == 0,
         "channels must be innermost, in groups of 16 bytes");
    return t;
  }
  TensorView vector(const Node* tensor) {
    const TensorView t = view_of(tensor);
    need(t.type == CUDNN_DATA_FLOAT && !t.inside && !t.by_value &&
             t.sizes == std::vector<int64_t>{1, op_.x.sizes[1], 1, 1},
         "a vector must be one of channels in f32");
    return t;
  }
  TensorView number(const Node* tensor) {
    const TensorView t = view_of(tensor);
    need(t.type == CUDNN_DATA_FLOAT && t.by_value, "a number must be an f32 on the host");
    return t;
  }
  void inside(const Node* tensor, cudnnDataType_t type, const char* why) {
    const TensorView t = view_of(tensor);
    need(t.inside && t.type == type && t.sizes == op_.x.sizes, why);
  }

  void forward() {
    const Node& norm = *operations_[at_++];
    const auto part = [&](int name) { return norm.node(name); };
    need(norm.one<cudnnBackendNormMode_t>(CUDNN_ATTR_OPERATION_NORM_FWD_MODE) == CUDNN_BATCH_NORM &&
             norm.one<cudnnBackendNormFwdPhase_t>(CUDNN_ATTR_OPERATION_NORM_FWD_PHASE) ==
                 CUDNN_NORM_FWD_TRAINING,
         "a norm must be a batch norm in training");
    op_.x = map(part(CUDNN_ATTR_OPERATION_NORM_FWD_XDESC));
    op_.mean = vector(part(CUDNN_ATTR_OPERATION_NORM_FWD_MEAN_DESC));
    op_.rstd = vector(part(CUDNN_ATTR_OPERATION_NORM_FWD_INV_VARIANCE_DESC));
    op_.w = vector(part(CUDNN_ATTR_OPERATION_NORM_FWD_SCALE_DESC));
    op_.b = vector(part(CUDNN_ATTR_OPERATION_NORM_FWD_BIAS_DESC));
    op_.eps = number(part(CUDNN_ATTR_OPERATION_NORM_FWD_EPSILON_DESC));
    const Node* out = part(CUDNN_ATTR_OPERATION_NORM_FWD_YDESC);
    const Node* const sum = pointwise(CUDNN_POINTWISE_ADD);
    if (sum != nullptr) {
      inside(out, CUDNN_DATA_FLOAT, "a norm before a sum must stay inside");
      need(sum->node(CUDNN_ATTR_OPERATION_POINTWISE_XDESC) == out, "a sum must be the norm's");
      op_.residual = map(sum->node(CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
      out = sum->node(CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
    }
    const Node* const relu = pointwise(CUDNN_POINTWISE_RELU_FWD);
    op_.relu = relu != nullptr;
    need(op_.relu || sum == nullptr, "a sum must end in relu");
    if (op_.relu) {
      inside(out, CUDNN_DATA_FLOAT, "what relu gets must stay inside");
      need(relu->node(CUDNN_ATTR_OPERATION_POINTWISE_XDESC) == out, "relu must be the norm's");
      out = relu->node(CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
    }
    op_.y = map(out);
  }

  void backward() {
    op_.backward = true;
    const Node& norm = *operations_.back();
    const auto part = [&](int name) { return norm.node(name); };
    need(norm.type == kNormBackward, "a pattern must end in a norm's gradient");
    if (!why_.empty()) return;
    need(norm.one<cudnnBackendNormMode_t>(CUDNN_ATTR_OPERATION_NORM_BWD_MODE) == CUDNN_BATCH_NORM,
         "a norm must be a batch norm");
    op_.x = map(part(CUDNN_ATTR_OPERATION_NORM_BWD_XDESC));
    op_.mean = vector(part(CUDNN_ATTR_OPERATION_NORM_BWD_MEAN_DESC));
    op_.rstd = vector(part(CUDNN_ATTR_OPERATION_NORM_BWD_INV_VARIANCE_DESC));
    op_.w = vector(part(CUDNN_ATTR_OPERATION_NORM_BWD_SCALE_DESC));
    op_.dw = vector(part(CUDNN_ATTR_OPERATION_NORM_BWD_DSCALE_DESC));
    op_.db = vector(part(CUDNN_ATTR_OPERATION_NORM_BWD_DBIAS_DESC));
    op_.dx = map(part(CUDNN_ATTR_OPERATION_NORM_BWD_DXDESC));
    const Node* dy = part(CUDNN_ATTR_OPERATION_NORM_BWD_DYDESC);
    if (const Node* const passes = pointwise(CUDNN_POINTWISE_CMP_GT)) {
      op_.relu = true;
      op_.y = map(passes->node(CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
      op_.zero = number(passes->node(CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
      const Node* const mask = passes->node(CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
      inside(mask, CUDNN_DATA_BOOLEAN, "a mask must stay inside");
      const Node* const product = pointwise(CUDNN_POINTWISE_MUL);
      need(product != nullptr, "a mask must be multiplied by");
      if (product == nullptr) return;
      need(product->node(CUDNN_ATTR_OPERATION_POINTWISE_BDESC) == mask &&
               product->node(CUDNN_ATTR_OPERATION_POINTWISE_YDESC) == dy,
           "operations must follow each other");
      if (view_of(dy).inside)
        inside(dy, op_.x.type, "a gradient inside must be of the map's type");
      else
        op_.dresidual = map(dy);
      dy = product->node(CUDNN_ATTR_OPERATION_POINTWISE_XDESC);
    }
    op_.dy = map(dy);
    ++at_;
  }

  const std::vector<Node*>& operations_;
  NormOperation& op_;
  size_t at_ = 0;
  std::string why_;
};

// A tensor of a call.
struct Data {
  cudnnDataType_t type;
  char* data;
  double get(int64_t at) const { return load_element(type, data, at); }
  void set(int64_t at, double value) const { store_element(type, data, at, value); }
};

}  // namespace

std::vector<const TensorView*> NormOperation::tensors() const {
  std::vector<const TensorView*> all;
  for (const TensorView* t :
       {&x, &y, &residual, &mean, &rstd, &w, &b, &eps, &zero, &dy, &dx, &dresidual, &dw, &db})
    if (t->uid != 0) all.push_back(t);
  return all;
}

bool is_norm(const std::vector<Node*>& operations) {
  for (const Node* operation : operations)
    if (operation->type == kNormForward || operation->type == kNormBackward) return true;
  return false;
}

std::string read_norm(const std::vector<Node*>& operations, NormOperation* out) {
  return Reader(operations, out).run();
}

void compute_norm(const NormOperation& op, const std::map<int64_t, char*>& pointers, float eps) {
  const auto data = [&](const TensorView& t) {
    return t.uid == 0 ? Data{t.type, nullptr} : Data{t.type, pointers.at(t.uid)};
  };
  const Data x = data(op.x), y = data(op.y), residual = data(op.residual), mean = data(op.mean),
             rstd = data(op.rstd), w = data(op.w), b = data(op.b), dy = data(op.dy),
             dx = data(op.dx), dresidual = data(op.dresidual), dw = data(op.dw), db = data(op.db);
  const int64_t channels = op.x.sizes[1];
  const int64_t rows = op.x.sizes[0] * op.x.sizes[2] * op.x.sizes[3];
  const double count = static_cast<double>(rows);
  for (int64_t c = 0; c < channels; ++c) {
    const auto at = [&](int64_t row) { return row * channels + c; };
    if (!op.backward) {
      double sum = 0, squares = 0;
      for (int64_t r = 0; r < rows; ++r) sum += x.get(at(r));
      const double m = sum / count;
      for (int64_t r = 0; r < rows; ++r) squares += (x.get(at(r)) - m) * (x.get(at(r)) - m);
      mean.set(c, m);
      rstd.set(c, 1 / std::sqrt(squares / count + static_cast<double>(eps)));
      for (int64_t r = 0; r < rows; ++r) {
        double v = (x.get(at(r)) - mean.get(c)) * rstd.get(c) * w.get(c) + b.get(c);
        if (residual.data != nullptr) v += residual.get(at(r));
        if (op.relu && v <= 0) v = 0;
        y.set(at(r), v);
      }
      continue;
    }
    const auto gradient = [&](int64_t r) {
      return op.relu && !(y.get(at(r)) > 0) ? 0 : dy.get(at(r));
    };
    const auto xhat = [&](int64_t r) { return (x.get(at(r)) - mean.get(c)) * rstd.get(c); };
    double sum = 0, sum_x = 0;
    for (int64_t r = 0; r < rows; ++r) {
      sum += gradient(r);
      sum_x += gradient(r) * xhat(r);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const double g = gradient(r);
      if (dresidual.data != nullptr) dresidual.set(at(r), g);
      dx.set(at(r), w.get(c) * rstd.get(c) * (g - sum / count - xhat(r) * sum_x / count));
    }
    dw.set(c, sum_x);
    db.set(c, sum);
  }
}

}  // namespace cairn::emulator
