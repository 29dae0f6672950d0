// A small network under autocast against PyTorch's: dtypes, outputs and gradients.
#include "cairn/autograd/autocast.h"

#include <cmath>
#include <map>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/conv.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/matmul.h"
#include "cairn/autograd/ops/norm.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/parity/case.h"
#include "tests/parity/formula.h"

using namespace cairn;
using nlohmann::json;

namespace {

Tensor leaf_of(int64_t place, const Shape& shape, double shift) {
  const Tensor t = empty(shape);
  for (int64_t e = 0; e < t.numel(); ++e)
    t.data<float>()[e] = static_cast<float>(parity::value(place, e, 0.25, shift));
  return set_requires_grad(t);
}

// Largest difference from the start of `got`, over the largest value of `wanted`.
double distance(const Tensor& got, const json& wanted) {
  const Tensor flat = raw::contiguous(raw::to(got, DType::f64));
  double worst = 0, scale = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto w = wanted[i].get<double>();
    worst = std::max(worst, std::abs(flat.data<double>()[i] - w));
    scale = std::max(scale, std::abs(w));
  }
  return worst / scale;
}

}  // namespace

// Both sides round every activation and gradient to the half type at the same places, from f32 sums
// in another order, so that a value may fall on the other side of a tie: one unit of the last place
// each, which a layer's sum carries on. Gradients pass five such places.
TEST_CASE("parity: autocast") {
  for (const json& c : parity::load_json("autocast.json").at("cases")) {
    const DType dtype = parse_dtype(c.at("dtype").get<std::string>());
    INFO(name_of(dtype));
    const double unit = dtype == DType::f32 ? 0x1p-20 : dtype == DType::f16 ? 0x1p-10 : 0x1p-7;
    std::map<std::string, Tensor> t = {
        {"x", leaf_of(0, {3, 2, 6, 6}, 0)}, {"conv.weight", leaf_of(1, {4, 2, 3, 3}, 0)},
        {"conv.bias", leaf_of(2, {4}, 0)},  {"bn.weight", leaf_of(3, {4}, 1)},
        {"bn.bias", leaf_of(4, {4}, 0)},    {"fc.weight", leaf_of(5, {5, 144}, 0)},
        {"fc.bias", leaf_of(6, {5}, 0)}};
    const auto has_dtype = [&](const char* op, const Tensor& y) {
      INFO(op);
      CHECK(name_of(y.dtype()) == c.at("dtypes").at(op).get<std::string>());
    };
    Tensor y;
    {
      const Autocast scope(is_half(dtype) ? dtype : DType::bf16, is_half(dtype));
      y = conv2d(t["x"], t["conv.weight"], t["conv.bias"], {.padding = {1, 1}});
      has_dtype("conv2d", y);
      y = batch_norm(y, {}, {}, t["bn.weight"], t["bn.bias"], {.training = true});
      has_dtype("batch_norm", y);
      y = linear(flatten(relu(y), 1), t["fc.weight"], t["fc.bias"]);
      has_dtype("linear", y);
    }
    CHECK(distance(y, c.at("output")) <= 2 * unit);
    backward(mean(square(to(y, DType::f32))));
    CHECK(c.at("gradient_dtypes") == json({"f32"}));
    for (const auto& [name, gradient] : c.at("gradients").items()) {
      INFO(name);
      const Tensor g = grad(t.at(name));
      CHECK(g.dtype() == DType::f32);
      // The bias in front of a batch norm has no gradient but what rounding leaves.
      if (name != "conv.bias") CHECK(distance(g, gradient) <= 5 * unit);
    }
  }
}
