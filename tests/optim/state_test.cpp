// Optimizer state: saved, loaded, continued bit for bit; refused when it is another's.
#include "cairn/optim/adam.h"
#include "cairn/optim/sgd.h"
#include "tests/catch.h"
#include "tests/optim/helpers.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::leaf;
using cairn::test::values_of;

namespace {

std::vector<Tensor> make_params() { return {leaf({5, 3}, 1), leaf({4}, 2), leaf({6}, 3)}; }

void run_steps(optim::Optimizer& optimizer, const std::vector<Tensor>& params, uint64_t from,
               uint64_t to) {
  for (uint64_t step = from; step < to; ++step) {
    for (size_t i = 0; i < 2; ++i) {  // the third never has a gradient
      Generator generator(10 * step + i);
      const Tensor g = rand(params[i].shape(), {}, generator);
      set_grad(params[i], g);
    }
    optimizer.step();
  }
}

// A copy that shares no memory, as a checkpoint would give it.
optim::State copy_of(const optim::State& state) {
  optim::State out = state;
  for (auto& [name, tensor] : out.tensors) tensor = raw::contiguous(raw::clone(tensor));
  return out;
}

}  // namespace

TEST_CASE("optim: the state dict has PyTorch's names") {
  const auto params = make_params();
  auto optimizer = optim::adam(params, {.lr = 0.01, .amsgrad = true});
  run_steps(*optimizer, params, 0, 2);
  const optim::State state = optimizer->state_dict();
  CHECK(state.tensors.size() == 6);
  CHECK(state.tensors.at("state.0.exp_avg").shape() == Shape{5, 3});
  CHECK(state.tensors.count("state.1.max_exp_avg_sq") == 1);
  CHECK(state.tensors.count("state.2.exp_avg") == 0);
  CHECK(state.numbers.at("state.1.step") == 2);
  CHECK(state.numbers.at("param_groups.0.lr") == 0.01);
  CHECK(state.numbers.at("param_groups.0.beta2") == 0.999);
  CHECK(state.numbers.at("param_groups.0.amsgrad") == 1);
  CHECK(state.numbers.at("param_groups.0.params") == 3);
}

TEST_CASE("optim: a loaded state goes on bit for bit") {
  const auto check_kind = [](auto make) {
    const auto whole = make_params();
    auto straight = make(whole);
    run_steps(*straight, whole, 0, 6);

    const auto params = make_params();
    auto first = make(params);
    run_steps(*first, params, 0, 3);
    const optim::State saved = copy_of(first->state_dict());

    const auto resumed = make_params();
    auto second = make(resumed);
    run_steps(*second, resumed, 3, 4);  // leaves a state that the load must replace
    for (size_t i = 0; i < params.size(); ++i) raw::copy_(resumed[i], params[i]);
    second->load_state_dict(saved);
    run_steps(*second, resumed, 3, 6);
    for (size_t i = 0; i < params.size(); ++i) CHECK(values_of(resumed[i]) == values_of(whole[i]));
  };
  check_kind([](const auto& p) { return optim::adam(p, {.lr = 0.1}); });
  check_kind([](const auto& p) { return optim::adamw(p, {.lr = 0.1, .amsgrad = true}); });
  check_kind([](const auto& p) { return optim::sgd(p, {.lr = 0.1, .momentum = 0.9}); });
  check_kind([](const auto& p) { return optim::sgd(p, {.lr = 0.1}); });
}

TEST_CASE("optim: loading an empty state forgets the old one") {
  const auto params = make_params();
  auto optimizer = optim::adam(params, {.lr = 0.1});
  const optim::State fresh = copy_of(optimizer->state_dict());
  run_steps(*optimizer, params, 0, 3);
  optimizer->load_state_dict(fresh);
  const auto restart = make_params();
  auto other = optim::adam(restart, {.lr = 0.1});
  for (size_t i = 0; i < params.size(); ++i) raw::copy_(params[i], restart[i]);
  run_steps(*optimizer, params, 5, 7);
  run_steps(*other, restart, 5, 7);
  for (size_t i = 0; i < params.size(); ++i) CHECK(values_of(params[i]) == values_of(restart[i]));
}

TEST_CASE("optim: loading restores the options") {
  const auto params = make_params();
  auto optimizer = optim::sgd(params, {.lr = 0.1, .momentum = 0.9});
  optimizer->initial_lr(0);
  optimizer->set_lr(0, 0.05);
  const optim::State saved = copy_of(optimizer->state_dict());
  auto other = optim::sgd(params, {.lr = 1, .nesterov = false});
  other->load_state_dict(saved);
  CHECK(other->lr() == 0.05);
  CHECK(other->momentum() == 0.9);
  CHECK(other->initial_lr(0) == 0.1);
}

TEST_CASE("optim: a foreign state is refused and changes nothing") {
  const auto params = make_params();
  auto optimizer = optim::adam(params, {.lr = 0.1});
  run_steps(*optimizer, params, 0, 1);
  const optim::State good = copy_of(optimizer->state_dict());
  const auto refusal = [&](auto change) {
    optim::State bad = copy_of(good);
    bad.numbers["param_groups.0.lr"] = 0.7;
    change(bad);
    const std::string text = error_of([&] { optimizer->load_state_dict(bad); });
    CHECK(optimizer->lr() == 0.1);
    CHECK(values_of(optimizer->state_dict().tensors.at("state.0.exp_avg")) ==
          values_of(good.tensors.at("state.0.exp_avg")));
    return text;
  };
  CHECK(refusal([](auto& s) { s.numbers["param_groups.0.params"] = 2; }) ==
        "adam: state must have 3 parameters in group 0, got 2");
  CHECK(refusal([](auto& s) { s.numbers.erase("param_groups.0.eps"); }) ==
        "adam: state must have the number param_groups.0.eps, got none");
  CHECK(refusal([](auto& s) { s.numbers["param_groups.0.beta1"] = 1; }) ==
        "adam: beta1 must be at least 0 and below 1, got 1");
  CHECK(refusal([](auto& s) { s.tensors.erase("state.1.exp_avg_sq"); }) ==
        "adam: state must have the tensor state.1.exp_avg_sq, got none");
  CHECK(refusal([](auto& s) { s.tensors["state.1.exp_avg"] = zeros({5}); }) ==
        "adam: state.1.exp_avg must be floating of shape [4], got f32 [5]");
  CHECK(refusal([](auto& s) { s.numbers["state.0.step"] = 1.5; }) ==
        "adam: state.0.step must be a positive whole number, got 1.5");
  CHECK(refusal([](auto& s) { s.tensors["state.9.exp_avg"] = zeros({5}); }) ==
        "adam: state must have 10 numbers and 4 tensors, got 10 and 5; is it another optimizer's?");
  auto sgd = optim::sgd(params, {.momentum = 0.9});
  CHECK(error_of([&] { sgd->load_state_dict(good); }) ==
        "sgd: state must have the number param_groups.0.momentum, got none");
}
