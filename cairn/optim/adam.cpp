// Adam and AdamW.
#include "cairn/optim/adam.h"

namespace cairn::optim {

template <bool kDecoupled>
void AdamOptionsOf<kDecoupled>::check(const char* op) const {
  detail::check_not_negative(op, "lr", lr);
  detail::check_fraction(op, "beta1", betas[0]);
  detail::check_fraction(op, "beta2", betas[1]);
  detail::check_not_negative(op, "eps", eps);
  detail::check_not_negative(op, "weight_decay", weight_decay);
}

template <bool kDecoupled>
AdamOf<kDecoupled>::AdamOf(std::vector<Tensor> params, const Options& options)
    : AdamOf(std::vector<ParamGroup<Options>>{{std::move(params), options}}) {}

template <bool kDecoupled>
AdamOf<kDecoupled>::AdamOf(std::vector<ParamGroup<Options>> groups)
    : OptimizerWith<Options>(kDecoupled ? "adamw" : "adam", std::move(groups)) {}

template <bool kDecoupled>
std::span<const char* const> AdamOf<kDecoupled>::state_names(
    size_t, const std::map<std::string, double>& options) {
  static constexpr const char* kNames[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  return std::span(kNames).first(options.at("amsgrad") != 0 ? 3 : 2);
}

template <bool kDecoupled>
void AdamOf<kDecoupled>::launch(size_t group, Device device, DType dtype, kernels::OptimRuns runs,
                                int64_t t, const kernels::StepNumbers& from) {
  const Options& o = this->options_[group];
  const kernels::AdamStep step{.lr = o.lr,
                               .beta1 = o.betas[0],
                               .beta2 = o.betas[1],
                               .eps = o.eps,
                               .weight_decay = o.weight_decay,
                               .decoupled = kDecoupled,
                               .amsgrad = o.amsgrad,
                               .maximize = o.maximize,
                               .t = t,
                               .from = from};
  kernels::adam_step(device, dtype, runs, step);
}

template struct AdamOptionsOf<false>;
template struct AdamOptionsOf<true>;
template class AdamOf<false>;
template class AdamOf<true>;

std::unique_ptr<Optimizer> adam(std::vector<Tensor> params, const AdamOptions& options) {
  return std::make_unique<Adam>(std::move(params), options);
}
std::unique_ptr<Optimizer> adam(std::vector<ParamGroup<AdamOptions>> groups) {
  return std::make_unique<Adam>(std::move(groups));
}
std::unique_ptr<Optimizer> adamw(std::vector<Tensor> params, const AdamWOptions& options) {
  return std::make_unique<AdamW>(std::move(params), options);
}
std::unique_ptr<Optimizer> adamw(std::vector<ParamGroup<AdamWOptions>> groups) {
  return std::make_unique<AdamW>(std::move(groups));
}

}  // namespace cairn::optim
