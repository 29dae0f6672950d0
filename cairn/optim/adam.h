// Adam and AdamW, PyTorch's formulas and order of arithmetic (kernels/optim.h).
#pragma once

#include <array>
#include <memory>

#include "cairn/optim/optimizer.h"

namespace cairn::optim {

// The options of both; AdamW differs in what weight_decay does and in its default.
template <bool kDecoupled>
struct AdamOptionsOf {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = kDecoupled ? 1e-2 : 0;
  bool amsgrad = false;
  bool maximize = false;

  template <class Self, class Fn>
  static void fields(Self& self, Fn fn) {
    fn("lr", self.lr);
    fn("beta1", self.betas[0]);
    fn("beta2", self.betas[1]);
    fn("eps", self.eps);
    fn("weight_decay", self.weight_decay);
    fn("amsgrad", self.amsgrad);
    fn("maximize", self.maximize);
  }
  void check(const char* op) const;
};
using AdamOptions = AdamOptionsOf<false>;  // weight_decay is added to the gradient
using AdamWOptions = AdamOptionsOf<true>;  // weight_decay shrinks the parameter

template <bool kDecoupled>
class AdamOf final : public OptimizerWith<AdamOptionsOf<kDecoupled>> {
 public:
  using Options = AdamOptionsOf<kDecoupled>;
  explicit AdamOf(std::vector<Tensor> params, const Options& options = {});
  explicit AdamOf(std::vector<ParamGroup<Options>> groups);

 private:
  double& momentum_of(size_t group) override { return this->options_.at(group).betas[0]; }
  std::span<const char* const> state_names(size_t group,
                                           const std::map<std::string, double>& options) override;
  size_t state_count(size_t group) override { return this->options_[group].amsgrad ? 3 : 2; }
  // 0 / (0 + eps) is 0 only for a positive eps.
  bool keeps_zero(size_t group) override {
    return static_cast<float>(this->options_[group].eps) > 0;
  }
  bool idles(size_t group) override {
    const Options& o = this->options_[group];
    return keeps_zero(group) && o.weight_decay == 0 && !o.maximize;
  }
  void launch(size_t group, Device device, DType dtype, kernels::OptimRuns runs, int64_t t,
              const kernels::StepNumbers& from) override;
};
using Adam = AdamOf<false>;
using AdamW = AdamOf<true>;

std::unique_ptr<Optimizer> adam(std::vector<Tensor> params, const AdamOptions& options = {});
std::unique_ptr<Optimizer> adam(std::vector<ParamGroup<AdamOptions>> groups);
std::unique_ptr<Optimizer> adamw(std::vector<Tensor> params, const AdamWOptions& options = {});
std::unique_ptr<Optimizer> adamw(std::vector<ParamGroup<AdamWOptions>> groups);

}  // namespace cairn::optim
