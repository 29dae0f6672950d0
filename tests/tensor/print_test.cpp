// Printing against what PyTorch printed (tests/parity/printing.json).
#include "cairn/tensor/print.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;
using nlohmann::json;

namespace {

double number_of(const json& value) {
  if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
  if (!value.is_string()) return value.get<double>();
  const auto text = value.get<std::string>();
  return text == "nan" ? NAN : text == "inf" ? INFINITY : -INFINITY;
}

Tensor tensor_of(const json& c) {
  Shape shape;
  for (const auto& size : c["shape"]) shape.push_back(size.get<int64_t>());
  const json& given = c["values"];
  const std::string rule = c.value("rule", "");
  Tensor t = empty(shape, {.dtype = DType::f64});
  for (int64_t i = 0; i < t.numel(); ++i) {
    const auto k = static_cast<size_t>(i);
    double value = 0;
    if (rule == "arange")
      value = number_of(given[0]) +
              static_cast<double>(i) * (number_of(given[1]) - number_of(given[0]));
    else
      value = number_of(given[rule == "repeat10" ? k % 10 : k]);
    t.data<double>()[i] = value;
  }
  return raw::to(t, parse_dtype(c["dtype"].get<std::string>()));
}

// PyTorch's text with Cairn's dtype names.
std::string with_our_names(std::string text) {
  const std::pair<const char*, const char*> names[] = {
      {"torch.float64", "f64"}, {"torch.bfloat16", "bf16"}, {"torch.float16", "f16"},
      {"torch.int32", "i32"},   {"torch.uint8", "u8"},      {"torch.int64", "i64"},
      {"torch.bool", "bool"}};
  for (const auto& [theirs, ours] : names) {
    const size_t at = text.find(theirs);
    if (at != std::string::npos) text.replace(at, std::string(theirs).size(), ours);
  }
  return text;
}

}  // namespace

TEST_CASE("tensor: printing equals PyTorch's") {
  std::ifstream in(std::string(CAIRN_SOURCE_DIR) + "/tests/parity/printing.json");
  const json cases = json::parse(in)["cases"];
  REQUIRE(cases.size() >= 30);
  for (const auto& c : cases) {
    INFO(c["name"].get<std::string>());
    CHECK(to_string(tensor_of(c)) == with_our_names(c["text"].get<std::string>()));
  }
}

TEST_CASE("tensor: printing follows strides and streams") {
  const Tensor t = raw::transpose(raw::view(arange(0, 6), {2, 3}), 0, 1);
  CHECK(to_string(t) == "tensor([[0, 3],\n        [1, 4],\n        [2, 5]])");
  std::ostringstream out;
  out << zeros({2}, {.dtype = DType::f64});
  CHECK(out.str() == "tensor([0., 0.], dtype=f64)");
  CHECK(to_string(Tensor()) == "tensor(undefined)");
  CHECK(to_string(full({2}, -0.0)) == "tensor([-0., -0.])");
}
