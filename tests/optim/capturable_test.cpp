// Learning rates and step counts that kernels read when they run: the same bits as without, steps
// that are skipped, saving and loading.
#include <cstring>
#include <functional>

#include "cairn/optim/adam.h"
#include "cairn/optim/sgd.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/optim/helpers.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::leaf;

namespace {

using Make = std::function<std::unique_ptr<optim::Optimizer>(const std::vector<Tensor>&)>;

const std::vector<std::pair<const char*, Make>>& makers() {
  using Params = std::vector<Tensor>;
  static const std::vector<std::pair<const char*, Make>> all = {
      {"adam", [](const Params& p) { return optim::adam(p, {.lr = 0.01, .weight_decay = 0.1}); }},
      {"adamw", [](const Params& p) { return optim::adamw(p, {.lr = 0.01}); }},
      {"amsgrad", [](const Params& p) { return optim::adam(p, {.lr = 0.01, .amsgrad = true}); }},
      {"sgd", [](const Params& p) { return optim::sgd(p, {.lr = 0.01}); }},
      {"sgd with momentum",
       [](const Params& p) {
         return optim::sgd(p, {.lr = 0.01, .momentum = 0.9, .dampening = 0.5});
       }},
      {"groups",
       [](const Params& p) {
         return optim::sgd({{{p[0], p[2]}, {.lr = 0.1, .momentum = 0.9}},
                            {{p[1], p[3]}, {.lr = 0.01, .momentum = 0.5}}});
       }},
  };
  return all;
}

std::vector<Tensor> make_params() {
  return {leaf({33}, 1), leaf({5, 7}, 2), leaf({9000}, 3), leaf({0}, 4)};
}

// Gradients of one step; parameter 1 has none in step 1.
void set_grads(optim::Optimizer& optimizer, const std::vector<Tensor>& params, uint64_t step) {
  optimizer.zero_grad();
  for (size_t i = 0; i < params.size(); ++i) {
    if (i == 1 && step == 1) continue;
    Generator generator(100 * step + i);
    const Tensor g = empty(params[i].shape());
    uniform_(g, -1, 1, generator);
    set_grad(params[i], g);
  }
}

void check_same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    INFO("parameter " << i);
    CHECK(std::memcmp(a[i].raw_data(), b[i].raw_data(), static_cast<size_t>(a[i].nbytes())) == 0);
  }
}

void check_same_state(optim::Optimizer& a, optim::Optimizer& b) {
  const optim::State x = a.state_dict(), y = b.state_dict();
  CHECK(x.numbers == y.numbers);
  REQUIRE(x.tensors.size() == y.tensors.size());
  for (const auto& [name, t] : x.tensors) {
    INFO(name);
    check_same({t}, {y.tensors.at(name)});
  }
}

}  // namespace

TEST_CASE("optim: a capturable step gives the same bits") {
  for (const auto& [name, make] : makers()) {
    INFO(name);
    const auto params = make_params(), others = make_params();
    const auto plain = make(params), capturable = make(others);
    for (uint64_t step = 0; step < 6; ++step) {
      capturable->set_capturable(step != 4);  // on from the start, off and on again
      if (step == 3)
        for (auto* optimizer : {plain.get(), capturable.get()}) optimizer->set_lr(0, 0.003);
      set_grads(*plain, params, step);
      set_grads(*capturable, others, step);
      plain->step();
      capturable->step();
      check_same(params, others);
    }
    check_same_state(*plain, *capturable);
  }
}

TEST_CASE("optim: a step whose flag is set changes nothing and does not count") {
  for (const auto& [name, make] : makers()) {
    INFO(name);
    const auto params = make_params(), others = make_params();
    const auto plain = make(params), skipping = make(others);
    const Tensor flag = zeros({});
    skipping->set_capturable(true);
    skipping->set_skip(flag);
    uint64_t done = 0;
    for (const bool skip : {true, false, false, true, false}) {
      raw::fill_(flag, skip ? 1 : 0);
      set_grads(*skipping, others, done);
      if (skip) raw::fill_(grad(others[0]), INFINITY);
      skipping->step();
      if (!skip) {
        set_grads(*plain, params, done++);
        plain->step();
      }
      check_same(params, others);
      check_same_state(*plain, *skipping);
    }
  }
}

TEST_CASE("optim: a capturable optimizer's state goes to and from another's") {
  for (const auto& [name, make] : makers()) {
    INFO(name);
    const auto params = make_params(), others = make_params();
    const auto from = make(params), to = make(others);
    from->set_capturable(true);
    to->set_capturable(true);
    set_grads(*to, others, 50);
    to->step();  // counts and states that loading must replace
    for (uint64_t step = 0; step < 3; ++step) {
      set_grads(*from, params, step);
      from->step();
    }
    from->set_lr(0, 0.02);
    for (size_t i = 0; i < params.size(); ++i) raw::copy_(others[i], params[i]);
    to->load_state_dict(from->state_dict());
    CHECK(to->lr() == 0.02);
    for (uint64_t step = 3; step < 5; ++step) {
      set_grads(*from, params, step);
      set_grads(*to, others, step);
      from->step();
      to->step();
    }
    check_same(params, others);
    check_same_state(*from, *to);
  }
}

TEST_CASE("optim: errors of capturable") {
  const std::vector<Tensor> params = {leaf({3}, 1)};
  const auto optimizer = optim::adam(params);
  CHECK(error_of([&] { optimizer->set_skip(zeros({})); }) ==
        "adam: set_skip: optimizer must be capturable; call set_capturable(true)");
  optimizer->set_capturable(true);
  CHECK(error_of([&] { optimizer->set_skip(zeros({2})); }) ==
        "adam: set_skip: flag must be f32 with one element, got f32 [2]");
  optimizer->set_skip(zeros({}));
  CHECK(error_of([&] { optimizer->set_capturable(false); }) ==
        "adam: capturable must stay on while steps can be skipped; call set_skip({}) first");
  optimizer->set_skip({});
  optimizer->set_capturable(false);
  CHECK(!optimizer->capturable());
}
