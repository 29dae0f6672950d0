// Stochastic gradient descent with momentum.
#include "cairn/optim/sgd.h"

namespace cairn::optim {

void SgdOptions::check(const char* op) const {
  detail::check_not_negative(op, "lr", lr);
  detail::check_not_negative(op, "momentum", momentum);
  detail::check_not_negative(op, "weight_decay", weight_decay);
  cairn::check(dampening == dampening && dampening - dampening == 0, op,
               ": dampening must be finite, got ", dampening);
  cairn::check(!nesterov || (momentum > 0 && dampening == 0), op,
               ": nesterov must come with momentum above 0 and dampening 0, got momentum ",
               momentum, " and dampening ", dampening);
}

SGD::SGD(std::vector<Tensor> params, const SgdOptions& options)
    : OptimizerWith("sgd", {{std::move(params), options}}) {}
SGD::SGD(std::vector<ParamGroup<SgdOptions>> groups) : OptimizerWith("sgd", std::move(groups)) {}

std::span<const char* const> SGD::state_names(size_t,
                                              const std::map<std::string, double>& options) {
  static constexpr const char* kNames[] = {"momentum_buffer"};
  return std::span(kNames).first(options.at("momentum") != 0 ? 1 : 0);
}

void SGD::launch(size_t group, Device device, DType dtype, kernels::OptimRuns runs, int64_t t,
                 const kernels::StepNumbers& from) {
  const SgdOptions& o = options_[group];
  const kernels::SgdStep step{.lr = o.lr,
                              .momentum = o.momentum,
                              .dampening = o.dampening,
                              .weight_decay = o.weight_decay,
                              .nesterov = o.nesterov,
                              .maximize = o.maximize,
                              .first = t == 1,
                              .from = from};
  kernels::sgd_step(device, dtype, runs, step);
}

std::unique_ptr<Optimizer> sgd(std::vector<Tensor> params, const SgdOptions& options) {
  return std::make_unique<SGD>(std::move(params), options);
}
std::unique_ptr<Optimizer> sgd(std::vector<ParamGroup<SgdOptions>> groups) {
  return std::make_unique<SGD>(std::move(groups));
}

}  // namespace cairn::optim
