// State: what optimizers and schedules save, as tensors and numbers by dotted name.
#pragma once

#include <map>
#include <string>

#include "cairn/tensor/tensor.h"

namespace cairn::optim {

struct State {
  std::map<std::string, Tensor> tensors;  // may alias the owner's memory
  std::map<std::string, double> numbers;

  // The number of that name; absent throws Error naming `op`.
  double number(const char* op, const std::string& name) const {
    const auto at = numbers.find(name);
    check(at != numbers.end(), op, ": state must have the number ", name, ", got none");
    return at->second;
  }
};

}  // namespace cairn::optim
