// Cairn's public ops against PyTorch's answers: every case of ops.json (outputs and gradients) and
// promotion.json.
// Invariant: every case of the file runs in every mode; an op name the tests do not know is a
// failure, and so is one they know that the file has no longer.
#include <cmath>
#include <optional>
#include <set>
#include <string>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/tensor/factory.h"
#include "tests/catch.h"
#include "tests/parity/case.h"

using namespace cairn;
using nlohmann::json;
using parity::Case;
using parity::Mode;

namespace {

// Cases in the committed file: a file that lost some must not pass unseen.
constexpr size_t kCases = 424;

const json& cases() {
  static const json all = parity::load_json("ops.json").at("cases");
  return all;
}
const parity::Tensors& tensors() {
  static const parity::Tensors all = parity::load_tensors("ops.safetensors");
  return all;
}
const parity::Runs& runs() {
  static const parity::Runs all = [] {
    parity::Runs both = parity::maths_runs();
    both.merge(parity::layer_runs());
    return both;
  }();
  return all;
}

// "" when the case gives what PyTorch gives.
std::string verdict(const json& info, Mode mode) {
  try {
    Case c(info, tensors(), mode);
    const auto run = runs().find(c.op());
    if (run == runs().end()) return "no way to run an op " + c.op();
    std::string text;
    for (const std::string& problem : c.problems(run->second(c))) text += problem + "; ";
    return text;
  } catch (const std::exception& error) {
    return std::string("threw: ") + error.what();
  }
}

void check_all(Mode mode) {
  REQUIRE(cases().size() == kCases);
  size_t run = 0;
  for (const json& info : cases()) {
    INFO(info.at("name").get<std::string>());
    CHECK(verdict(info, mode) == "");
    ++run;
  }
  CHECK(run == kCases);
}

Tensor ones_of(const json& dtype, const Shape& shape) {
  return ones(shape, {.dtype = parse_dtype(dtype.get<std::string>())});
}

// What a plain number of Python is to promotion.
Scalar scalar_of(const std::string& kind) {
  if (kind == "int") return 2;
  if (kind == "float") return 2.5;
  check(kind == "bool", "parity: scalar must be int, float or bool, got ", kind);
  return true;
}

// result_type of a row of promotion.json's list `name`, checked against what add really returns.
DType promoted(const std::string& name, const json& row) {
  const bool left_0d = name.starts_with("0d_");
  const Tensor left = ones_of(row[0], left_0d ? Shape{} : Shape{2});
  if (name.ends_with("_scalar")) {
    const Scalar right = scalar_of(row[1].get<std::string>());
    CHECK((left + right).dtype() == result_type(left, right));
    return result_type(left, right);
  }
  const Tensor right = ones_of(row[1], name.ends_with("_0d") ? Shape{} : Shape{2});
  CHECK((left + right).dtype() == result_type(left, right));
  return result_type(left, right);
}

}  // namespace

TEST_CASE("parity: ops in f64") { check_all({.dtype = DType::f64}); }
TEST_CASE("parity: ops in f32") { check_all({.dtype = DType::f32}); }
TEST_CASE("parity: ops in f64, operands laid out in reversed order") {
  check_all({.dtype = DType::f64, .reversed = true});
}
TEST_CASE("parity: ops in f32, operands laid out in reversed order") {
  check_all({.dtype = DType::f32, .reversed = true});
}

TEST_CASE("parity: cases, tensors and ways to run them belong together") {
  std::set<std::string> ops, names;
  for (const json& info : cases()) {
    ops.insert(info.at("op").get<std::string>());
    for (const std::string& name : Case(info, tensors(), {}).tensor_names())
      CHECK(names.insert(name).second);
  }
  for (const auto& [op, run] : runs()) {
    INFO(op);
    CHECK(ops.count(op) == 1);
  }
  for (const std::string& name : names) {
    INFO(name);
    CHECK(tensors().count(name) == 1);
  }
  CHECK(names.size() == tensors().size());
}

TEST_CASE("parity: comparing tells what differs") {
  using parity::difference;
  const Tensor wanted = tensor<double>({1, -2, NAN, INFINITY});
  CHECK(difference(wanted, wanted, 1e-10) == "");
  CHECK(difference(tensor<double>({1, -2 - 1e-10, NAN, INFINITY}), wanted, 1e-10) == "");
  CHECK(difference(tensor<double>({1, -2 - 3e-10, NAN, INFINITY}), wanted, 1e-10) != "");
  CHECK(difference(tensor<double>({1, -2, 0, INFINITY}), wanted, 1e-10) != "");
  CHECK(difference(tensor<double>({1, NAN, NAN, INFINITY}), wanted, 1e-10) != "");
  CHECK(difference(tensor<double>({1, -2, NAN, -INFINITY}), wanted, 1e-10) != "");
  CHECK(difference(zeros({4, 1}, {.dtype = DType::f64}), wanted, 1e-10) != "");
  CHECK(difference(tensor<int64_t>({1, 2}), tensor<int64_t>({1, 3}), 1) != "");
  CHECK(difference({}, wanted, 1e-10) != "");
}

TEST_CASE("parity: clamp has no slope on a bound, and one beyond an open end") {
  const auto slope = [](std::optional<double> min, std::optional<double> max) {
    const Tensor x = set_requires_grad(tensor<float>({-INFINITY, -1, 0, 1, INFINITY, NAN}));
    backward(clamp(x, min, max), ones({6}));
    return grad(x);
  };
  // As PyTorch 2.15.
  CHECK(parity::difference(slope(-1, 1), tensor<float>({0, 0, 1, 0, 0, 0}), 0) == "");
  CHECK(parity::difference(slope(-1, {}), tensor<float>({0, 0, 1, 1, 1, 0}), 0) == "");
  CHECK(parity::difference(slope({}, 1), tensor<float>({1, 1, 1, 0, 0, 0}), 0) == "");
}

TEST_CASE("parity: promotion") {
  const json tables = parity::load_json("promotion.json");
  size_t rows = 0;
  for (const auto& [name, table] : tables.items()) {
    if (name == "dtypes") continue;
    for (const json& row : table) {
      INFO(name << " " << row.dump());
      ++rows;
      const DType wanted = parse_dtype(row.back().get<std::string>());
      if (name == "sum") {
        CHECK(sum(ones_of(row[0], {2})).dtype() == wanted);
      } else if (name == "exp") {
        CHECK(cairn::exp(ones_of(row[0], {2})).dtype() == wanted);
      } else if (name == "div") {
        CHECK(div(ones_of(row[0], {2}), ones_of(row[1], {2})).dtype() == wanted);
      } else {
        CHECK(promoted(name, row) == wanted);
      }
    }
  }
  // 8 dtypes: four lists of pairs, two of a dtype beside three kinds of number, two of one dtype.
  CHECK(rows == 4 * 8 * 8 + 2 * 8 * 3 + 2 * 8);
}
