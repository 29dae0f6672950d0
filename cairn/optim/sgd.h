// Stochastic gradient descent with momentum, PyTorch's formulas (kernels/optim.h).
#pragma once

#include <memory>

#include "cairn/optim/optimizer.h"

namespace cairn::optim {

struct SgdOptions {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;  // added to the gradient
  bool nesterov = false;    // momentum above 0 and dampening 0 only
  bool maximize = false;

  template <class Self, class Fn>
  static void fields(Self& self, Fn fn) {
    fn("lr", self.lr);
    fn("momentum", self.momentum);
    fn("dampening", self.dampening);
    fn("weight_decay", self.weight_decay);
    fn("nesterov", self.nesterov);
    fn("maximize", self.maximize);
  }
  void check(const char* op) const;
};

class SGD final : public OptimizerWith<SgdOptions> {
 public:
  explicit SGD(std::vector<Tensor> params, const SgdOptions& options = {});
  explicit SGD(std::vector<ParamGroup<SgdOptions>> groups);

 private:
  double& momentum_of(size_t group) override { return options_.at(group).momentum; }
  std::span<const char* const> state_names(size_t group,
                                           const std::map<std::string, double>& options) override;
  size_t state_count(size_t group) override { return options_[group].momentum != 0 ? 1 : 0; }
  bool keeps_zero(size_t) override { return true; }
  bool idles(size_t group) override {
    // maximize would add +0, which turns a parameter of -0 into 0.
    return options_[group].weight_decay == 0 && !options_[group].maximize;
  }
  void launch(size_t group, Device device, DType dtype, kernels::OptimRuns runs, int64_t t,
              const kernels::StepNumbers& from) override;
};

std::unique_ptr<Optimizer> sgd(std::vector<Tensor> params, const SgdOptions& options = {});
std::unique_ptr<Optimizer> sgd(std::vector<ParamGroup<SgdOptions>> groups);

}  // namespace cairn::optim
