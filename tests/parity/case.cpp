// Reading of the parity cases and comparing with them.
#include "tests/parity/case.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/raw.h"
#include "cairn/tensor/safetensors.h"

namespace cairn::parity {
namespace {

// An expectation that is zero everywhere would ask for exact zeros; gradients that cancel may leave
// a few roundings of the inputs, which are of size 1 to 1000 (README.md).
constexpr double kFloor = 1e-3;

// The variable is for a program that runs on another machine than it was built on.
const std::string kFolder = [] {
  const char* elsewhere = std::getenv("CAIRN_SOURCE_DIR");
  return std::string(elsewhere != nullptr ? elsewhere : CAIRN_SOURCE_DIR) + "/tests/parity/";
}();

template <class T>
bool same(T got, T wanted, double allowed) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(wanted)) return std::isnan(got);
    if (std::isinf(wanted)) return got == wanted;
    return std::abs(static_cast<double>(got) - static_cast<double>(wanted)) <= allowed;
  } else {
    return got == wanted;
  }
}

// The largest finite magnitude.
template <class T>
double largest_of(const T* values, int64_t count) {
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double v = std::abs(static_cast<double>(values[i]));
    if (std::isfinite(v)) largest = std::max(largest, v);
  }
  return largest;
}

template <class T>
std::string value_difference(const Tensor& got, const Tensor& wanted, double relative) {
  const T* g = got.data<T>();
  const T* w = wanted.data<T>();
  const double common = std::max(std::min(1.0, largest_of(w, wanted.numel())), kFloor);
  std::string text;
  int64_t wrong = 0;
  for (int64_t i = 0; i < wanted.numel(); ++i) {
    const double own = std::abs(static_cast<double>(w[i]));
    const double allowed = relative * (std::isfinite(own) ? std::max(own, common) : common);
    if (same(g[i], w[i], allowed)) continue;
    if (wrong++ == 0)
      text = cat("[", i, "] is ", static_cast<double>(g[i]), ", should be ",
                 static_cast<double>(w[i]), " within ", allowed);
  }
  return wrong > 1 ? cat(text, " (and ", wrong - 1, " more)") : text;
}

// A copy whose dimensions lie in memory in reversed order.
Tensor reversed_copy(const Tensor& t) {
  Shape back;
  for (int64_t d = t.dim(); d-- > 0;) back.push_back(d);
  return raw::permute(raw::clone(raw::contiguous(raw::permute(t, back))), back);
}

std::vector<std::string> names(const nlohmann::json& list) {
  return list.get<std::vector<std::string>>();
}

}  // namespace

nlohmann::json load_json(const std::string& name) {
  std::ifstream in(kFolder + name);
  return nlohmann::json::parse(in);
}

Tensors load_tensors(const std::string& name) { return load_safetensors(kFolder + name); }

std::string difference(const Tensor& got, const Tensor& wanted, double relative) {
  if (!got.defined()) return "is undefined";
  if (got.shape() != wanted.shape())
    return cat("has shape ", got.shape(), ", should have ", wanted.shape());
  const Tensor g = raw::contiguous(got);
  const Tensor w = raw::contiguous(raw::to(wanted, got.dtype()));
  return dispatch(g.dtype(), [&]<class T>() -> std::string {
    if constexpr (std::is_same_v<T, bfloat16>)
      return "is bf16, which no case has";
    else
      return value_difference<T>(g, w, relative);
  });
}

Case::Case(const nlohmann::json& info, const Tensors& tensors, Mode mode)
    : name_(info.at("name")),
      op_(info.at("op")),
      options_(info.at("attrs")),
      inputs_(names(info.at("inputs"))),
      outputs_(names(info.at("outputs"))),
      upstream_(names(info.at("upstream"))),
      grads_(names(info.at("grads"))),
      tensors_(tensors),
      mode_(mode) {
  for (const std::string& key : inputs_) unread_.insert("input " + key);
  for (const auto& option : options_.items()) unread_.insert("option " + option.key());
}

