// Optimizers, clipping and schedules against PyTorch: tests/parity/optim.json.
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "cairn/optim/adam.h"
#include "cairn/optim/clip.h"
#include "cairn/optim/schedule.h"
#include "cairn/optim/sgd.h"
#include "cairn/tensor/safetensors.h"
#include "tests/catch.h"
#include "tests/optim/helpers.h"

using namespace cairn;
using cairn::test::values_of;
using nlohmann::json;

namespace {

// Equal but for the order of a handful of roundings per step.
constexpr double kRelative = 1e-12;

const std::string kFolder = std::string(CAIRN_SOURCE_DIR) + "/tests/parity/";

const json& cases() {
  static const json all = json::parse(std::ifstream(kFolder + "optim.json"));
  return all;
}
const std::map<std::string, Tensor>& tensors() {
  static const auto all = load_safetensors(kFolder + "optim.safetensors");
  return all;
}

void check_values(const std::vector<double>& got, const std::vector<double>& wanted) {
  REQUIRE(got.size() == wanted.size());
  double scale = 0, worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    scale = std::max(scale, std::abs(wanted[i]));
    worst = std::max(worst, std::abs(got[i] - wanted[i]));
  }
  CHECK(worst <= kRelative * scale);
}

template <class T>
void read(const json& options, const char* key, T& field) {
  if (options.contains(key)) field = options[key].get<T>();
}

optim::SgdOptions sgd_options(optim::SgdOptions o, const json& j) {
  read(j, "lr", o.lr);
  read(j, "momentum", o.momentum);
  read(j, "dampening", o.dampening);
  read(j, "weight_decay", o.weight_decay);
  read(j, "nesterov", o.nesterov);
  read(j, "maximize", o.maximize);
  return o;
}

template <class Options>
Options adam_options(Options o, const json& j) {
  read(j, "lr", o.lr);
  read(j, "betas", o.betas);
  read(j, "eps", o.eps);
  read(j, "weight_decay", o.weight_decay);
  read(j, "amsgrad", o.amsgrad);
  read(j, "maximize", o.maximize);
  return o;
}

std::unique_ptr<optim::Optimizer> make_optimizer(const json& c, const Tensor& a, const Tensor& b) {
  const bool groups = c.contains("second_group");
  const json second = groups ? c["second_group"] : json::object();
  const std::string kind = c["optimizer"];
  if (kind == "SGD") {
    const auto o = sgd_options({}, c["options"]);
    if (groups) return optim::sgd({{{a}, o}, {{b}, sgd_options(o, second)}});
    return optim::sgd({a, b}, o);
  }
  if (kind == "Adam") {
    const auto o = adam_options(optim::AdamOptions{}, c["options"]);
    if (groups) return optim::adam({{{a}, o}, {{b}, adam_options(o, second)}});
    return optim::adam({a, b}, o);
  }
  REQUIRE(kind == "AdamW");
  const auto o = adam_options(optim::AdamWOptions{}, c["options"]);
  if (groups) return optim::adamw({{{a}, o}, {{b}, adam_options(o, second)}});
  return optim::adamw({a, b}, o);
}

std::unique_ptr<optim::Schedule> make_schedule(const json& c, optim::Optimizer& optimizer) {
  const json& j = c["options"];
  const std::string kind = c["scheduler"];
  if (kind == "StepLR") {
    optim::StepLROptions o;
    read(j, "step_size", o.step_size);
    read(j, "gamma", o.gamma);
    return optim::step_lr(optimizer, o);
  }
  if (kind == "MultiStepLR") {
    optim::MultiStepLROptions o;
    read(j, "milestones", o.milestones);
    read(j, "gamma", o.gamma);
    return optim::multi_step_lr(optimizer, o);
  }
  if (kind == "ExponentialLR") return optim::exponential_lr(optimizer, {.gamma = j["gamma"]});
  if (kind == "CosineAnnealingLR")
    return optim::cosine_annealing_lr(optimizer, {.t_max = j["T_max"], .eta_min = j["eta_min"]});
  if (kind == "LinearLR") {
    optim::LinearLROptions o;
    read(j, "start_factor", o.start_factor);
    read(j, "end_factor", o.end_factor);
    read(j, "total_iters", o.total_iters);
    return optim::linear_lr(optimizer, o);
  }
  if (kind == "OneCycleLR") {
    optim::OneCycleLROptions o;
    read(j, "max_lr", o.max_lr);
    read(j, "total_steps", o.total_steps);
    read(j, "pct_start", o.pct_start);
    if (j.value("anneal_strategy", "cos") == "linear") o.anneal_strategy = optim::Anneal::linear;
    read(j, "cycle_momentum", o.cycle_momentum);
    read(j, "base_momentum", o.base_momentum);
    read(j, "max_momentum", o.max_momentum);
    read(j, "div_factor", o.div_factor);
    read(j, "final_div_factor", o.final_div_factor);
    read(j, "three_phase", o.three_phase);
    return optim::one_cycle_lr(optimizer, o);
  }
  REQUIRE(kind == "ReduceLROnPlateau");
  optim::ReduceLROnPlateauOptions o;
  if (j.value("mode", "min") == "max") o.mode = optim::PlateauMode::max;
  read(j, "factor", o.factor);
  read(j, "patience", o.patience);
  read(j, "threshold", o.threshold);
  if (j.value("threshold_mode", "rel") == "abs") o.threshold_mode = optim::ThresholdMode::abs;
  read(j, "cooldown", o.cooldown);
  read(j, "min_lr", o.min_lr);
  read(j, "eps", o.eps);
  return optim::reduce_lr_on_plateau(optimizer, o);
}

}  // namespace

