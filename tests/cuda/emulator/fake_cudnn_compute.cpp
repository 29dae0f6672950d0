// Convolutions of the emulated cuDNN, by plain loops in f64.
#include <bit>

#include "cairn/tensor/dtype.h"
#include "tests/cuda/emulator/fake_cudnn_node.h"

namespace cairn::emulator {
namespace {

struct Call {
  Operation op;
  char* x;
  char* w;
  char* y;
  bool rounds;  // f32 to TF32
};

double to_tf32(double value) {
  auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  bits = (bits + 0x1000u) & 0xffffe000u;
  return std::bit_cast<float>(bits);
}
int64_t place_of(const TensorView& t, int64_t a, int64_t b, int64_t c, int64_t d) {
  return a * t.strides[0] + b * t.strides[1] + c * t.strides[2] + d * t.strides[3];
}
double load(const Call& call, const TensorView& t, const char* data, int64_t at, bool input) {
  const double value = load_element(t.type, data, at);
  return input && call.rounds && t.type == CUDNN_DATA_FLOAT ? to_tf32(value) : value;
}

// Calls body(x, w, y offsets) for all that meet.
template <class Body>
void for_each_product(const Operation& op, Body&& body) {
  const auto& ys = op.y.sizes;
  const auto& ws = op.w.sizes;
  const int64_t groups = op.x.sizes[1] / ws[1], width = ys[1] / groups;
  for (int64_t n = 0; n < ys[0]; ++n)
    for (int64_t o = 0; o < ys[1]; ++o)
      for (int64_t oy = 0; oy < ys[2]; ++oy)
        for (int64_t ox = 0; ox < ys[3]; ++ox)
          for (int64_t c = 0; c < ws[1]; ++c)
            for (int64_t ty = 0; ty < ws[2]; ++ty)
              for (int64_t tx = 0; tx < ws[3]; ++tx) {
                const int64_t iy = oy * op.stride[0] - op.pad[0] + ty * op.dilation[0];
                const int64_t ix = ox * op.stride[1] - op.pad[1] + tx * op.dilation[1];
                if (iy < 0 || ix < 0 || iy >= op.x.sizes[2] || ix >= op.x.sizes[3]) continue;
                body(place_of(op.x, n, o / width * ws[1] + c, iy, ix), place_of(op.w, o, c, ty, tx),
                     place_of(op.y, n, o, oy, ox));
              }
}

}  // namespace

double load_element(cudnnDataType_t type, const char* data, int64_t at) {
  if (type == CUDNN_DATA_BFLOAT16)
    return static_cast<float>(reinterpret_cast<const bfloat16*>(data)[at]);
  if (type == CUDNN_DATA_HALF)
    return static_cast<float>(reinterpret_cast<const float16*>(data)[at]);
  return reinterpret_cast<const float*>(data)[at];
}
void store_element(cudnnDataType_t type, char* data, int64_t at, double value) {
  if (type == CUDNN_DATA_BFLOAT16)
    reinterpret_cast<bfloat16*>(data)[at] = bfloat16(static_cast<float>(value));
  else if (type == CUDNN_DATA_HALF)
    reinterpret_cast<float16*>(data)[at] = float16(static_cast<float>(value));
  else
    reinterpret_cast<float*>(data)[at] = static_cast<float>(value);
}

void compute_convolution(const Operation& op, char* x, char* w, char* y, bool rounds) {
  const Call call{op, x, w, y, rounds};
  const TensorView& out = op.type == kForward ? op.y : op.type == kData ? op.x : op.w;
  char* const result = op.type == kForward ? call.y : op.type == kData ? call.x : call.w;
  std::vector<double> sums(
      static_cast<size_t>(out.sizes[0] * out.sizes[1] * out.sizes[2] * out.sizes[3]));
  const auto in = [&](const TensorView& t, const char* data, int64_t at) {
    return load(call, t, data, at, true);
  };
  for_each_product(op, [&](int64_t at_x, int64_t at_w, int64_t at_y) {
    if (op.type == kForward)
      sums[static_cast<size_t>(at_y)] += in(op.x, call.x, at_x) * in(op.w, call.w, at_w);
    else if (op.type == kData)
      sums[static_cast<size_t>(at_x)] += in(op.y, call.y, at_y) * in(op.w, call.w, at_w);
    else
      sums[static_cast<size_t>(at_w)] += in(op.x, call.x, at_x) * in(op.y, call.y, at_y);
  });
  for (size_t i = 0; i < sums.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    double value = op.alpha * sums[i];
    if (op.beta != 0) value += op.beta * load(call, out, result, at, false);
    store_element(out.type, result, at, value);
  }
}

}  // namespace cairn::emulator