Tensor Case::prepare(const std::string& tensor_name) const {
  const Tensor& stored = tensors_.at(tensor_name);
  const Tensor t = raw::clone(is_floating(stored.dtype()) ? raw::to(stored, mode_.dtype) : stored);
  return mode_.reversed ? reversed_copy(t) : t;
}

Tensor Case::in_or_none(const std::string& key) {
  if (std::find(inputs_.begin(), inputs_.end(), key) == inputs_.end()) return {};
  unread_.erase("input " + key);
  const Tensor t = prepare(name_ + ".in." + key);
  if (std::find(grads_.begin(), grads_.end(), key) != grads_.end())
    leaves_[key] = set_requires_grad(t);
  return t;
}

Tensor Case::in(const std::string& key) {
  const Tensor t = in_or_none(key);
  check(t.defined(), name_, ": case must have an input ", key, ", got none");
  return t;
}

void Case::set_leaf(const std::string& key, const Tensor& tensor) { leaves_[key] = tensor; }

const nlohmann::json& Case::option(const std::string& key) {
  unread_.erase("option " + key);
  return options_.at(key);
}

Pair Case::pair(const std::string& key) {
  const auto both = get<std::vector<int64_t>>(key);
  check(both.size() == 2, name_, ": ", key, " must have two numbers, got ", both.size());
  return {both[0], both[1]};
}

Shape Case::shape(const std::string& key) {
  const auto list = get_or_none<std::vector<int64_t>>(key);
  return list ? Shape(std::span<const int64_t>(*list)) : Shape{};
}

Reduction Case::reduction() {
  const auto text = get<std::string>("reduction");
  if (text == "none") return Reduction::none;
  if (text == "sum") return Reduction::sum;
  check(text == "mean", name_, ": reduction must be none, mean or sum, got ", text);
  return Reduction::mean;
}

std::vector<std::string> Case::problems(const std::vector<Tensor>& outputs) {
  std::vector<std::string> found;
  const auto add = [&](const std::string& what, const std::string& text) {
    if (!text.empty()) found.push_back(what + " " + text);
  };
  for (const std::string& what : unread_) add(what, "was not read");
  if (outputs.size() != outputs_.size())
    return {cat("has ", outputs.size(), " outputs, should have ", outputs_.size())};
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Tensor& wanted = tensors_.at(name_ + ".out." + outputs_[i]);
    const DType dtype = wanted.dtype() == DType::f64 ? mode_.dtype : wanted.dtype();
    if (outputs[i].dtype() != dtype)
      add(outputs_[i], cat("is ", outputs[i].dtype(), ", should be ", dtype));
    else
      // True division of integers is f32 whatever the run's dtype.
      add(outputs_[i],
          difference(outputs[i], wanted, dtype == DType::f32 ? 1e-5 : output_tolerance()));
  }
  if (grads_.empty()) return found;
  if (upstream_.size() != 1) return {"must have one output with a gradient"};
  for (size_t i = 0; i < outputs.size(); ++i)
    if (outputs_[i] == upstream_[0]) backward(outputs[i], prepare(name_ + ".up." + upstream_[0]));
  for (const std::string& key : grads_) {
    const auto leaf = leaves_.find(key);
    if (leaf == leaves_.end())
      add("gradient of " + key, "was not asked for");
    else
      add("gradient of " + key, difference(grad(leaf->second), tensors_.at(name_ + ".grad." + key),
                                           gradient_tolerance()));
  }
  return found;
}

std::vector<std::string> Case::tensor_names() const {
  std::vector<std::string> all;
  const auto add = [&](const char* kind, const std::vector<std::string>& keys) {
    for (const std::string& key : keys) all.push_back(cat(name_, ".", kind, ".", key));
  };
  add("in", inputs_);
  add("out", outputs_);
  add("up", upstream_);
  add("grad", grads_);
  return all;
}

}  // namespace cairn::parity