TEST_CASE("optim: optimizers step as PyTorch's") {
  REQUIRE(cases()["optimizers"].size() >= 19);
  for (const json& c : cases()["optimizers"]) {
    const std::string name = c["name"];
    INFO(name);
    const Tensor a = set_requires_grad(raw::clone(tensors().at("start.a")));
    const Tensor b = set_requires_grad(raw::clone(tensors().at("start.b")));
    const auto optimizer = make_optimizer(c, a, b);
    const Tensor& rows_a = tensors().at(name + ".a");
    const Tensor& rows_b = tensors().at(name + ".b");
    for (int64_t step = 0; step < rows_a.size(0); ++step) {
      INFO("step " << step);
      set_grad(a, tensors().at(cat("grad.", step, ".a")));
      set_grad(b, tensors().at(cat("grad.", step, ".b")));
      optimizer->step();
      check_values(values_of(a), values_of(raw::select(rows_a, 0, step)));
      check_values(values_of(b), values_of(raw::select(rows_b, 0, step)));
    }
  }
}

TEST_CASE("optim: clipping as PyTorch's") {
  REQUIRE(cases()["clipping"].size() >= 6);
  for (const json& c : cases()["clipping"]) {
    const std::string name = c["name"];
    INFO(name);
    std::vector<Tensor> params;
    for (const char* p : {"a", "b"}) {
      const Tensor& before = tensors().at(cat("clip.", name, ".before.", p));
      params.push_back(set_requires_grad(zeros(before.shape(), {DType::f64})));
      set_grad(params.back(), before);
    }
    if (c["function"] == "clip_grad_value_") {
      optim::clip_grad_value_(params, c["clip_value"]);
    } else {
      const double p = c["norm_type"].is_string() ? std::numeric_limits<double>::infinity()
                                                  : c["norm_type"].get<double>();
      const double total = optim::clip_grad_norm_(params, c["max_norm"], p).item();
      CHECK(total == Approx(c["total_norm"].get<double>()).epsilon(kRelative));
    }
    check_values(values_of(grad(params[0])),
                 values_of(tensors().at(cat("clip.", name, ".after.a"))));
    check_values(values_of(grad(params[1])),
                 values_of(tensors().at(cat("clip.", name, ".after.b"))));
  }
}

TEST_CASE("optim: schedules as PyTorch's") {
  REQUIRE(cases()["schedules"].size() >= 19);
  for (const json& c : cases()["schedules"]) {
    INFO(c["name"].get<std::string>());
    const auto optimizer =
        optim::sgd({set_requires_grad(zeros({1}))}, {.lr = c["base_lr"], .momentum = 0.9});
    const auto schedule = make_schedule(c, *optimizer);
    const json& lrs = c["lrs"];
    for (size_t k = 0; k < lrs.size(); ++k) {
      INFO("step " << k);
      // Absolute where the rate passes 0: roundings of the base rate remain there.
      CHECK(std::abs(optimizer->lr() - lrs[k].get<double>()) <=
            1e-13 * std::max(lrs[k].get<double>(), 1e-3));
      if (c.contains("momenta"))
        CHECK(optimizer->momentum() == Approx(c["momenta"][k].get<double>()).epsilon(1e-14));
      if (k + 1 == lrs.size()) break;
      if (c.contains("metrics"))
        schedule->step(c["metrics"][k].get<double>());
      else
        schedule->step();
    }
  }
}
