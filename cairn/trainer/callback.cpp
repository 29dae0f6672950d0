// Callback's defaults: the hooks of a step, and the name of the state.
// Invariant: what overrides.h compares has one address in a program, so those hooks are not inline.
#include "cairn/trainer/callback.h"

#include <cxxabi.h>

#include <cstdlib>
#include <typeinfo>

namespace cairn::trainer {

void Callback::on_train_batch_start(Trainer&, TrainingModule&, const Batch&, int64_t) {}
void Callback::on_before_zero_grad(Trainer&, TrainingModule&, optim::Optimizer&) {}
void Callback::on_before_backward(Trainer&, TrainingModule&, const Tensor&) {}
void Callback::on_after_backward(Trainer&, TrainingModule&) {}
void Callback::on_before_optimizer_step(Trainer&, TrainingModule&, optim::Optimizer&) {}
void Callback::on_train_batch_end(Trainer&, TrainingModule&, const Tensor&, const Batch&, int64_t) {
}
bool Callback::needs_batch(const Trainer&, int64_t) const { return true; }

// The class, without namespaces.
std::string Callback::state_key() const {
  int status = 0;
  char* text = abi::__cxa_demangle(typeid(*this).name(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : typeid(*this).name();
  std::free(text);
  const size_t colon = name.rfind("::");
  return colon == std::string::npos ? name : name.substr(colon + 2);
}

}  // namespace cairn::trainer
