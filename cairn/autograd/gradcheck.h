// gradcheck: backward rules against central differences.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cairn/tensor/tensor.h"

namespace cairn {

struct GradcheckOptions {
  double eps = 1e-6;   // step of the central difference
  double atol = 1e-7;  // |analytic - numeric| <= atol + rtol * max(1, |numeric|)
  double rtol = 1e-6;
};

struct GradcheckResult {
  bool passed = true;
  double max_error = 0;  // largest |analytic - numeric| / max(1, |numeric|)
  std::string message;   // names input, element and both values where it failed
};

// Compares d(sum(w * fn(inputs)))/d(input) with central differences for every element of every
// input with wants[i] (all floating f64 inputs when empty); w is a fixed vector of values in (-1,
// 1). fn must be deterministic; inputs must be f64 and contiguous where they are checked. Their
// values are restored.
GradcheckResult gradcheck(const std::function<Tensor(std::span<const Tensor>)>& fn,
                          const std::vector<Tensor>& inputs, const GradcheckOptions& options = {},
                          const std::vector<bool>& wants = {});

}  // namespace cairn
