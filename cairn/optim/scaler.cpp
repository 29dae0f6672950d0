// GradScaler on the slots of kernels/optim.h.
#include "cairn/optim/scaler.h"

#include <algorithm>
#include <cmath>

#include "cairn/autograd/ops/elementwise.h"
#include "cairn/optim/clip.h"
#include "cairn/tensor/raw.h"

namespace cairn::optim {
namespace {

const char* const kName = "GradScaler";

void check_options(const GradScalerOptions& o) {
  check(o.init_scale > 0 && std::isfinite(static_cast<float>(o.init_scale)), kName,
        ": init_scale must be positive and finite in f32, got ", o.init_scale);
  check(o.growth_factor > 1 && std::isfinite(o.growth_factor), kName,
        ": growth_factor must be finite and above 1, got ", o.growth_factor);
  check(o.backoff_factor > 0 && o.backoff_factor < 1, kName,
        ": backoff_factor must be between 0 and 1, got ", o.backoff_factor);
  check(o.growth_interval >= 1, kName, ": growth_interval must be at least 1, got ",
        o.growth_interval);
}

}  // namespace

GradScaler::GradScaler(const GradScalerOptions& options, Device device) : options_(options) {
  check_options(options);
  scale_ = full({}, options.init_scale, {DType::f32, device});
  found_inf_ = zeros({}, {DType::f32, device});
  tracker_ = zeros({}, {DType::i64, device});
  skipped_ = zeros({}, {DType::i64, device});
}

Tensor GradScaler::scale(const Tensor& loss) const {
  check(loss.defined() && is_floating(loss.dtype()), kName, ": loss must be floating, got ",
        loss.defined() ? name_of(loss.dtype()) : std::string_view("an undefined tensor"));
  return mul(loss, scale_);
}

void GradScaler::unscale_(Optimizer& optimizer) {
  check(std::find(unscaled_.begin(), unscaled_.end(), &optimizer) == unscaled_.end(), kName,
        ": unscale_ must be called once between updates, got a second call");
  unscale_grad_(optimizer.parameters(), scale_, found_inf_);
  unscaled_.push_back(&optimizer);
}

void GradScaler::connect(Optimizer& optimizer) const {
  optimizer.set_capturable(true);
  optimizer.set_skip(found_inf_);
}

void GradScaler::step(Optimizer& optimizer) {
  if (std::find(unscaled_.begin(), unscaled_.end(), &optimizer) == unscaled_.end())
    unscale_(optimizer);
  connect(optimizer);
  optimizer.step();
}

void GradScaler::update() {
  kernels::update_scale(scale_.device(), scale_, tracker_, skipped_, found_inf_,
                        kernels::ScaleUpdate{options_.growth_factor, options_.backoff_factor,
                                             options_.growth_interval});
  unscaled_.clear();
}

double GradScaler::scale_value() const { return scale_.item(); }
int64_t GradScaler::skipped_steps() const { return skipped_.item<int64_t>(); }

State GradScaler::state_dict() const {
  State out;
  out.numbers = {{"scale", scale_value()},
                 {"growth_factor", options_.growth_factor},
                 {"backoff_factor", options_.backoff_factor},
                 {"growth_interval", static_cast<double>(options_.growth_interval)},
                 {"growth_tracker", tracker_.item()},
                 {"skipped_steps", skipped_.item()}};
  return out;
}

void GradScaler::load_state_dict(const State& state) {
  const auto whole = [&](const char* name) {
    const double value = state.number(kName, name);
    check(value >= 0 && value == std::floor(value) && value < 0x1p53, kName, ": ", name,
          " must be a whole number that is not negative, got ", value);
    return static_cast<int64_t>(value);
  };
  GradScalerOptions options;
  options.init_scale = state.number(kName, "scale");
  options.growth_factor = state.number(kName, "growth_factor");
  options.backoff_factor = state.number(kName, "backoff_factor");
  options.growth_interval = whole("growth_interval");
  check_options(options);
  const auto tracker = static_cast<double>(whole("growth_tracker"));
  const auto skipped = static_cast<double>(whole("skipped_steps"));
  options_ = options;
  raw::fill_(scale_, options.init_scale);
  raw::fill_(tracker_, tracker);
  raw::fill_(skipped_, skipped);
  raw::fill_(found_inf_, 0);
  unscaled_.clear();
}

}  // namespace cairn::optim
