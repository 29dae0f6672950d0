// gradcheck: central differences of a fixed projection of the output.
#include "cairn/autograd/gradcheck.h"

#include <algorithm>
#include <cmath>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

constexpr uint64_t kSeed = 20;

Tensor projection(const Tensor& out) {
  Tensor w = empty(out.shape(), {DType::f64});
  Generator generator(kSeed);
  uniform_(w, -1, 1, generator);
  return w;
}

double project(const Tensor& out, const Tensor& w) {
  const Tensor y = raw::contiguous(raw::to(out, DType::f64, kCPU));
  long double total = 0;  // keeps the rounding of this sum out of the difference
  for (int64_t i = 0; i < y.numel(); ++i)
    total += static_cast<long double>(y.data<double>()[i]) * w.data<double>()[i];
  return static_cast<double>(total);
}

}  // namespace

GradcheckResult gradcheck(const std::function<Tensor(std::span<const Tensor>)>& fn,
                          const std::vector<Tensor>& inputs, const GradcheckOptions& options,
                          const std::vector<bool>& wants) {
  std::vector<Tensor> args = inputs;
  std::vector<bool> checked(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool wanted = wants.empty() ? is_floating(inputs[i].dtype()) : wants[i];
    checked[i] = wanted;
    if (!wanted) continue;
    check(inputs[i].dtype() == DType::f64, "gradcheck: inputs must be f64, got ", inputs[i].dtype(),
          " for input ", i);
    args[i] = empty(inputs[i].shape(), {DType::f64});
    raw::copy_(args[i], inputs[i]);
    set_requires_grad(args[i]);
  }

  const Tensor out = fn(args);
  const Tensor w = projection(out);
  GradcheckResult result;
  if (!requires_grad(out)) {
    const bool any = std::any_of(checked.begin(), checked.end(), [](bool c) { return c; });
    result.passed = !any;
    if (any) result.message = "gradcheck: output takes no part in the graph";
    return result;
  }
  if (out.numel() > 0) backward(out, raw::to(w, out.dtype(), out.device()));

  NoGrad no_grad;
  for (size_t i = 0; i < args.size(); ++i) {
    if (!checked[i]) continue;
    const Tensor g = grad(args[i]).defined() ? raw::contiguous(grad(args[i])) : zeros_like(args[i]);
    double* x = args[i].data<double>();
    for (int64_t k = 0; k < args[i].numel(); ++k) {
      const double before = x[k];
      x[k] = before + options.eps;
      const double up = project(fn(args), w);
      x[k] = before - options.eps;
      const double down = project(fn(args), w);
      x[k] = before;
      const double numeric = (up - down) / (2 * options.eps);
      const double analytic = g.data<double>()[k];
      const double scale = std::max(1.0, std::abs(numeric));
      const double error = std::abs(analytic - numeric) / scale;
      result.max_error = std::isnan(error) ? error : std::max(result.max_error, error);
      if (!(std::abs(analytic - numeric) <= options.atol + options.rtol * scale) && result.passed) {
        result.passed = false;
        result.message = cat("gradcheck: gradient of input ", i, " at element ", k, " must be ",
                             numeric, ", got ", analytic);
      }
    }
  }
  return result;
}

}  // namespace cairn
